"""Where what was built lies, and how Python programs use it without installing it.

NIXL_BUILD_DIR names the build folder (default: build in the root of the checkout). Without one the
installed package is used.
"""

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BUILD = Path(os.environ.get("NIXL_BUILD_DIR") or ROOT / "build").resolve()
PACKAGE = BUILD / "bindings" / "python"


def is_built():
    return bool(list(PACKAGE.glob("nixl/_bindings*.so")))


def prepend(environment, variable, folder):
    older = environment.get(variable)
    environment[variable] = str(folder) + (os.pathsep + older if older else "")


def add_to(environment):
    """Lets programs that run in this environment find the package, its plugins, and a UCX."""
    if not is_built():
        return
    prepend(environment, "PYTHONPATH", PACKAGE)
    environment.setdefault("NIXL_PLUGIN_DIR", str(BUILD / "plugins"))
    ucx = sorted(ROOT.glob(".venv/lib/python*/site-packages/libucx/lib"))
    if ucx:
        environment.setdefault("NIXL_UCX_PATH", str(ucx[-1]))


def use():
    """The same for this process and those that it starts."""
    add_to(os.environ)
    if is_built():
        sys.path.insert(0, str(PACKAGE))
