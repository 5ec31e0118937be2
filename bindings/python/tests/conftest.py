"""Makes agents that end with their test; tests/support/build_tree.py says what is tested."""

import itertools
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[2]
sys.path.insert(0, str(ROOT / "tests" / "support"))

import build_tree  # noqa: E402

build_tree.use()
sys.path.insert(0, str(HERE))

from nixl._api import nixl_agent, nixl_agent_config  # noqa: E402

_numbers = itertools.count()


def pytest_configure(config):
    config.addinivalue_line("markers", "timeout(seconds): how long a test may take")


def pytest_collection_modifyitems(items):
    for item in items:
        if not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(60))


def usable(backend):
    """Why a backend cannot be tested here; empty when it can."""
    try:
        with nixl_agent(f"probe-{next(_numbers)}", nixl_agent_config(backends=[])) as agent:
            agent.create_backend(backend)
    except Exception as error:
        return str(error)
    return ""


@pytest.fixture(scope="session")
def ucx():
    """For tests that need two agents: skips where UCX cannot run, and says why."""
    why = usable("UCX")
    if why:
        pytest.skip(f"UCX cannot run here: {why}")
    return "UCX"


@pytest.fixture
def make_agent():
    """make_agent("UCX", ...): an agent with these backends, closed after the test."""
    made = []

    def make(*backends, name=None, **config):
        agent = nixl_agent(
            name or f"agent-{next(_numbers)}", nixl_agent_config(backends=backends, **config)
        )
        made.append(agent)
        return agent

    yield make
    for agent in made:
        agent.close()


@pytest.fixture
def loop(make_agent):
    """An agent that moves memory to itself."""
    return make_agent("LOOPBACK")


@pytest.fixture
def pair(make_agent, ucx):
    """Two agents of this process that know each other, with memory: (a, b, array_a, array_b)."""
    import numpy as np

    a, b = make_agent(ucx), make_agent(ucx)
    x, y = np.arange(4096, dtype=np.uint8), np.zeros(4096, dtype=np.uint8)
    a.register_memory([x])
    b.register_memory([y])
    a.add_remote_agent(b.get_agent_metadata())
    b.add_remote_agent(a.get_agent_metadata())
    return a, b, x, y


def run_python(*arguments, timeout=50, **env):
    done = subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        universal_newlines=True,
        timeout=timeout,
    )
    return done.returncode, done.stdout


@pytest.fixture
def script():
    """script(text): runs a program of its own and returns (exit status, output)."""
    return lambda text, **more: run_python("-c", text, **more)


@pytest.fixture
def program(tmp_path):
    """The same from a file, which processes that are started anew can import."""

    def run(text, **more):
        path = tmp_path / "program.py"
        path.write_text(text)
        return run_python(str(path), **more)

    return run
