"""Of glibc's heap: freed arrays are reused, threads share arenas, and garbage is returned."""

import gc
import subprocess
import sys
import weakref

import pytest

from parakeet_worker import heap

COUNT_FAULTS = """
import resource, sys
import numpy as np
from parakeet_worker import heap
exec(sys.argv[1])
def use(): arrays = [np.ones(1 << 20) for _ in range(8)]
use()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10): use()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
COUNT_ARENAS = """
import ctypes, sys, threading
from parakeet_worker import heap
exec(sys.argv[1])
allocated = [threading.Barrier(9), threading.Barrier(9)]
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
def allocate():
    libc.malloc(100_000)
    for each in allocated:
        each.wait()
for _ in range(8):
    threading.Thread(target=allocate).start()
allocated[0].wait()
libc.malloc_stats()
allocated[1].wait()
"""


def run(program: str, first: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-c", program, first], capture_output=True, text=True, check=True
    )


def test_freed_arrays_are_reused() -> None:
    """Ten times 64 MiB have 163,840 pages of 4 KiB, or 320 of 2 MiB."""
    kept = int(run(COUNT_FAULTS, "heap.keep_freed(128 << 20)").stdout)
    by_default = int(run(COUNT_FAULTS, "").stdout)
    assert kept < 100 <= by_default


@pytest.mark.parametrize("count", [1, 2])
def test_threads_share_arenas(count: int) -> None:
    arenas = run(COUNT_ARENAS, f"heap.limit_arenas({count})").stderr.count("Arena ")
    assert arenas == count
    assert run(COUNT_ARENAS, "").stderr.count("Arena ") > 2


def test_free_returns_freed_memory() -> None:
    program = """
import sys, psutil
import numpy as np
from parakeet_worker import heap
heap.keep_freed(256 << 20)
before = psutil.Process().memory_info().rss
arrays = [np.ones(1 << 20) for _ in range(8)]
del arrays
freed = psutil.Process().memory_info().rss
heap.free()
print(freed - before, psutil.Process().memory_info().rss - before)
"""
    kept, left = map(int, run(program, "").stdout.split())
    assert kept > 32 << 20
    assert left < 8 << 20


def test_free_collects_garbage() -> None:
    class Cycle:
        def __init__(self) -> None:
            self.own = self

    gc.collect()
    gc.disable()
    try:
        cycle = weakref.ref(Cycle())
        assert cycle() is not None
        heap.free()
        assert cycle() is None
    finally:
        gc.enable()
