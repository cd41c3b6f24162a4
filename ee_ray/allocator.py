"""glibc gives large freed blocks back to the system and asks for them again, page by page, in every step of training."""

import ctypes
from functools import cache

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h


@cache
def keep_freed_memory() -> bool:
    """Let this process keep what it frees, for the next step; False where the C library is not glibc. Numbers stay the same.

    A step of 10M parameters on a CPU touched 80,000 new pages, 8% of its time (docs/benchmarks.md).
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return bool(mallopt and mallopt(M_MMAP_THRESHOLD, 1 << 30) and mallopt(M_TRIM_THRESHOLD, 2**31 - 1))
