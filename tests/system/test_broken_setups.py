"""Set-ups that are broken in one way each, really staged: what is printed must name the thing, say
why it does not work, and what to try.

    python tests/system/test_broken_setups.py     prints the table of docs/guide/troubleshooting.md
"""

import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "support"))

import build_tree  # noqa: E402

LIMIT_S = 100
ENVIRONMENT = dict(os.environ)
build_tree.add_to(ENVIRONMENT)
ENVIRONMENT.pop("VIRTUAL_ENV", None)  # where a libucx might be found
ENVIRONMENT.pop("NIXL_BUILD_DIR", None)  # the tests' own
ENVIRONMENT["NIXL_LOG_LEVEL"] = "WARN"
for _name in [n for n in ENVIRONMENT if n.startswith("UCX_")]:
    del ENVIRONMENT[_name]

AGENT = """
    from nixl._api import nixl_agent, nixl_agent_config
    try:
        agent = nixl_agent("decode-3", nixl_agent_config(%s))
        %s
        agent.close()
    except Exception as error:
        print(f"{type(error).__name__}: {error}")
"""


def program(settings='backends=["UCX"]', then="print('an agent was made')"):
    return [sys.executable, "-c", textwrap.dedent(AGENT) % (settings, then)]


def nixl_info(*words):
    built = build_tree.BUILD / "tools" / "nixl-info" / "nixl-info"
    found = str(built) if built.is_file() else shutil.which("nixl-info")
    if not found:
        pytest.skip("nixl-info was not built: it needs CLI11 and nlohmann-json")
    return [found, *words]


def run(command, prefix=(), cwd=None, **variables):
    """What a program prints, to both its outputs; variables that are None are taken away."""
    environment = {**ENVIRONMENT, **variables}
    done = subprocess.run(
        [*prefix, *command],
        env={name: value for name, value in environment.items() if value is not None},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        universal_newlines=True,
        timeout=LIMIT_S,
        cwd=cwd,
    )
    return done.stdout


