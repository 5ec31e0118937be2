"""The package nixl under the name that it has for CUDA 12: ``nixl_cu12._api`` is ``nixl._api``, and so on."""

import sys as _sys

import nixl as _nixl
from nixl import *  # noqa: F403
from nixl import __version__, _api, _bindings, _utils, logging
from nixl._api import __all__

for _module in (_api, _bindings, _utils, logging):
    _sys.modules[__name__ + "." + _module.__name__.rpartition(".")[2]] = _module
del _module
