"""Makes the wheel of the build tree, and a venv that has it.

NIXL_WHEEL names a wheel to test instead; NIXL_BUILD_DIR the build tree (default: build).
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "dev"))
sys.path.insert(0, str(Path(__file__).resolve().parent))


def outside():
    """The environment of a program that sees neither the build tree nor the .venv."""
    ours = ("PYTHONPATH", "LD_LIBRARY_PATH", "NIXL_PLUGIN_DIR", "VIRTUAL_ENV")
    return {name: value for name, value in os.environ.items() if name not in ours}


@pytest.fixture(scope="session")
def wheel(tmp_path_factory):
    """The wheel's path."""
    if os.environ.get("NIXL_WHEEL"):
        return Path(os.environ["NIXL_WHEEL"]).resolve()
    build = Path(os.environ.get("NIXL_BUILD_DIR") or ROOT / "build").resolve()
    if not list(build.glob("bindings/python/nixl/_bindings*.so")):
        pytest.skip(f"there is no Python package in {build}, so there is no wheel to test")
    done = subprocess.run(
        [sys.executable, str(ROOT / "dev/wheel"), "--python", sys.executable, "--reuse", str(build),
         "--out", str(tmp_path_factory.mktemp("dist"))],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, universal_newlines=True, timeout=550)
    assert done.returncode == 0, done.stderr
    return Path(done.stdout.strip())


@pytest.fixture(scope="session")
def contents(wheel, tmp_path_factory):
    """The folder into which the wheel is unpacked."""
    import zipfile

    folder = tmp_path_factory.mktemp("wheel")
    with zipfile.ZipFile(str(wheel)) as file:
        file.extractall(str(folder))
    return folder


@pytest.fixture(scope="session")
def installed_python(wheel, tmp_path_factory):
    """The Python of a new venv in which the wheel is installed, and nothing else of ours."""
    folder = tmp_path_factory.mktemp("venv")
    environment = outside()
    python = folder / "bin" / "python"
    for command in ([sys.executable, "-m", "venv", str(folder)],
                    [str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check",
                     str(wheel)]):
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                              universal_newlines=True, env=environment, timeout=300)
        assert done.returncode == 0, done.stdout
    return python


@pytest.fixture
def run_installed(installed_python):
    """run_installed(ARGUMENT, ...): the exit status and output of the venv's Python."""

    def run(*arguments):
        return subprocess.run([str(installed_python), *map(str, arguments)],
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                              universal_newlines=True, env=outside(), timeout=400)

    return run
