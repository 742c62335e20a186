"""glibc's heap."""

import ctypes
import gc

# From malloc.h.
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_M_ARENA_MAX = -8
# The most that every version of glibc accepts; larger blocks are mapped each time.
_KEPT_BLOCK_BYTES = 1 << 25


def limit_arenas(count: int = 2) -> None:
    """Limit glibc to `count` malloc arenas for all threads.

    By default nearly every thread has its own arena, which keeps that thread's peak, so that a
    worker with many threads grows for thousands of jobs.
    """
    _set(_M_ARENA_MAX, count)


def keep_freed(size_bytes: int) -> None:
    """Keep up to so much freed memory at the end of the heap for the next allocations.

    By default arrays of samples are often in pages that the system has to clear first, which takes
    longer than computing with them.
    """
    _set(_M_MMAP_THRESHOLD, _KEPT_BLOCK_BYTES)
    _set(_M_TRIM_THRESHOLD, size_bytes)


def _set(parameter: int, value: int) -> None:
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:  # only in glibc
        mallopt(parameter, value)


def free() -> None:
    """Collect garbage, and return freed memory to the system: about a tenth of a worker's."""
    gc.collect()
    malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if malloc_trim is not None:
        malloc_trim(0)
