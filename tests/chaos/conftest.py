"""Lets the tests of this folder import their program, and what it uses."""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
for folder in (HERE.parent / "support", HERE.parent / "system", HERE):
    sys.path.insert(0, str(folder))
