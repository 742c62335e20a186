"""glibc's heap."""

import ctypes

_M_ARENA_MAX = -8  # from malloc.h


def limit_arenas() -> None:
    """Limit glibc to two malloc arenas for all threads.

    By default nearly every thread has its own arena, which keeps that thread's peak, so that a
    worker with many threads grows for thousands of jobs.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:  # other C libraries have no arenas
        mallopt(_M_ARENA_MAX, 2)


def trim() -> None:
    """Return freed memory to the system: about a tenth of a worker's memory."""
    malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if malloc_trim is not None:
        malloc_trim(0)
