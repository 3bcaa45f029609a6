"""The C library's memory allocator, for processes that are our own."""

import ctypes
from typing import Any

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # malloc.h
_LARGEST = 2**31 - 1
_kept = False


def keep_freed_memory() -> bool:
    """Let this process reuse freed memory of any size, where the C library is glibc.

    glibc gets every block above 32 MiB fresh from the system and gives it back when it is freed. Large networks
    allocate hundreds of such maps in each pass, and the system clears every page of each: a fifth of the time of an
    effective receptive field of RepLKNet-31B at 1024 px, for a tenth more memory. A library must not decide that for
    its user's process; a command may.

    Returns:
        Whether the C library did so.
    """
    global _kept
    mallopt = _function("mallopt")
    _kept = mallopt is not None and bool(mallopt(_M_MMAP_MAX, 0)) and bool(mallopt(_M_TRIM_THRESHOLD, _LARGEST))
    return _kept


def is_freed_memory_kept() -> bool:
    """Whether `keep_freed_memory` has taken effect."""
    return _kept


def return_freed_memory() -> None:
    """Give all of it back to the system now, where the C library is glibc."""
    malloc_trim = _function("malloc_trim")
    if malloc_trim is not None:
        malloc_trim(0)


def _function(name: str) -> Any:
    try:
        return getattr(ctypes.CDLL(None), name)
    except (AttributeError, OSError, TypeError):  # another C library, or Windows
        return None