def in_namespace(*commands, kind="-m"):
    """Words in front of a command: it runs in namespaces of its own, where these ran before."""
    if os.geteuid() != 0 or not shutil.which("unshare"):
        pytest.skip("only root can stage this, and with the program unshare")
    prefix = ["unshare", kind, "sh", "-c", " && ".join([*commands, 'exec "$0" "$@"'])]
    tried = subprocess.run([*prefix, "true"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if tried.returncode:
        pytest.skip(f"this machine does not allow it: {tried.stdout.decode().strip()}")
    return prefix


def without_system_ucx():
    found = []
    folders = ["/usr/local/lib", "/usr/local/lib64", "/usr/lib64", "/usr/lib", "/opt/ucx/lib"]
    folders += ["/usr/local/ucx/lib", "/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu"]
    for folder in folders:
        for file in Path(folder).glob("libucp.so.0"):
            found.append(str(file.resolve()))
    return in_namespace(*[f"mount --bind /dev/null {file}" for file in found] or ["true"])


def need_plugin(name="UCX"):
    if not (Path(ENVIRONMENT.get("NIXL_PLUGIN_DIR", "")) / f"libplugin_{name}.so").exists():
        pytest.skip(f"the plugin {name} was not built")


def compiler():
    found = shutil.which("gcc") or shutil.which("cc")
    if not found:
        pytest.skip("a C compiler is needed to stage this")
    return found


# --- the set-ups: each is staged in a folder of its own, and gives what was printed ---------------


def no_ucx(folder):
    """no UCX on the machine"""
    need_plugin()
    return run(program(), without_system_ucx(), NIXL_UCX_PATH=None, LD_LIBRARY_PATH=None)


def old_ucx(folder):
    """a UCX that is too old, version 1.12, found by the search"""
    need_plugin()
    (folder / "libucp.so.0").write_bytes(b"\x7fELF\0" + b"1.12.1\0")
    return run(
        program(), without_system_ucx(), NIXL_UCX_PATH=None, LD_LIBRARY_PATH=str(folder)
    )


def old_ucx_named(folder):
    """the same, named by NIXL_UCX_PATH, and its file does not say its version"""
    need_plugin()
    source = folder / "ucp.c"
    names = re.findall(
        r"^  [XY]\((\w+),", (HERE.parents[1] / "plugins/ucx/ucp_abi.h").read_text(), re.M
    )
    others = "".join(f"void ucp_{name}(void) {{}}\n" for name in names if name != "get_version")
    source.write_text(
        others + "const char* ucs_status_string(int s) { return 0; }\n"
        "void ucp_get_version(unsigned* a, unsigned* b, unsigned* c) "
        "{ *a = 1; *b = 12; *c = 1; }\n"
    )
    library = folder / "libucp.so.0"
    subprocess.run([compiler(), "-shared", "-fPIC", "-o", library, source], check=True)
    return run(nixl_info("plugins"), NIXL_UCX_PATH=str(folder))


def wrong_ucx_path(folder):
    """`NIXL_UCX_PATH` names a folder without UCX"""
    need_plugin()
    return run(program(), NIXL_UCX_PATH=str(folder))


def damaged_ucx(folder):
    """`NIXL_UCX_PATH` names a file that is no library"""
    need_plugin()
    (folder / "libucp.so.0").write_text("damaged")
    return run(nixl_info("plugins"), NIXL_UCX_PATH=str(folder))


def nonsense_transport(folder):
    """`UCX_TLS=nonsense`"""
    need_plugin()
    return run(program(), UCX_TLS="nonsense")


def rdma_without_devices(folder):
    """`UCX_TLS=rc` on a host without RDMA devices"""
    need_plugin()
    if os.path.isdir("/sys/class/infiniband"):
        pytest.skip("this host has RDMA devices")
    return run(nixl_info("check"), UCX_TLS="rc")


def unknown_device(folder):
    """`UCX_NET_DEVICES` names a device that the host lacks, and only TCP is allowed"""
    need_plugin()
    return run(program(), UCX_TLS="tcp", UCX_NET_DEVICES="nosuch0")


def unknown_device_beside_others(folder):
    """the same, with other transports left: an agent works, but only on this host"""
    need_plugin()
    return run(nixl_info("check"), UCX_NET_DEVICES="nosuch0")


def plugin_missing(folder):
    """the folder of plugins lacks the one that is asked for"""
    need_plugin()
    (folder / "libplugin_OTHER.so").write_text("")
    return run(program(), NIXL_PLUGIN_DIR=str(folder))


def plugin_for_another_abi(folder):
    """a plugin that was built for another version of the library"""
    built = build_tree.BUILD / "src" / "plugin" / "libplugin_WRONGABI.so"
    if not built.exists():
        pytest.skip("the tests' plugins were not built")
    shutil.copy(str(built), str(folder))
    return run(program('backends=["WRONGABI"]'), NIXL_PLUGIN_DIR=str(folder))


def plugin_without_its_library(folder):
    """a plugin that needs a library which is not installed"""
    (folder / "gone.c").write_text("int gone(void) { return 1; }\n")
    (folder / "plugin.c").write_text(
        "int gone(void);\nvoid* nixl_backend_init(void) { gone(); return 0; }\n"
    )
    make = [compiler(), "-shared", "-fPIC", "-o"]
    subprocess.run([*make, folder / "libgone.so", folder / "gone.c"], check=True)
    subprocess.run(
        [*make, folder / "libplugin_NEEDY.so", folder / "plugin.c", f"-L{folder}", "-lgone"],
        check=True,
    )
    (folder / "libgone.so").unlink()
    return run(nixl_info("plugins"), NIXL_PLUGIN_DIR=str(folder))


def plugin_that_is_no_library(folder):
    """a plugin whose file is damaged"""
    (folder / "libplugin_CUT.so").write_bytes(b"\x7fELF")
    return run(nixl_info("plugins"), NIXL_PLUGIN_DIR=str(folder))


def plugin_folder_gone(folder):
    """`NIXL_PLUGIN_DIR` points nowhere"""
    return run(program(), NIXL_PLUGIN_DIR=str(folder / "gone"))


def plugin_folder_gone_asked(folder):
    """the same, asked about"""
    return run(nixl_info("check"), NIXL_PLUGIN_DIR=str(folder / "gone"))


def malformed_variable(folder):
    """a variable with a value that cannot be understood"""
    return run(program("backends=[]"), NIXL_INLINE_US="often")


def mistyped_variable(folder):
    """a variable whose name is mistyped"""
    return run(nixl_info("check"), NIXL_PLUGINS_DIR="/opt/plugins")


def malformed_etcd(folder):
    """`NIXL_ETCD_ENDPOINTS` without a port that is a number"""
    return run(program("backends=[]"), NIXL_ETCD_ENDPOINTS="etcd-server:http")


def malformed_store(folder):
    """`NIXL_TCPSTORE_ENDPOINT` without a port"""
    return run(program("backends=[]"), NIXL_TCPSTORE_ENDPOINT="store-0")


def port_in_use(folder):
    """the listener's port is in use"""
    with socket.socket(socket.AF_INET6) as taken:
        taken.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        taken.bind(("::", 0))
        taken.listen()
        port = taken.getsockname()[1]
        return run(program(f"backends=[], enable_listen=True, listen_port={port}")).replace(
            str(port), "5555"
        )


def port_without_privileges(folder):
    """the listener's port is below 1024, and the user may not use those"""
    prefix = in_namespace(
        "echo 1024 >/proc/sys/net/ipv4/ip_unprivileged_port_start", kind="-n"
    )
    if not shutil.which("setpriv"):
        pytest.skip("the program setpriv is needed to be another user")
    user = ["setpriv", "--inh-caps=-net_bind_service", "--bounding-set=-net_bind_service", "--"]
    return run(program("backends=[], enable_listen=True, listen_port=80"), [*prefix, *user])


def unknown_host(folder):
    """metadata from a host whose name nobody knows"""
    wait = 'agent.fetch_remote_metadata("prefill-0", "no-such-host.invalid", 5555)'
    wait += "; import time; time.sleep(1)"
    return run(program(then=wait), NIXL_CONNECT_TIMEOUT_MS="500")


def unreachable_host(folder):
    """metadata from a host where nobody listens"""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        wait = f'agent.fetch_remote_metadata("prefill-0", "127.0.0.1", {port})'
        wait += "; import time; time.sleep(1)"
        return run(program(then=wait), NIXL_CONNECT_TIMEOUT_MS="500").replace(str(port), "5555")


def little_memlock(folder):
    """little memory may be locked (`ulimit -l`)"""
    if not shutil.which("prlimit") or not shutil.which("setpriv") or os.geteuid() != 0:
        pytest.skip("root, prlimit and setpriv are needed to stage this")
    prefix = ["prlimit", "--memlock=65536:65536"]
    prefix += ["setpriv", "--inh-caps=-ipc_lock", "--bounding-set=-ipc_lock", "--"]
    return run(nixl_info("check"), prefix)


def small_shared_memory(folder):
    """`/dev/shm` is too small"""
    prefix = in_namespace("mount -t tmpfs -o size=4m tmpfs /dev/shm")
    return run(nixl_info("check"), prefix)


def gpu_without_driver(folder):
    """GPU memory on a machine without a GPU driver"""
    if os.path.exists("/dev/nvidiactl"):
        pytest.skip("this machine has a GPU")
    return run(nixl_info("path", "dram:0", "vram:0"))


def other_package_beside(folder):
    """upstream's package is installed beside this one"""
    (folder / "nixl_cu12").mkdir()
    (folder / "nixl_cu12" / "__init__.py").write_text("")
    path = os.pathsep.join([str(folder), ENVIRONMENT.get("PYTHONPATH", "")])
    return run([sys.executable, "-c", "import nixl"], PYTHONPATH=path)


def sources_instead_of_a_build(folder):
    """Python started in a folder of sources"""
    source = HERE.parents[1] / "bindings" / "python" / "nixl"
    if not source.is_dir():
        pytest.skip("only a checkout has the sources")
    shutil.copytree(str(source), str(folder / "nixl"))
    return run(
        [sys.executable, "-c", "import nixl"], cwd=str(folder), PYTHONPATH=None
    ).splitlines()[-1]


# What must be printed: the thing, the cause, what to try.
SETUPS = {
    no_ucx: ("libucp.so.0", "found no", "install .*libucx|NIXL_UCX_PATH"),
    old_ucx: ("libucp.so.0", r"1\.12\.1.*1\.13 or newer", "pip install libucx|NIXL_UCX_PATH"),
    old_ucx_named: ("libucp.so.0", r"version 1\.12\.1; 1\.13 or newer", "pip install libucx"),
    wrong_ucx_path: ("NIXL_UCX_PATH", "there is no libucp.so.0 there", "Name that file"),
    damaged_ucx: ("libucp.so.0", "file too short", "reinstall UCX"),
    nonsense_transport: ("UCX_TLS=nonsense", "'nonsense' is not available", "unset it"),
    rdma_without_devices: ("UCX_TLS=rc", "'rc' is not available", "unset it"),
    unknown_device: ("UCX_NET_DEVICES=nosuch0", "is not available", "unset it"),
    unknown_device_beside_others: ("UCX_NET_DEVICES=nosuch0", "'nosuch0' is not", "unset it"),
    plugin_missing: ('plugin "UCX"', "found .*OTHER", "unset it, or let it name"),
    plugin_for_another_abi: ("libplugin_WRONGABI.so", r"ABI \d+", "rebuild it"),
    plugin_without_its_library: ("libplugin_NEEDY.so", "libgone.so: cannot open", "install what"),
    plugin_that_is_no_library: ("libplugin_CUT.so", "file too short", "install or build it"),
    plugin_folder_gone: ("gone", "No such file", "NIXL_PLUGIN_DIR names it, unset it"),
    plugin_folder_gone_asked: ("gone", "No such file", "NIXL_PLUGIN_DIR names it, unset it"),
    malformed_variable: ("NIXL_INLINE_US", '"often"', "must be a whole number"),
    mistyped_variable: ("NIXL_PLUGINS_DIR", "nothing here reads it", "mean NIXL_PLUGIN_DIR"),
    malformed_etcd: ("NIXL_ETCD_ENDPOINTS", "etcd-server:http", "must be .*2379"),
    malformed_store: ("NIXL_TCPSTORE_ENDPOINT", '"store-0"', "must be a host and a port"),
    port_in_use: ("port 5555", "Address already in use", "choose another listen_port"),
    port_without_privileges: ("port 80", "Permission denied", "choose a listen_port of 1024"),
    unknown_host: ("no-such-host.invalid", "not known|resolution|resolve", "check the name"),
    unreachable_host: ("127.0.0.1:5555", "Connection refused", "made with enable_listen"),
    little_memlock: ("memlock", "64 KB", "ulimit -l unlimited"),
    small_shared_memory: ("/dev/shm", "4 MB", "--shm-size"),
    gpu_without_driver: ("GPU 0", "no GPU driver", "libcuda"),
    other_package_beside: ("nixl_cu12", "of another|belongs to another", "pip uninstall nixl-cu12"),
    sources_instead_of_a_build: ("nixl has no", "_bindings", "pip install nixl|make build"),
}


@pytest.mark.timeout(LIMIT_S + 20)
@pytest.mark.parametrize("setup", SETUPS, ids=lambda setup: setup.__name__)
def test_the_set_up_is_explained(setup, tmp_path):
    printed = setup(tmp_path)
    assert "Traceback" not in printed or setup is sources_instead_of_a_build, printed
    for words in SETUPS[setup]:
        assert re.search(words, printed, re.S), f"/{words}/ is not in:\n{printed}"


def test_the_set_ups_are_broken_and_this_machine_is_not():
    """What the set-ups print comes from the set-ups."""
    need_plugin()
    printed = run(program())
    if "an agent was made" not in printed:
        pytest.skip(f"UCX cannot be used here: {printed}")
    assert "Error" not in printed


def sentence(setup, printed, folder):
    """The line of what was printed that matters, without places of this machine."""
    lines = [line.strip() for line in printed.splitlines() if line.strip()]
    thing = SETUPS[setup][0]
    for at, line in enumerate(lines):
        if re.search(thing, line):
            # nixl-info puts the hint on a line of its own.
            if re.match(r"\w+, [\w/]+: ", line) and at + 1 < len(lines):
                line = f"{line} / {lines[at + 1]}"
            break
    else:
        line = lines[-1]
    for place, name in ((str(folder), "/FOLDER"), (str(build_tree.BUILD), "/BUILD"),
                        (str(HERE.parents[1]), "/SOURCES")):  # fmt: skip
        line = line.replace(place, name)
    line = re.sub(r"^[WE]\d+ [\d:.]+ +\d+ \S+\] |^[\d-]+ [\d:]+ NIXL ", "", line)
    return line.replace("|", "\\|")


def main():
    print("| what was staged | what was printed |\n|---|---|")
    for setup in SETUPS:
        with tempfile.TemporaryDirectory() as name:
            try:
                printed = setup(Path(name))
            except pytest.skip.Exception as skipped:
                print(f"| {setup.__doc__} | (not staged here: {skipped}) |")
                continue
            print(f"| {setup.__doc__} | {sentence(setup, printed, name)} |", flush=True)


if __name__ == "__main__":
    main()
