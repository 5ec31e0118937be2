"""Checks an installed wheel with nothing but Python and NumPy: python installed.py [CHECK ...].

Without names every check runs; each prints one line. Ends with 1 when one failed. The Python that
runs it is the one that the wheel is installed for; it must not see the sources or a build tree.
NIXL_CHECK_NEEDS_UCX=1: that UCX cannot be used is a failure and no reason to skip.
"""

import glob
import json
import os
import shutil
import subprocess
import sys
import tempfile

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
LIMIT_S = 100
ENVIRONMENT = dict(os.environ, NIXL_LOG_LEVEL="WARN")  # so that only results are printed


class Skip(Exception):
    """Why a check cannot be made here."""


def run(*command, **environment):
    """Runs a program to its end; returns what it printed, and fails unless it ends with 0."""
    done = subprocess.run(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        universal_newlines=True,
        timeout=LIMIT_S,
        env=dict(ENVIRONMENT, **environment),
        cwd=tempfile.gettempdir(),
    )
    assert done.returncode == 0, f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout}"
    return done.stdout


def python(program, *arguments):
    return run(sys.executable, "-c", program, *arguments)


def command(name):
    """The command beside this Python."""
    path = os.path.join(os.path.dirname(sys.executable), name)
    assert os.access(path, os.X_OK), f"there is no command {path}"
    return path


def need_ucx():
    told = python(
        "import nixl\n"
        "agent = nixl.nixl_agent('probe', nixl.nixl_agent_config(backends=[]))\n"
        "try: agent.create_backend('UCX')\n"
        "except (nixl.nixlBackendError, nixl.nixlNotFoundError) as error: print('cannot:', error)\n"
    )
    if "cannot:" in told:
        kind = AssertionError if os.environ.get("NIXL_CHECK_NEEDS_UCX") else Skip
        raise kind(f"UCX cannot run here: {told.partition('cannot:')[2].strip()}")


def the_package_is_the_installed_one():
    """What runs here is the wheel's, not a build tree's."""
    where = python("import nixl; print(nixl.__file__)").strip()
    folder = os.path.join(sys.prefix, "")
    assert where.startswith(folder) and "site-packages" in where, where


def importing_is_quiet_and_small():
    """`import nixl` says nothing, and loads no torch, no asyncio, and no module of its users'."""
    told = python(
        "import nixl, sys; print(sorted({'torch', 'asyncio', 'numpy'} & set(sys.modules)))"
    )
    assert told == "[]\n", told


def every_name_of_the_package_works():
    told = python(
        "import nixl, nixl._api, nixl_cu12._api, nixl_cu13._api\n"
        "assert nixl_cu12._api is nixl_cu13._api is nixl._api\n"
        "print(nixl.__version__, len(nixl.nixl_agent('a', nixl.nixl_agent_config(backends=[]))"
        ".get_plugin_list()))"
    )
    version, plugins = told.split()
    assert version.replace(".", "").isdigit() and int(plugins) >= 1, told


def the_distribution_owns_its_packages():
    if sys.version_info < (3, 10):
        raise Skip("importlib.metadata.packages_distributions came with Python 3.10")
    told = json.loads(
        python(
            "import importlib.metadata as m, json; owners = m.packages_distributions();"
            "print(json.dumps({n: owners.get(n) for n in ('nixl', 'nixl_cu12', 'nixl_cu13')}))"
        )
    )
    assert {tuple(set(owner)) for owner in told.values()} == {("nixl",)}, told


def types_and_licences_are_there():
    python(
        "import importlib.metadata as m, os, nixl\n"
        "folder = os.path.dirname(nixl.__file__)\n"
        "assert os.path.exists(os.path.join(folder, 'py.typed'))\n"
        "names = {f.name for f in m.files('nixl')}\n"
        "assert {'LICENSE', 'LICENSE-third-party', 'py.typed'} <= names, names\n"
    )


def nixl_info_lists_the_plugins():
    version = python("import nixl; print(nixl.__version__)").strip()
    assert run(command("nixl-info"), "--version").split()[-1] == version
    plugins = json.loads(run(command("nixl-info"), "plugins", "--json"))
    assert "UCX" in [plugin["name"] for plugin in plugins], plugins
    for plugin in plugins:
        assert plugin["usable"] or plugin["why_unusable"], plugin
        told = python(f"import nixl; print(nixl.get_capabilities()[{plugin['name'].lower()!r}])")
        assert told == f"{plugin['usable']}\n", (plugin, told)


def nixl_info_tells_of_the_python_it_belongs_to():
    told = json.loads(run(command("nixl-info"), "--system", "--json"))
    assert told["versions"]["Python"]["value"].endswith(f"({sys.executable})"), told["versions"]
    assert told["versions"]["package nixl"]["value"] == told["versions"]["nixl"]["value"], told


def nixlbench_measures():
    need_ucx()
    told = run(
        *[command("nixlbench"), "--mode", "p2p", "--size", "64KB"],
        *["--iterations", "5", "--output", "json"],
    )
    assert json.loads(told), told


