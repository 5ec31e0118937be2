"""Names, import paths, loggers and helpers of the package."""

import ctypes
import os
import sys

import pytest

import nixl
import nixl._api
import nixl._bindings
import nixl._utils as utils

API = [
    "DEFAULT_COMM_PORT",
    "nixl_agent",
    "nixl_agent_config",
    "nixl_backend_handle",
    "nixl_prepped_dlist_handle",
    "nixl_thread_sync_t",
    "nixl_xfer_handle",
]


def test_everything_is_at_the_top():
    for name in API:
        assert getattr(nixl, name) is getattr(nixl._api, name)
    for module in (nixl._bindings, nixl._utils):
        for name in vars(module):
            if not name.startswith("_") and name not in API:
                assert getattr(nixl, name) is getattr(module, name), name
    assert nixl._api.__all__ == API
    assert nixl._api.nixlBind is nixl.nixlBind is nixl._bindings
    assert nixl.DEFAULT_COMM_PORT == 8888 and nixl.nixl_backend_handle is int
    assert nixl._bindings.NIXL_INIT_AGENT == ""
    assert nixl._bindings.HAVE_UCX_GPU_DEVICE_API is False
    assert nixl.__version__ == "2.0.0"


@pytest.mark.parametrize("name", ["nixl_cu12", "nixl_cu13"])
def test_forwarding_packages_are_the_same_modules(name):
    import importlib

    package = importlib.import_module(name)
    assert package.__all__ == API and package.nixl_agent is nixl.nixl_agent
    for module in ("_api", "_bindings", "_utils", "logging"):
        assert importlib.import_module(f"{name}.{module}") is importlib.import_module(
            f"nixl.{module}"
        )


@pytest.mark.parametrize(
    "line",
    [
        "import nixl_cu12._bindings",
        "import nixl_cu13._api",
        "from nixl_cu12 import nixl_agent",
        "from nixl.logging import get_logger",
        "import pickle; pickle.loads(b'\\x80\\x02cnixl_cu12._bindings\\nnixlXferDList\\n.')",
    ],
)
def test_any_part_may_be_imported_first(script, line):
    assert script(line) == (0, "")


def test_importing_imports_neither_torch_nor_numpy(script):
    status, output = script("import nixl, sys; print({'torch', 'numpy'} & set(sys.modules))")
    assert (status, output) == (0, "set()\n")


def test_a_package_of_another_distribution_is_pointed_out(script, tmp_path):
    (tmp_path / "nixl_cu12").mkdir()
    (tmp_path / "nixl_cu12" / "__init__.py").write_text("raise SystemExit('not ours')")
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    program = (
        "import nixl, pickle; d = nixl.nixlXferDList(nixl.DRAM_SEG, [(1, 2, 3)]);"
        "assert pickle.loads(pickle.dumps(d)) == d"
    )
    status, output = script(program, PYTHONPATH=path)
    assert status == 0, output
    assert "pip uninstall nixl-cu12" in output and output.count("\n") == 1


def test_helpers_allocate_fill_and_compare():
    a, b = utils.malloc_passthru(8192), utils.malloc_passthru(8192)
    assert a % 4096 == 0 and a != b
    utils.ba_buf(a, 8192)
    utils.ba_buf(b, 8192)
    assert ctypes.string_at(a, 8192) == b"\xba" * 8192
    assert utils.verify_transfer(a, b, 8192) is None
    ctypes.memset(b + 5000, 0, 1)
    with pytest.raises(AssertionError, match="5000"):
        utils.verify_transfer(a, b, 8192)
    utils.free_passthru(a)
    utils.free_passthru(b)


LOG = "from nixl.logging import get_logger; log = get_logger('__me'); "


def test_lines_have_the_known_form(script):
    status, output = script(LOG + "log.info('hello'); log.debug('hidden'); print(log.name)")
    assert status == 0
    line, name = output.splitlines()
    assert name == "nixl.me"
    date, time, package, level, where, text = line.split()
    assert (package, level, where, text) == ("NIXL", "INFO", "<string>:1", "hello")
    assert len(date) == 10 and len(time) == 8


@pytest.mark.parametrize("level, shown", [("DEBUG", True), ("trace", True), ("error", False)])
def test_the_level_comes_from_the_environment(script, level, shown):
    _, output = script(LOG + "log.debug('low'); log.error('high')", NIXL_LOG_LEVEL=level)
    assert ("low" in output) == shown and "high" in output


def test_a_level_that_is_none_is_a_warning(script):
    _, output = script(LOG + "log.info('still')", NIXL_LOG_LEVEL="loud")
    assert "WARNING" in output and "loud" in output and "still" in output


def test_logging_of_the_program_is_left_alone(script):
    program = (
        "import logging; logging.raiseExceptions = True; early = logging.getLogger('early');"
        "import nixl; print(logging.raiseExceptions, early.disabled,"
        "logging.getLogger('nixl').propagate)"
    )
    assert script(program) == (0, "True False False\n")


def test_lines_go_to_what_stdout_is(script):
    program = (
        "import io, sys; from nixl.logging import get_logger; log = get_logger('x');"
        "sys.stdout = io.StringIO(); log.info('caught'); text = sys.stdout.getvalue();"
        "sys.stdout = sys.__stdout__; print('caught' in text)"
    )
    assert script(program) == (0, "True\n")


def test_types_are_shipped():
    folder = os.path.dirname(nixl.__file__)
    assert os.path.exists(os.path.join(folder, "py.typed"))
    with open(os.path.join(folder, "_bindings.pyi")) as stub:
        text = stub.read()
    for name in vars(nixl._bindings):
        if not name.startswith("_"):
            assert name in text, name
    assert sys.version_info >= (3, 8)
