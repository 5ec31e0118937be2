"""Finds the two implementations, counts what was compared, and says so at the end.

NIXL_DIFFERENTIAL_DIR names the virtual environment that has upstream's wheel (default:
build/differential in the root of the checkout, which dev/differential makes). Without one the tests
are skipped. NIXL_BUILD_DIR names our build folder (default: build); without one the installed
package is compared. NIXL_DIFFERENTIAL_PROGRAMS is how many programs there are of each kind.
"""

import collections
import os
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
UPSTREAM = Path(os.environ.get("NIXL_DIFFERENTIAL_DIR") or ROOT / "build" / "differential")
PROGRAMS = int(os.environ.get("NIXL_DIFFERENTIAL_PROGRAMS") or 15)

sys.path.insert(0, str(HERE.parent / "support"))
sys.path.insert(0, str(HERE))

import build_tree  # noqa: E402
from sides import Side  # noqa: E402

COUNTS = collections.Counter()


def pytest_collection_modifyitems(items):
    for item in items:
        if HERE in Path(str(item.fspath)).parents and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(60 + PROGRAMS * 3))


def environment_of_ours():
    env = dict(os.environ)
    build_tree.add_to(env)
    return env


def environment_of_theirs():
    dropped = ("PYTHONPATH", "NIXL_PLUGIN_DIR", "NIXL_UCX_PATH", "LD_LIBRARY_PATH")
    return {name: value for name, value in os.environ.items() if name not in dropped}


@pytest.fixture(scope="session")
def sides():
    """(upstream's side, ours); skips without upstream's wheel."""
    python = UPSTREAM / "bin" / "python"
    if not python.exists():
        pytest.skip(f"upstream's wheel is not at hand; dev/differential installs it ({UPSTREAM})")
    theirs = Side(python, "nixl_cu12", environment_of_theirs())
    with theirs, Side(sys.executable, "nixl", environment_of_ours()) as ours:
        yield theirs, ours
        COUNTS["processes of upstream"] = theirs.starts
        COUNTS["processes of ours"] = ours.starts


@pytest.fixture
def counts():
    return COUNTS


def pytest_terminal_summary(terminalreporter):
    if COUNTS:
        terminalreporter.section("compared with upstream 1.5.1")
        for what, count in sorted(COUNTS.items()):
            terminalreporter.line(f"{count:8}  {what}")