TWO_PROCESSES = r"""
import os, sys, time
import numpy as np
from nixl._api import nixl_agent, nixl_agent_config

def wait(ready):
    end = time.monotonic() + 60
    while True:
        value = ready()
        if value: return value
        assert time.monotonic() < end, "waited for 60 s"
        time.sleep(0.001)

side, to_other, from_other = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
agent = nixl_agent(side, nixl_agent_config(backends=["UCX"]))
SIZE = 4 << 20
memory = np.arange(SIZE, dtype=np.uint8) if side == "writer" else np.zeros(SIZE, dtype=np.uint8)
agent.register_memory([(memory.ctypes.data, SIZE, 0, "")], "DRAM")

def tell(data):
    os.write(to_other, len(data).to_bytes(4, "little") + data)

def hear():
    size, data = int.from_bytes(os.read(from_other, 4), "little"), b""
    while len(data) < size:
        more = os.read(from_other, size - len(data))
        assert more, "the other side has ended"
        data += more
    return data

tell(memory.ctypes.data.to_bytes(8, "little") + agent.get_agent_metadata())
told = hear()
address, peer = int.from_bytes(told[:8], "little"), agent.add_remote_agent(told[8:])
peer = peer.decode() if isinstance(peer, bytes) else peer
if side == "writer":
    here = agent.get_xfer_descs([(memory.ctypes.data, SIZE, 0)], "DRAM")
    there = agent.get_xfer_descs([(address, SIZE, 0)], "DRAM")
    handle = agent.initialize_xfer("WRITE", here, there, peer, b"done")
    state = agent.transfer(handle)
    assert state in ("PROC", "DONE"), state
    wait(lambda: agent.check_xfer_state(handle) == "DONE")
    assert hear() == b"right"
    agent.release_xfer_handle(handle)
else:
    wait(lambda: b"done" in agent.get_new_notifs().get(peer, []))
    assert (memory == np.arange(SIZE, dtype=np.uint8)).all(), "other bytes have arrived"
    tell(b"right")
print(side, "is done")
"""


def two_processes_transfer():
    """4 MiB go from one process into another one, and both end cleanly."""
    need_ucx()
    with_file = tempfile.NamedTemporaryFile("w", suffix=".py", delete=False)
    with_file.write(TWO_PROCESSES)
    with_file.close()
    a_hears, b_tells = os.pipe()
    b_hears, a_tells = os.pipe()
    sides = []
    try:
        for side, *pipes in (("writer", a_tells, a_hears), ("reader", b_tells, b_hears)):
            sides.append(
                subprocess.Popen(
                    [sys.executable, with_file.name, side, *map(str, pipes)],
                    pass_fds=pipes,
                    env=ENVIRONMENT,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    universal_newlines=True,
                )
            )
        for end in (a_hears, b_tells, b_hears, a_tells):
            os.close(end)
        told = [side.communicate(timeout=LIMIT_S)[0] for side in sides]
        assert [side.returncode for side in sides] == [0, 0], told
        assert told == ["writer is done\n", "reader is done\n"], told
    finally:
        for side in sides:
            if side.poll() is None:
                side.kill()
                side.wait()
        os.unlink(with_file.name)


def the_guides_programs_run():
    need_ucx()
    programs = sorted(glob.glob(os.path.join(ROOT, "examples", "guide", "*.py")))
    assert len(programs) >= 5, programs
    for program in programs:
        told = run(sys.executable, program)
        assert "Traceback" not in told, told


def a_program_in_cpp_links():
    """The headers and the library of the wheel are enough for a C++ program."""
    need_ucx()
    compiler = os.environ.get("CXX") or shutil.which("g++")
    if not compiler:
        raise Skip("there is no C++ compiler")
    words = run(command("nixl-config"), "--cflags", "--libs").split()
    with tempfile.TemporaryDirectory() as folder:
        program = os.path.join(folder, "basic")
        source = os.path.join(ROOT, "examples", "guide", "basic.cc")
        run(*compiler.split(), "-std=c++17", source, "-o", program, *words)
        run(program)


CHECKS = [
    the_package_is_the_installed_one,
    importing_is_quiet_and_small,
    every_name_of_the_package_works,
    the_distribution_owns_its_packages,
    types_and_licences_are_there,
    nixl_info_lists_the_plugins,
    nixl_info_tells_of_the_python_it_belongs_to,
    nixlbench_measures,
    two_processes_transfer,
    the_guides_programs_run,
    a_program_in_cpp_links,
]


def main():
    wanted = sys.argv[1:]
    unknown = set(wanted) - {check.__name__ for check in CHECKS}
    assert not unknown, unknown
    failed = 0
    for check in CHECKS:
        if wanted and check.__name__ not in wanted:
            continue
        try:
            check()
        except Skip as why:
            print(f"SKIPPED  {check.__name__}: {why}", flush=True)
        except Exception as error:
            failed += 1
            print(f"FAILED   {check.__name__}: {error}", flush=True)
        else:
            print(f"ok       {check.__name__}", flush=True)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
