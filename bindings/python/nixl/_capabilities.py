"""nixl.get_capabilities(): what can be used on this machine, and why not the rest."""

from __future__ import annotations

import os as _os
from typing import Any, Dict, List

from . import _bindings

__all__ = ["Capabilities", "get_capabilities"]

# What programs ask for by these names, also where this copy of nixl has no such backend.
_ALWAYS = ("ucx", "gds")
_GDRCOPY = "/dev/gdrdrv"


class Capabilities(Dict[str, bool]):
    """Name -> whether it can be used here. ``why[name]`` says what is missing, and what to do."""

    def __init__(self) -> None:
        super().__init__()
        self.why: Dict[str, str] = {}

    def _set(self, name: str, why_not: str) -> None:
        self[name] = not why_not
        if why_not:
            self.why[name] = why_not


def get_capabilities(timeout: float = 10.0) -> Capabilities:
    """What nixl can use on this machine: ``{'gdrcopy': False, 'ucx': True, 'gds': False, ...}``.

    A dict with each backend's name in lower case, and ``gdrcopy``, the driver that makes small
    copies between host and GPU memory fast. Its attribute ``why`` has a sentence for each that is
    False. Every backend is tried out in a process of its own, which takes some 50 ms; one that does
    not answer within ``timeout`` seconds is False.
    """
    plugins: List[Dict[str, Any]] = _bindings._inspect_plugins(timeout)
    folder, problem, missing = _bindings._plugin_search()
    result = Capabilities()
    result._set("gdrcopy", _why_no_gdrcopy(plugins))
    for name in _ALWAYS:
        result._set(name, problem or f"there is no plugin {name.upper()} in {folder}")
    for name, file in missing:
        result._set(name.lower(), f"there is no {file}; reinstall nixl, or look at NIXL_PLUGIN_DIR")
    for plugin in plugins:
        result.why.pop(plugin["name"].lower(), None)
        result._set(plugin["name"].lower(), "" if plugin["usable"] else plugin["why_unusable"])
    return result


def _why_no_gdrcopy(plugins: List[Dict[str, Any]]) -> str:
    if not _os.path.exists(_GDRCOPY):
        return f"there is no {_GDRCOPY}; install GDRCopy and load its module gdrdrv"
    if not _os.access(_GDRCOPY, _os.R_OK | _os.W_OK):
        return f"{_GDRCOPY}: Permission denied; let this user read and write it"
    transports = [
        value
        for plugin in plugins
        if plugin["usable"]
        for what, value in plugin["found"]
        if what == "transports"
    ]
    if transports and not any("gdr_copy" in value for value in transports):
        return "the driver is there, but UCX was built without gdr_copy"
    return ""
