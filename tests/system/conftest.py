"""Starts the processes that tests are made of; support/build_tree.py says what they use."""

import itertools
import os
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "support"))
sys.path.insert(0, str(HERE))

import build_tree  # noqa: E402

build_tree.use()
build_tree.prepend(os.environ, "PYTHONPATH", HERE)

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
