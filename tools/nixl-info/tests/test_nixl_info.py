"""Runs the real nixl-info, and reads what it prints as its users do."""

import json
import os
import pty
import re
import select
import shutil
import struct
import subprocess
import termios
import time
from pathlib import Path

import pytest

PROGRAM = os.environ.get("NIXL_INFO", "nixl-info")
PAGE = Path(__file__).resolve().parents[3] / "docs" / "guide" / "configuration.md"
LIMIT_S = 90


def run(*args, **env):
    environment = {**os.environ, **env}
    return subprocess.run(
        [PROGRAM, *args],
        env={name: value for name, value in environment.items() if value is not None},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        universal_newlines=True,
        timeout=LIMIT_S,
    )


def result(*args, status=0, **env):
    done = run(*args, **env)
    assert done.returncode == status, done.stderr + done.stdout
    return json.loads(done.stdout)


def on_terminal(columns, *args, **env):
    """What it prints on a terminal of so many columns."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.environ.update({"TERM": "xterm", **env})
        if "NO_COLOR" not in env:
            os.environ.pop("NO_COLOR", None)
        size = struct.pack("HHHH", 40, columns, 0, 0)
        import fcntl

        fcntl.ioctl(1, termios.TIOCSWINSZ, size)
        os.execvp(PROGRAM, [PROGRAM, *args])
    text = b""
    deadline = time.monotonic() + LIMIT_S
    while select.select([terminal], [], [], max(0, deadline - time.monotonic()))[0]:
        try:
            more = os.read(terminal, 65536)
        except OSError:
            break
        if not more:
            break
        text += more
    os.close(terminal)
    assert time.monotonic() < deadline, text
    assert os.waitpid(pid, 0)[1] == 0, text
    return text.decode().replace("\r\n", "\n")


# --- plugins --------------------------------------------------------------------------------------


def test_plugins_as_table_has_a_row_for_each_of_the_json():
    plugins, as_table = result("plugins", "--json"), run("plugins")
    assert as_table.returncode == 0
    assert plugins, "this build has no backend at all"
    lines = as_table.stdout.splitlines()
    assert lines[0].split()[:4] == ["NAME", "USABLE", "MEMORY", "REACH"]
    rows = lines[1 : lines.index("")]
    assert [line.split()[0] for line in rows] == [plugin["name"] for plugin in plugins]


def test_each_plugin_has_the_documented_fields():
    for plugin in result("plugins", "--json"):
        assert plugin["state"] in ("usable", "unusable", "broken", "missing"), plugin
        assert plugin["usable"] == (plugin["state"] == "usable") == ("why_unusable" not in plugin)
        if plugin["usable"]:
            assert plugin["memory"] and (plugin["local"] or plugin["remote"]), plugin
            assert plugin["version"] and plugin["summary"], plugin
        for option in plugin.get("options", []):
            assert set(option) == {"name", "default", "help"} and option["name"]
        for fact in plugin.get("found", []):
            assert set(fact) == {"what", "value"} and fact["what"]


def test_a_plugin_by_its_name_tells_its_options_and_what_it_found():
    for plugin in result("plugins", "--json"):
        printed = run("plugins", plugin["name"].lower()).stdout
        assert plugin["name"] in printed.splitlines()[0]
        for option in plugin.get("options", []):
            assert option["name"] in printed
        for fact in plugin.get("found", []):
            assert fact["value"] in printed
    assert len(result("plugins", plugin["name"], "--json")) == 1


def test_a_plugin_that_is_not_there_is_an_error_that_lists_those_that_are():
    done = run("plugins", "nonsense")
    assert done.returncode == 1 and done.stdout == ""
    assert "nonsense" in done.stderr and result("plugins", "--json")[0]["name"] in done.stderr


def test_a_missing_plugin_is_named_with_its_file(tmp_path):
    built = [p["name"] for p in result("plugins", "--json") if p["path"]]
    plugins = {p["name"]: p for p in result("plugins", "--json", NIXL_PLUGIN_DIR=str(tmp_path))}
    for name in built:
        assert plugins[name]["state"] == "missing"
        assert f"{tmp_path}/libplugin_{name}.so" in plugins[name]["why_unusable"]


# --- system, check --------------------------------------------------------------------------------

SECTIONS = [
    "versions", "system", "processors", "memory", "limits", "permissions", "network", "RDMA",
    "GPUs", "plugins", "environment",
]  # fmt: skip


def test_system_has_its_sections_in_text_and_json():
    told = result("--system", "--json")
    assert list(told) == SECTIONS
    assert told["versions"]["nixl"]["value"] == run("--version").stdout.split()[-1]
    assert told["processors"]["online"]["value"].isdigit()
    for facts in told.values():
        for fact in facts.values():
            assert set(fact) <= {"value", "hint", "wrong"} and isinstance(fact["value"], str)
    text = run("system").stdout
    for section in SECTIONS:
        assert re.search(f"^{section}$", text, re.M)


def test_documents_may_write_commands_as_options():
    assert run("--config").stdout == run("config").stdout
    assert run("--system").stdout.splitlines()[0] == "versions"
    assert json.loads(run("--json", "--system").stdout)


def test_check_and_no_command_at_all_are_the_same():
    told = result("check", "--json", status=run("check").returncode)
    assert told["usable"] == [p["name"] for p in result("plugins", "--json") if p["usable"]]
    assert run().stdout == run("check").stdout
    assert run().returncode == int(any(hint["wrong"] for hint in told["hints"]))


def test_what_is_wrong_comes_first_and_gives_the_status_1():
    told = result("check", "--json", status=1, NIXL_INLINE_US="often", NIXL_INLINEUS="5")
    wrong = [hint["wrong"] for hint in told["hints"]]
    assert wrong == sorted(wrong, reverse=True) and wrong[0]
    hints = {hint["name"]: hint["hint"] for hint in told["hints"]}
    assert "must be a whole number" in hints["NIXL_INLINE_US"]
    assert "did you mean NIXL_INLINE_US?" in hints["NIXL_INLINEUS"]


def test_secrets_are_not_printed():
    secret = "correct-horse"
    env = {
        "NIXL_ETCD_PASSWORD": secret,
        "NIXL_SOME_TOKEN": secret,
        "NIXL_ETCD_ENDPOINTS": f"http://user:{secret}@etcd-0:2379",
    }
    for words in (["system"], ["system", "--json"], ["check"], ["config"], ["config", "--json"]):
        done = run(*words, **env)
        assert secret not in done.stdout + done.stderr, words
    assert "hidden" in run("system", **env).stdout


def saved_machine(tmp_path, files):
    for path, text in files.items():
        file = tmp_path / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    (tmp_path / "dev" / "shm").mkdir(parents=True, exist_ok=True)
    return str(tmp_path)


def test_a_saved_machine_is_read_and_nothing_of_this_one(tmp_path):
    root = saved_machine(
        tmp_path,
        {
            "etc/os-release": 'PRETTY_NAME="Fedora Linux 39"\n',
            "proc/cpuinfo": "model name\t: Some Processor\n",
            "proc/meminfo": "MemTotal: 2048 kB\nMemAvailable: 1024 kB\nHugepagesize: 2048 kB\n",
            "proc/sys/kernel/yama/ptrace_scope": "1\n",
            "proc/sys/kernel/io_uring_disabled": "2\n",
            "proc/self/status": "CapEff:\t0000000000000000\nSeccomp:\t2\nNoNewPrivs:\t0\n",
            "proc/self/cgroup": "0::/\n",
            "sys/class/net/eth0/operstate": "down\n",
            "sys/class/net/eth0/device/vendor": "0x1\n",
            "sys/class/infiniband/mlx5_0/ports/1/state": "4: ACTIVE\n",
            "sys/class/infiniband/mlx5_0/ports/1/rate": "400 Gb/sec (4X NDR)\n",
            "sys/class/infiniband/mlx5_0/ports/1/link_layer": "InfiniBand\n",
            "sys/class/infiniband/mlx5_1/ports/1/state": "1: DOWN\n",
            "sys/class/drm/card0/device/vendor": "0x10de\n",
            "sys/class/drm/card0/device/device": "0x2336\n",
            "proc/driver/nvidia/version": "NVRM version: 570.86\nGCC\n",
            "proc/driver/nvidia/gpus/0000:18:00.0/information": "Model: \t NVIDIA H200\n",
        },
    )
    told = result("system", "--json", "--root", root)
    assert "versions" not in told and "plugins" not in told
    assert told["system"]["distribution"]["value"] == "Fedora Linux 39"
    assert told["processors"]["model"]["value"] == "Some Processor"
    assert told["memory"]["total"]["value"] == "2 MB"
    assert "SYS_PTRACE" in told["permissions"]["ptrace_scope"]["hint"]
    assert "sysctl" in told["permissions"]["io_uring"]["hint"]
    assert "filter" in told["permissions"]["seccomp"]["value"]
    assert "hint" in told["network"]["eth0"]
    assert told["RDMA"]["mlx5_0:1"] == {
        "value": "4: ACTIVE, 400 Gb/sec (4X NDR), InfiniBand"
    }
    assert "ACTIVE" in told["RDMA"]["mlx5_1:1"]["hint"]
    assert told["RDMA"]["/dev/infiniband"]["wrong"] is True
    assert "--device" in told["RDMA"]["/dev/infiniband"]["hint"]
    assert told["GPUs"]["driver"]["value"] == "NVRM version: 570.86"
    assert told["GPUs"]["0000:18:00.0"]["value"] == "NVIDIA H200"
    assert "nvidia_peermem" in told["GPUs"]["nvidia_peermem"]["hint"]
    assert "gdrdrv" in told["GPUs"]["GDRCopy"]["hint"]


def test_an_empty_machine_is_described_without_complaint(tmp_path):
    told = result("system", "--json", "--root", str(tmp_path))
    assert "mount" in told["system"]["/proc"]["hint"]
    assert told["permissions"]["capabilities"]["value"].startswith("unknown")


def test_gpus_are_asked_for_through_their_drivers_library(tmp_path):
    fakes = sorted(Path(PROGRAM).resolve().parents[2].glob("tests/fakes/libcuda/lib*.so"))
    if os.path.exists("/dev/nvidiactl") or not fakes:
        pytest.skip("this is for machines without a GPU, and takes the tests' stand-in of libcuda")
    (tmp_path / "libcuda.so.1").symlink_to(fakes[0])
    path = os.pathsep.join([str(tmp_path), os.environ.get("LD_LIBRARY_PATH", "")])
    gpus = result("system", "--json", LD_LIBRARY_PATH=path)["GPUs"]
    assert re.match(r"\d+\.\d+$", gpus["CUDA of the driver"]["value"])
    assert re.match(r".+, \d+(\.\d+)? [MG]B$", gpus["GPU 0"]["value"])


def test_a_hidden_proc_is_said_and_not_fatal():
    if os.geteuid() != 0 or not shutil.which("unshare"):
        pytest.skip("only root can hide /proc, with the program unshare")
    library = result("system", "--json")["versions"]["library"]["value"]
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", 'mount -t tmpfs tmpfs /proc && exec "$0" "$@"', PROGRAM,
         "system", "--json"],
        # Without /proc the loader does not know where the program lies.
        env={**os.environ, "LD_LIBRARY_PATH": os.path.dirname(library)},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=LIMIT_S,
    )  # fmt: skip
    if b"mount:" in done.stderr:
        pytest.skip(f"this machine does not allow it: {done.stderr.decode()}")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.decode())
    assert "mount" in told["system"]["/proc"]["hint"]


# --- config ---------------------------------------------------------------------------------------


def test_config_tells_value_and_source():
    def state(name, **env):
        return result("config", name, "--json", **env)[0]

    unset = state("NIXL_TELEMETRY_ENABLE", NIXL_TELEMETRY_ENABLE=None, NIXL_ENABLE_TELEMETRY=None)
    assert (unset["value"], unset["source"]) == ("false", "default")
    alias = state("NIXL_TELEMETRY_ENABLE", NIXL_TELEMETRY_ENABLE=None, NIXL_ENABLE_TELEMETRY="yes")
    assert (alias["value"], alias["source"]) == ("yes", "NIXL_ENABLE_TELEMETRY")
    fields = "name type default value source help accepted aliases read_by"
    assert set(alias) == set(fields.split())


def test_config_says_what_is_wrong_with_a_value():
    done = run("config", "NIXL_STALL_MS", NIXL_STALL_MS="soon")
    assert done.returncode == 1
    assert 'NIXL_STALL_MS is "soon"; must be a whole number' in done.stdout


def test_config_knows_what_plugins_read():
    owners = {state["read_by"] for state in result("config", "--json")}
    assert "library" in owners
    for plugin in result("plugins", "--json"):
        if plugin["name"] in owners:
            return
    pytest.skip("no plugin of this build reads a variable of its own")


def test_a_variable_that_nothing_reads_is_an_error():
    done = run("config", "NIXL_LOGLEVEL")
    assert done.returncode == 1 and "did you mean NIXL_LOG_LEVEL?" in done.stderr


def sections_of(page):
    parts = re.split(r"^(## .*)$", page, flags=re.M)
    return dict(zip(["", *parts[1::2]], [parts[0], *parts[2::2]]))


def test_the_page_of_the_documentation_is_up_to_date():
    if not PAGE.exists():
        pytest.skip("only a checkout has the documentation")
    printed = sections_of(run("config", "--markdown", NIXL_INLINE_US="5").stdout)
    page = sections_of(PAGE.read_text())
    for title, text in printed.items():  # a build may lack a backend that the page has
        assert page.get(title, "").strip() == text.strip(), (
            f"{title}: write it anew: nixl-info config --markdown > docs/guide/configuration.md"
        )


# --- path -----------------------------------------------------------------------------------------


def test_a_path_between_two_processes_is_taken_and_measured():
    usable = [p for p in result("plugins", "--json") if p["usable"] and p["remote"]]
    if not usable:
        pytest.skip("no backend of this build can be used between two processes here")
    told = result("path", "dram:0", "dram:0", "--size", "1MB", "--pieces", "4", "--json")
    assert told["bytes"] == 1 << 20 and told["pieces"] == 4
    assert told["taken"] in [plugin["name"] for plugin in usable]
    assert told["paths"][0]["taken"] and told["paths"][0]["measured_us"] > 0
    assert {path["backend"] for path in told["paths"]} >= {plugin["name"] for plugin in usable}
    for path in told["paths"]:
        assert path["possible"] or path["why"], path
    text = run("path", "dram", "dram", "--read", "--same-process").stdout
    assert "READ" in text and "taken" in text and "GB/s" in text


def test_a_path_inside_one_agent_may_be_another_one():
    local = [p for p in result("plugins", "--json") if p["usable"] and p["local"]]
    if not any("DRAM" in plugin["memory"] and plugin["remote"] for plugin in local):
        pytest.skip("no backend of this build that agents list moves host memory inside of them")
    told = result("path", "dram", "dram", "--one-agent", "--size", "64KB", "--json")
    assert told["where"] == "by one agent" and told["taken"], told


def test_a_path_that_does_not_exist_says_why():
    if os.path.exists("/dev/nvidiactl"):
        pytest.skip("this machine has a GPU")
    done = run("path", "dram", "vram:0")
    assert done.returncode == 1
    assert "no GPU driver" in done.stdout + done.stderr


@pytest.mark.parametrize(
    "args, words",
    [
        (["dram", "ram"], '"ram" is no memory'),
        (["dram:x", "dram"], "number of a device"),
        (["dram", "dram", "--size", "much"], '--size is "much"'),
        (["dram", "dram", "--pieces", "0"], "--pieces is 0"),
    ],
)
def test_what_path_cannot_understand_is_said(args, words):
    done = run("path", *args)
    assert done.returncode == 1 and words in done.stderr


# --- the program ----------------------------------------------------------------------------------


def test_version_is_a_number_with_points():
    done = run("--version")
    assert done.returncode == 0
    assert done.stdout.split()[-1].replace(".", "").isdigit(), done.stdout


@pytest.mark.parametrize("args", [["nonsense"], ["plugins", "--nonsense"], ["path", "dram"]])
def test_wrong_usage_ends_with_2_and_prints_no_result(args):
    done = run(*args)
    assert done.returncode == 2
    assert done.stdout == "" and done.stderr


@pytest.mark.parametrize("columns", [80, 120])
@pytest.mark.parametrize("command", ["system", "plugins", "config"])
def test_lines_fit_a_terminal(command, columns):
    plain = re.sub("\033\\[\\d*m", "", on_terminal(columns, command))
    assert len(plain.splitlines()) > 3
    for line in plain.splitlines():
        # A single word, such as a path, may be longer than its column.
        assert len(line) <= columns or len(line.split()[-1]) > columns // 3, line


def test_colours_are_for_terminals_that_want_them():
    assert "\033[" in on_terminal(80, "plugins")
    assert "\033[" not in on_terminal(80, "plugins", NO_COLOR="1")
    assert "\033[" not in on_terminal(80, "plugins", TERM="dumb")
    assert "\033[" not in run("plugins").stdout
