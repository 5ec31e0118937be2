"""nixl.get_capabilities(), check_nixl_plugins.py, and what they stand on."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import nixl
import nixl._bindings as nb

CHECK = Path(__file__).resolve().parents[3] / "check_nixl_plugins.py"


def test_capabilities_are_a_plain_dict_to_print():
    found = nixl.get_capabilities()
    assert {"gdrcopy", "ucx", "gds"} <= set(found)
    assert set(map(type, found.values())) == {bool}
    assert repr(found) == repr(dict(found)) and found == dict(found)


def test_what_cannot_be_used_has_a_reason():
    found = nixl.get_capabilities()
    assert set(found.why) == {name for name, works in found.items() if not works}
    for name, why in found.why.items():
        assert len(why.split()) > 3, (name, why)


def test_capabilities_agree_with_agents(ucx):
    assert nixl.get_capabilities()["ucx"] is True


def test_capabilities_are_true_while_an_agent_uses_the_backend(pair):
    assert nixl.get_capabilities()["ucx"] is True
    a, b, x, y = pair
    handle = a.initialize_xfer(
        "WRITE", a.get_xfer_descs([x]), b.get_xfer_descs([y]), b.name
    )
    a.transfer(handle)
    assert a.wait(handle, timeout=30) == "DONE"
    assert (x == y).all()


def test_a_setting_that_cannot_work_shows(script, ucx):
    status, output = script(
        "import nixl; c = nixl.get_capabilities(); print(c['ucx'], c.why['ucx'])",
        UCX_TLS="nonsense",
    )
    assert status == 0, output
    assert output.startswith("False") and "nonsense" in output and "unset it" in output


def test_missing_plugins_show(script, tmp_path):
    (tmp_path / "libplugin_DAMAGED.so").write_text("no library")
    status, output = script(
        "import nixl; c = nixl.get_capabilities(); print(c, c.why)",
        NIXL_PLUGIN_DIR=str(tmp_path),
    )
    assert status == 0, output
    assert "'ucx': False" in output and "'damaged': False" in output
    assert "libplugin_DAMAGED.so" in output and "install or build it for this one" in output


def test_asking_leaves_no_process_and_no_library_behind(script, ucx):
    program = (
        "import nixl, os; nixl.get_capabilities()\n"
        "try: os.waitpid(-1, os.WNOHANG); print('a child is left')\n"
        "except ChildProcessError: pass\n"
        "print('libucp' in open('/proc/self/maps').read())"
    )
    assert script(program) == (0, "False\n")


def test_asking_from_several_threads():
    import threading

    answers = []
    threads = [
        threading.Thread(target=lambda: answers.append(nixl.get_capabilities())) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(answers) == 4 and all(answer == answers[0] for answer in answers)


def test_importing_nixl_does_not_import_it(script):
    program = (
        "import nixl, sys; print('nixl._capabilities' in sys.modules);"
        "nixl.get_capabilities; print('nixl._capabilities' in sys.modules)"
    )
    assert script(program) == (0, "False\nTrue\n")


def test_what_nixl_does_not_have_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no_such_name"):
        nixl.no_such_name


def test_reports_have_their_form():
    reports = nb._inspect_plugins(30.0)
    assert [report["name"] for report in reports] == sorted(report["name"] for report in reports)
    for report in reports:
        assert report["usable"] or report["why_unusable"], report
        assert report["loaded"] or not report["memory"], report
    folder, problem, missing = nb._plugin_search()
    assert os.path.isabs(folder) and isinstance(problem, str) and isinstance(missing, list)


def check_plugins(**env):
    if not CHECK.exists():
        pytest.skip("only a checkout has check_nixl_plugins.py")
    done = subprocess.run(
        [sys.executable, str(CHECK)],
        env={**os.environ, **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        universal_newlines=True,
        timeout=50,
    )
    return done.returncode, done.stdout


def test_the_program_lists_every_plugin(ucx):
    status, output = check_plugins()
    assert status == 0, output
    names = {line.split()[0] for line in output.splitlines() if " yes " in line or " no " in line}
    assert names >= {report["name"] for report in nb._inspect_plugins(30.0)}
    assert "gdrcopy:" in output or os.path.exists("/dev/gdrdrv")


def test_the_program_says_what_is_wrong(tmp_path):
    status, output = check_plugins(NIXL_PLUGIN_DIR=str(tmp_path / "gone"))
    assert status == 1, output
    assert "NIXL_PLUGIN_DIR names it" in output and "Traceback" not in output
