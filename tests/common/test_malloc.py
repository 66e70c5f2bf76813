"""A process with few heaps: glibc's limit is really set."""

import os
import subprocess
import sys

import pytest

from engines.common.malloc import HEAPS

# Threads that each hold something take a heap each, as far as the limit goes; malloc_info lists the heaps.
PROGRAM = """
import ctypes, os, sys, tempfile, threading
from engines.common.malloc import keep_few_heaps
took = keep_few_heaps() if sys.argv[1] == "few" else None
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
barrier = threading.Barrier(9)
def hold():
    libc.malloc(50_000)
    barrier.wait()
    barrier.wait()
threads = [threading.Thread(target=hold) for _ in range(8)]
for thread in threads: thread.start()
barrier.wait()
with tempfile.NamedTemporaryFile() as file:
    libc.fopen.restype = ctypes.c_void_p
    stream = ctypes.c_void_p(libc.fopen(file.name.encode(), b"w"))
    libc.malloc_info(0, stream)
    libc.fclose(stream)
    print(took, open(file.name).read().count("<heap nr="))
barrier.wait()
"""


def heaps(how: str, environment: dict[str, str] | None = None) -> list[str]:
    """What the program says in a process of its own: whether the limit was taken, and how many heaps there are."""
    limits = ("MALLOC_ARENA_MAX", "GLIBC_TUNABLES")
    own = {name: value for name, value in os.environ.items() if name not in limits} | (environment or {})
    done = subprocess.run([sys.executable, "-c", PROGRAM, how], capture_output=True, text=True, check=True, env=own)
    return done.stdout.split()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc is on Linux")
def test_threads_share_the_heaps_that_are_kept() -> None:
    assert int(heaps("all")[1]) > HEAPS
    assert heaps("few") == ["True", str(HEAPS)]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc is on Linux")
def test_a_limit_that_the_user_set_goes_first() -> None:
    assert heaps("few", {"MALLOC_ARENA_MAX": "3"}) == ["False", "3"]
    assert heaps("few", {"GLIBC_TUNABLES": "glibc.malloc.arena_max=4"}) == ["False", "4"]
