"""The wheel in a venv of its own: each check of installed.py, run by the venv's Python."""

from pathlib import Path

import pytest

import installed

pytestmark = pytest.mark.timeout(600)  # the first test waits for the wheel
HERE = Path(__file__).resolve().parent


@pytest.mark.parametrize("check", [check.__name__ for check in installed.CHECKS])
def test(check, run_installed):
    done = run_installed(HERE / "installed.py", check)
    if done.returncode == 0 and done.stdout.startswith("SKIPPED"):
        pytest.skip(done.stdout.strip())
    assert done.returncode == 0 and done.stdout.startswith("ok "), done.stdout
