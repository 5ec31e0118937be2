"""Finds the build tree, and starts the processes that tests are made of.

NIXL_BUILD_DIR names the build folder (default: build in the root of the checkout). Without one the
installed package is tested.
"""

import itertools
import os
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
BUILD = Path(os.environ.get("NIXL_BUILD_DIR") or ROOT / "build").resolve()
PACKAGE = BUILD / "bindings" / "python"


def _prepend(variable, folder):
    older = os.environ.get(variable)
    os.environ[variable] = str(folder) + (os.pathsep + older if older else "")


def _use_build_tree():
    if list(PACKAGE.glob("nixl/_bindings*.so")):
        sys.path.insert(0, str(PACKAGE))
        _prepend("PYTHONPATH", PACKAGE)
        os.environ.setdefault("NIXL_PLUGIN_DIR", str(BUILD / "plugins"))
        ucx = sorted(ROOT.glob(".venv/lib/python*/site-packages/libucx/lib"))
        if ucx:
            os.environ.setdefault("NIXL_UCX_PATH", str(ucx[-1]))
    sys.path.insert(0, str(HERE))
    _prepend("PYTHONPATH", HERE)


_use_build_tree()

from processes import Peer, end_all, run_program  # noqa: E402

_numbers = itertools.count()


def pytest_configure(config):
    config.addinivalue_line("markers", "timeout(seconds): how long a test may take")


def pytest_collection_modifyitems(items):
    for item in items:
        if HERE in item.path.parents and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(240))


@pytest.fixture(scope="session")
def ucx():
    """For tests that need two agents: skips where there is no UCX, and says what is missing."""
    status, output = run_program(
        "from nixl._api import nixl_agent, nixl_agent_config\n"
        "nixl_agent('probe', nixl_agent_config(backends=[])).create_backend('UCX')"
    )
    if "nixlNotFoundError" in output:
        pytest.skip(f"UCX cannot run here: {output.strip().splitlines()[-1]}")
    assert status == 0, output


@pytest.fixture
def start(ucx):
    """start(name, ...): a Peer, see there; all of them end with the test."""
    started = []

    def peer(name=None, **more):
        started.append(Peer(name or f"peer-{next(_numbers)}", **more))
        return started[-1]

    yield peer
    end_all(started)


@pytest.fixture
def program():
    """program(text, seconds, **env): runs it in an interpreter, gives (exit status, output)."""
    return run_program
