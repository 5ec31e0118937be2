"""What dev/sanitize does: dev/sanitizers.py [address] [thread] [short|long]."""

import subprocess
import sys
import time

import parts
from parts import ROOT, Counts

PYTHON_TESTS = "bindings/python/tests"
LIMIT_OF_BUILD_S = 3600
SLOWER = 6  # times; for the limits of tests
# Left out everywhere: how much memory a process takes (sanitizers keep what was freed for a while),
# and threads in a forked child (ThreadSanitizer takes their numbers for those of the parent's).
LEFT_OUT = ["tests/system/test_identity.py::test_partial_a_thousand_times",
            "tests/system/test_life.py::test_agents_leave_no_descriptors_threads_or_mappings",
            f"{PYTHON_TESTS}/test_process.py::"
            "test_workers_of_multiprocessing_have_agents_of_their_own"]  # fmt: skip

# The compilers' own run-time libraries: clang's would be another 400 MB to install. Line numbers
# need no more than -g1; frame pointers make stacks whole. Warnings are the usual build's affair:
# instrumented code has some that are wrong.
OPTIONS = ["-Ddebug=true", "-Dwerror=false", "-Db_lundef=false", "-Dbenchmarks=disabled",
           "-Dexamples=disabled", "-Dcpp_args=['-g1','-fno-omit-frame-pointer','-w']"]  # fmt: skip


class Kind:
    """A build with one kind of sanitizer, and what is run in it."""

    def __init__(self, folder, options, variables, library, short):
        self.build = ROOT / folder
        self.options = OPTIONS + options
        self.variables = {name: ":".join(values) for name, values in variables.items()}
        # UCX patches mmap() and the like in place, where the run-time library has its own.
        self.variables["UCX_MEM_MMAP_HOOK_MODE"] = "none"
        self.library = library
        self.short = short  # what the short form builds and runs; see run_tests()

    def reports(self):
        """What the sanitizers wrote while Python tests ran, whose output pytest keeps."""
        return sorted((self.build / "meson-logs").glob("report.*"))

    def for_python(self):
        """The variables with which an interpreter loads what is instrumented."""
        found = [subprocess.run(["g++", f"-print-file-name={library}"], check=True,
                                stdout=subprocess.PIPE, universal_newlines=True).stdout.strip()
                 for library in (self.library, "libstdc++.so.6")]
        variables = dict(self.variables, LD_PRELOAD=" ".join(found))
        for name, value in self.variables.items():
            if name.endswith("SAN_OPTIONS"):
                # Interpreters never free all they have; nanobind counts objects of ours itself.
                variables[name] = (f"{value}:log_path={self.build / 'meson-logs' / 'report'}"
                                   + (":detect_leaks=0" if name == "ASAN_OPTIONS" else ""))
        return variables


KINDS = {
    "address": Kind(
        "build-asan",
        # gcc takes half as long without optimisation, and checks more.
        ["-Db_sanitize=address,undefined", "-Doptimization=0"],
        {
            # Tests ask for more memory than there is, and want to be told so.
            "ASAN_OPTIONS": ["allocator_may_return_null=1", "detect_stack_use_after_return=1",
                             "strict_string_checks=1"],
            "UBSAN_OPTIONS": ["halt_on_error=1", "print_stacktrace=1"],
            "LSAN_OPTIONS": [f"suppressions={ROOT / 'dev/leak-suppressions'}",
                             "print_suppressions=0"],
        },
        "libasan.so",
        {
            "targets": ["src/api/base_test", "src/api/plugin_test", "bad_plugins",
                        "src/api/metadata_test", "src/api/core_test", "src/api/api_test",
                        "plugins/ucx/ucx_units_test", "plugins/ucx/ucx_engine_test"],
            "tests": ["base", "plugin", "metadata", "core", "api", "ucx_units", "ucx"],
            "python": ["test_lists.py", "test_converters.py", "test_pickles.py", "test_memory.py",
                       "test_agent.py"],
        },
    ),
    "thread": Kind(
        "build-tsan",
        ["-Db_sanitize=thread", "-Doptimization=1"],
        {
            "TSAN_OPTIONS": [f"suppressions={ROOT / 'dev/tsan-suppressions'}",
                             "second_deadlock_stack=1", "history_size=4",
                             "die_after_fork=0"],  # children may start threads
        },
        "libtsan.so",
        {
            "targets": ["src/api/metadata_test", "src/api/core_test", "src/api/api_test",
                        "plugins/ucx/ucx_engine_test"],
            "tests": ["metadata", "core", "api", "ucx"],
            "python": [],
        },
    ),
}  # fmt: skip


def build(kind, form):
    """The build folder, made or refreshed; the exit status."""
    targets = []
    if form == "short":
        targets = kind.short["targets"] + (["python"] if kind.short["python"] else [])
    return parts.run([str(ROOT / "dev/build"), str(kind.build), *targets], LIMIT_OF_BUILD_S,
                     MESON_ARGS=" ".join(kind.options))


def run_tests(kind, form):
    """The tests of a form: (name, status, counts) for each group of them."""
    slower = ["--timeout-multiplier", str(SLOWER)]
    chosen = kind.short["tests"] if form == "short" else []
    yield ("C++", *parts.run_meson_tests(kind.build, "sanitized", *slower, *chosen,
                                         **kind.variables))
    if form == "long":
        files = ["tests/system", PYTHON_TESTS]
        files += [word for test in LEFT_OUT for word in ("--deselect", test)]
    else:
        files = [f"{PYTHON_TESTS}/{name}" for name in kind.short["python"]]
    if not files:
        return
    for old in kind.reports():
        old.unlink()
    status, counts = parts.run_pytest(
        kind.build, "sanitized-python", f"--timeout={SLOWER * parts.TEST_TIMEOUT_S}", *files,
        **kind.for_python())
    for report in kind.reports():  # of a process that a test started, perhaps
        print(f"--- {report}\n{report.read_text(errors='replace')[:6000]}", flush=True)
        status = status or 1
        counts.failed += 1
    yield "Python", status, counts


def run(kinds, form):
    """Builds and runs those kinds; (status, counts) as the parts of dev/test give them."""
    worst, total, rows = 0, Counts(), []

    def note(name, start, status, told):
        nonlocal worst
        worst = worst or status
        rows.append(f"{name:16} {time.monotonic() - start:7.1f} s  "
                    f"{'FAILED: ' if status else ''}{told}")

    for name in kinds:
        start = time.monotonic()
        status = build(KINDS[name], form)
        note(f"{name} build", start, status, "" if status else "ok")
        if status:
            continue
        start = time.monotonic()
        for group, status, counts in run_tests(KINDS[name], form):
            if status and not counts.failed:
                counts.failed = 1  # the group itself
            total += counts
            note(f"{name} {group}", start, status, counts)
            start = time.monotonic()
    print("\n" + "\n".join(rows), flush=True)
    return worst, total


def main(*words):
    forms = [word for word in words if word in ("short", "long")]
    kinds = [word for word in words if word in KINDS]
    if len(forms) > 1 or len(forms) + len(kinds) != len(words):
        print(f"sanitize: {' '.join(words)!r} is not [{'] ['.join(KINDS)}] [short|long]",
              file=sys.stderr)
        return 2
    status, counts = run(kinds or list(KINDS), (forms or ["short"])[0])
    print(f"\n{counts}")
    return int(status != 0)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
