"""NIXL moves memory between processes, hosts, files and object stores, for AI inference.

    from nixl import nixl_agent, nixl_agent_config

    agent = nixl_agent("decode-3", nixl_agent_config(backends=["UCX"]))

All names of ``nixl._api``, ``nixl._bindings`` and ``nixl._utils`` are here as well.
"""

import os as _os
import sys as _sys

from . import _api, _bindings, _utils, logging
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
