"""The parts of dev/test after the set-up: dev/parts.py MICROSECONDS-OF-SET-UP [PART ...].

Counts are those that Meson and pytest recorded; a part that fails without a count, such as the
build, counts as one failure.
"""

import json
import os
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "build"
SUITES = ("unit", "plugins", "system")
TEST_TIMEOUT_S = 120  # one pytest test; Meson tests carry their own
LIMIT_S = {"check": 600, "build": 3600}
LIMIT_OF_TESTS_S = 1800


class Counts:
    def __init__(self, passed=0, failed=0, skipped=0):
        self.passed, self.failed, self.skipped = passed, failed, skipped

    def __iadd__(self, other):
        self.passed += other.passed
        self.failed += other.failed
        self.skipped += other.skipped
        return self

    def total(self):
        return self.passed + self.failed + self.skipped

    def __str__(self):
        return f"{self.passed} passed, {self.failed} failed, {self.skipped} skipped"


def run(command, limit_s, **more):
    """Runs the command to its end, or to the limit: then it and its children are ended.

    `more`: variables of its environment.
    """
    path = f"{ROOT / '.venv/bin'}:{os.environ['PATH']}"
    environment = dict(os.environ, PATH=path, PYTHONDONTWRITEBYTECODE="1", **more)
    process = subprocess.Popen(command, cwd=str(ROOT), env=environment, start_new_session=True)

    def end(how):
        try:
            os.killpg(process.pid, how)
        except ProcessLookupError:
            pass

    try:
        return process.wait(limit_s)
    except subprocess.TimeoutExpired:
        print(f"test: '{' '.join(map(str, command))}' was stopped after {limit_s} s", flush=True)
        return 124
    finally:
        if process.poll() is None:
            end(signal.SIGTERM)  # Meson then ends its tests, which are in sessions of their own
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                pass
        end(signal.SIGKILL)
        process.wait()


def count_junit(path):
    """The counts of a JUnit file, and 'suite.case' of each case that failed."""
    counts, failed = Counts(), set()
    for suite in ElementTree.parse(str(path)).iter("testsuite"):
        for case in suite.findall("testcase"):
            if case.find("failure") is not None or case.find("error") is not None:
                counts.failed += 1
                failed.add(f"{suite.get('name')}.{case.get('name')}")
            elif case.find("skipped") is not None or case.get("status") == "notrun":
                counts.skipped += 1
            else:
                counts.passed += 1
    return counts, failed


def count_meson(logs, logbase):
    """What `meson test --logbase` recorded in the folder `logs`.

    The JUnit file has every case of a GoogleTest program. A program that failed although its cases
    passed (it crashed at exit, say) counts as one more failure.
    """
    records = logs / f"{logbase}.json"
    if not records.is_file():
        return Counts()
    counts, failed = count_junit(logs / f"{logbase}.junit.xml")
    for line in records.read_text().splitlines():
        record = json.loads(line)
        if record["result"] in ("OK", "EXPECTEDFAIL", "SKIP", "IGNORED"):
            continue
        if not any(f".{record['name']}." in f"{case}." for case in failed):
            print(f"test: {record['name']} ended badly after its cases ({record['result']})")
            counts.failed += 1
    return counts


def run_meson_tests(build, logbase, *chosen, **environment):
    """Runs those of a build folder's tests that the arguments of `meson test` choose."""
    logs = build / "meson-logs"
    for old in [*logs.glob(f"{logbase}.*"), *build.glob("*.xml")]:
        old.unlink()
    cores = subprocess.run([str(ROOT / "dev/cores")], check=True, stdout=subprocess.PIPE).stdout
    status = run(["meson", "test", "-C", str(build), "--no-rebuild", "--print-errorlogs",
                  "--num-processes", cores.decode().strip(), "--logbase", logbase,
                  *chosen], LIMIT_OF_TESTS_S, **environment)
    return status, count_meson(logs, logbase)


def run_pytest(build, logbase, *arguments, **environment):
    """Runs Python tests on what was built in a folder."""
    report = build / "meson-logs" / f"{logbase}.junit.xml"
    if report.is_file():
        report.unlink()
    # `meson devenv` gives what was built its environment: plugins, libraries, the Python package.
    set_there = [f"{name}={value}" for name, value in environment.items()]
    status = run(["meson", "devenv", "-C", str(build), "env", "-C", str(ROOT), *set_there,
                  str(ROOT / ".venv/bin/python"), "-m", "pytest", "-q", "-rs",
                  "-p", "no:cacheprovider", f"--junit-xml={report}", *arguments],
                 LIMIT_OF_TESTS_S, NIXL_BUILD_DIR=str(build))
    counts = count_junit(report)[0] if report.is_file() else Counts()
    return (0 if status == 5 else status), counts  # 5: no test was found


def meson_tests(part):
    if part == "other":
        chosen = [word for suite in SUITES for word in ("--no-suite", suite)]
    else:
        chosen = ["--suite", part]
    return lambda: run_meson_tests(BUILD, f"part-{part}", *chosen)


def python_tests():
    folders = [folder for folder in ("tests", "bindings/python/tests")
               if any((ROOT / folder).rglob("test_*.py"))]
    if not folders:
        print("test: there are no Python tests")
        return 0, Counts()
    return run_pytest(BUILD, "part-python", f"--timeout={TEST_TIMEOUT_S}", *folders)


def sanitize():
    import sanitizers  # which imports this module

    return sanitizers.run(list(sanitizers.KINDS), "short")


def script(name):
    return lambda: (run([str(ROOT / "dev" / name)], LIMIT_S[name]), Counts())


PARTS = {
    "check": script("check"),
    "build": script("build"),
    "unit": meson_tests("unit"),
    "plugins": meson_tests("plugins"),
    "other": meson_tests("other"),  # Meson tests of no such suite: none may be forgotten
    "system": meson_tests("system"),
    "python": python_tests,
    "sanitize": sanitize,
}
ONLY_WHEN_NAMED = ("sanitize",)  # they build everything again


def main(setup_us, *wanted):
    unknown = [part for part in wanted if part not in (*PARTS, "all")]
    if unknown:
        print(f"test: no part {unknown[0]!r}; there are {', '.join(PARTS)}, all", file=sys.stderr)
        return 2
    total, built = Counts(), True
    rows = [("setup", int(setup_us) / 1e6, "ok")]
    if "all" in wanted:
        wanted = PARTS
    for part in [part for part in PARTS
                 if part in wanted or (not wanted and part not in ONLY_WHEN_NAMED)]:
        if not built:
            rows.append((part, 0.0, "not run, because the build failed"))
            continue
        print(f"--- {part}", flush=True)
        start = time.monotonic()
        status, counts = PARTS[part]()
        if status and not counts.failed:
            counts.failed = 1  # the part itself
        total += counts
        built = built and not (part == "build" and status)
        verdict = str(counts) if counts.total() else "ok"
        rows.append((part, time.monotonic() - start, f"FAILED: {verdict}" if status else verdict))
    print()
    for part, seconds, verdict in rows:
        print(f"{part:8} {seconds:7.1f} s  {verdict}")
    print(f"{'all':8} {sum(row[1] for row in rows):7.1f} s\n")
    print(total)
    return int(total.failed > 0)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
