"""How many heaps this process keeps.

Knows: glibc's setting. Knows nothing about what is allocated.

glibc gives threads heaps of their own, and what one heap has free is of no use to the others. With the dozen threads
that paint, read and write beside each other, resident memory went on growing for thousands of images (33 MB from 1,000
to 10,000 of 64x64, and 4 MB with two heaps), at the same speed.
"""

import contextlib
import ctypes
import os
import sys

HEAPS = 2  # glibc's own limit is 8 for each core
_M_ARENA_MAX = -8  # of malloc.h


def keep_few_heaps() -> bool:
    """Limit the heaps that are begun from now on; returns whether glibc took it. A limit of the user's goes first."""
    chosen = "MALLOC_ARENA_MAX" in os.environ or "arena_max" in os.environ.get("GLIBC_TUNABLES", "")
    if chosen or not sys.platform.startswith("linux"):
        return False
    with contextlib.suppress(OSError, AttributeError):  # musl, for one, has no mallopt
        return bool(ctypes.CDLL(None).mallopt(_M_ARENA_MAX, HEAPS))
    return False
