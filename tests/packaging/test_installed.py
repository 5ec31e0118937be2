"""The wheel in a venv of its own: each check of installed.py, run by the venv's Python."""

import os
import subprocess
from pathlib import Path

import pytest

import installed

pytestmark = pytest.mark.timeout(600)  # the first test waits for the wheel
HERE = Path(__file__).resolve().parent


@pytest.mark.parametrize("check", [check.__name__ for check in installed.CHECKS])
def test(check, installed_python):
    environment = {name: value for name, value in os.environ.items()
                   if name not in ("PYTHONPATH", "LD_LIBRARY_PATH", "NIXL_PLUGIN_DIR",
                                   "VIRTUAL_ENV")}
    done = subprocess.run([str(installed_python), str(HERE / "installed.py"), check],
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, universal_newlines=True,
                          env=environment, timeout=400)
    if done.returncode == 0 and done.stdout.startswith("SKIPPED"):
        pytest.skip(done.stdout.strip())
    assert done.returncode == 0 and done.stdout.startswith("ok "), done.stdout
