"""Memory without an owner, for programs that have no arrays. Addresses are taken as they come."""

from nixl._bindings import _memory

malloc_passthru = _memory.malloc_passthru
free_passthru = _memory.free_passthru
ba_buf = _memory.ba_buf
verify_transfer = _memory.verify_transfer

__all__ = ["ba_buf", "free_passthru", "malloc_passthru", "verify_transfer"]
