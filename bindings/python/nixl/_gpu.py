"""What has to be asked of a GPU's driver: on which device memory lies."""

import ctypes
import os
from typing import Dict, Optional

_DEVICE_ORDINAL = 9  # of cuPointerGetAttribute
_drivers: Dict[str, ctypes.CDLL] = {}


def _driver() -> Optional[ctypes.CDLL]:
    """The driver that the library uses too; None where there is none."""
    path = os.environ.get("NIXL_CUDA_PATH", "")
    if os.path.isdir(path):
        path = os.path.join(path, "libcuda.so.1")
    if path not in _drivers:
        try:
            library = ctypes.CDLL(path or "libcuda.so.1")
            ask = library.cuPointerGetAttribute
        except (OSError, AttributeError):
            return None
        ask.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_uint64]
        _drivers[path] = library
    return _drivers[path]


def device_of(address: int) -> Optional[int]:
    """The number of the GPU that the memory at ``address`` belongs to; None when it is none's."""
    library = _driver()
    ordinal = ctypes.c_int(-1)
    if library is None:
        return None
    failed = library.cuPointerGetAttribute(ctypes.byref(ordinal), _DEVICE_ORDINAL, address)
    return None if failed or ordinal.value < 0 else ordinal.value
