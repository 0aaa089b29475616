"""What a step frees stays with the process, for the next step to take again."""

from __future__ import annotations

import contextlib
import ctypes
import os

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # names of <malloc.h>
_SET_BY_THE_USER = ("MALLOC_", "GLIBC_TUNABLES")


def keep_freed_memory() -> bool:
    """Lets glibc's `malloc` take large blocks from its heap and give nothing back to the system.

    By default a block above 32 MB, as the gradient of an embedding, is mapped anew in every step, and the system fills each
    of its pages with zeros first: a third of the time of a small step on a CPU with a large vocabulary (docs/speed.md). In
    exchange the process keeps what it held at its peak, which is up to a sixth higher.

    It is the whole process that changes, so this is for commands and recipes, not for a library within another's program:
    there the environment does the same, `MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=100000000000`.

    Returns:
        `bool`: whether it was done. It is not with another C library, nor where the user's environment says how `malloc`
        should behave (`MALLOC_*`, `GLIBC_TUNABLES`).
    """
    if any(name.startswith(_SET_BY_THE_USER) for name in os.environ):
        return False
    with contextlib.suppress(AttributeError, ValueError, OSError):  # Windows, macOS
        if (os.confstr("CS_GNU_LIBC_VERSION") or "").startswith("glibc"):
            mallopt = ctypes.CDLL(None).mallopt
            return bool(mallopt(_MMAP_MAX, 0) and mallopt(_TRIM_THRESHOLD, -1))
    return False
