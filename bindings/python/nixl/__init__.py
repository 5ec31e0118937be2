"""NIXL moves memory between processes, hosts, files and object stores, for AI inference.

    from nixl import nixl_agent, nixl_agent_config

    agent = nixl_agent("decode-3", nixl_agent_config(backends=["UCX"]))

All names of ``nixl._api``, ``nixl._bindings`` and ``nixl._utils`` are here as well.
"""

import os as _os
import sys as _sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any as _Any

    from ._capabilities import get_capabilities as get_capabilities

try:
    from . import _bindings
except ImportError as _error:
    if _error.name != "nixl":  # it is there, and says itself what is wrong
        raise
    raise ImportError(
        f"{_os.path.dirname(__file__)} has no compiled part, _bindings, for Python "
        f"{_sys.version_info[0]}.{_sys.version_info[1]}. Installed, it is for one version of "
        "Python: pip install nixl with this interpreter. A folder of sources has none: leave it, or "
        "build it (make build) and set PYTHONPATH to build/bindings/python"
    ) from None
from . import _api, _utils, logging
from ._bindings import *
from ._utils import *
from ._api import *  # type: ignore[assignment]  # the last: _bindings has a nixl_thread_sync_t too
from ._api import logger, nixl_event, nixl_piece_status, nixlBind
from .logging import get_logger

__version__ = _bindings.__version__


def _look_for_others() -> None:
    """Says so when nixl_cu12 or nixl_cu13 is another distribution's package and not ours."""
    from importlib.util import find_spec

    for name in ("nixl_cu12", "nixl_cu13"):
        spec = None if name in _sys.modules else find_spec(name)
        if spec is None or not spec.origin:
            continue
        if _os.path.exists(_os.path.join(_os.path.dirname(spec.origin), "forwards-to-nixl")):
            continue
        if name == "nixl_cu12":
            # Pickled lists name a module that their reader has; this one is not ours to name.
            for cls in (_bindings.nixlXferDList, _bindings.nixlRegDList):
                cls.__module__ = "nixl._bindings"
        get_logger(__name__).warning(
            "%s in %s belongs to another distribution than nixl, and programs that import it do "
            "not use this one; 'pip uninstall %s' removes it",
            name,
            _os.path.dirname(spec.origin),
            name.replace("_", "-"),
        )


_look_for_others()


# What is not needed by every program is imported when it is asked for.
_LATER = {"get_capabilities": "_capabilities"}


def __getattr__(name: str) -> "_Any":
    if name in _LATER:
        from importlib import import_module

        value = getattr(import_module("." + _LATER[name], __name__), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
