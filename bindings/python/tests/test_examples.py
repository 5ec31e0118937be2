"""The guide's programs in examples/guide run as they are."""

import subprocess
import sys

import pytest

from binding_helpers import ROOT

PROGRAMS = sorted((ROOT / "examples" / "guide").glob("**/*.py"))


@pytest.mark.timeout(120)
@pytest.mark.parametrize("program", PROGRAMS, ids=lambda p: p.stem)
def test_the_program_runs(program, ucx):
    done = subprocess.run(
        [sys.executable, "-W", "error::DeprecationWarning:__main__", str(program)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        universal_newlines=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stdout
    assert "Traceback" not in done.stdout, done.stdout


def test_there_are_programs():
    assert len(PROGRAMS) >= 5
