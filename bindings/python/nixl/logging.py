"""The loggers of the package: all below ``nixl``, on standard output, set up once.

``NIXL_LOG_LEVEL`` (TRACE, DEBUG, INFO, WARN, ERROR or FATAL) sets the level; INFO without it. The
library itself writes to standard error and reads the same variable.
"""

from __future__ import annotations

import logging as _logging
import os as _os
import sys as _sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any as _Any, Optional as _Optional

_LEVELS = {
    "TRACE": _logging.DEBUG,
    "DEBUG": _logging.DEBUG,
    "INFO": _logging.INFO,
    "WARN": _logging.WARNING,
    "ERROR": _logging.ERROR,
    "FATAL": _logging.CRITICAL,
}
_FORMAT = "%(asctime)s NIXL %(levelname)-7s %(filename)s:%(lineno)d %(message)s"
_root: _Optional[_logging.Logger] = None


class _StandardOutput(_logging.StreamHandler):  # type: ignore[type-arg]
    """Writes to what ``sys.stdout`` is at the moment of writing."""

    def __init__(self) -> None:
        _logging.Handler.__init__(self)

    @property
    def stream(self) -> _Any:
        return _sys.stdout


def _set_up() -> _logging.Logger:
    root = _logging.getLogger("nixl")
    handler = _StandardOutput()
    handler.setFormatter(_logging.Formatter(_FORMAT, datefmt="%Y-%m-%d %H:%M:%S"))
    root.addHandler(handler)
    root.propagate = False
    root.setLevel(_logging.INFO)
    wanted = _os.environ.get("NIXL_LOG_LEVEL")
    if wanted:
        level = _LEVELS.get(wanted.upper())
        if level is None:
            root.warning(
                "NIXL_LOG_LEVEL is %r, which is none of %s; INFO it is", wanted, ", ".join(_LEVELS)
            )
        else:
            root.setLevel(level)
            root.info("log level %s, from NIXL_LOG_LEVEL", wanted.upper())
    return root


def get_logger(name: str) -> _logging.Logger:
    """The logger ``nixl.<name>``, with leading underscores of the name removed."""
    global _root
    if _root is None:
        _root = _set_up()
    return _root.getChild(name.lstrip("_"))
