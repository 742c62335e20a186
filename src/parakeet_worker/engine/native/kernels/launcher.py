"""Launches Triton kernels, or records launches for ahead-of-time compilation."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from torch import Tensor

ALIGNMENT_BYTES = 16


@dataclass(frozen=True, slots=True, eq=False)
class Launch:
    """One kernel launch: everything that selects the machine code."""

    kernel: Any
    """The function under `triton.jit`."""
    arguments: tuple[Any, ...]
    options: dict[str, Any]
    """Constants by name, `num_warps` and `num_stages`."""


_record: ContextVar[Callable[[Launch], None] | None] = ContextVar("_record", default=None)


def launch_kernel(kernel: Any, grid: tuple[int, ...], *arguments: Any, **options: Any) -> None:
    """Launch `kernel` on the current stream; an empty grid is a no-op.

    Pointers must be divisible by 16: kernels are compiled for that specialization only, ahead of
    time and at the first launch. Any other alignment would be a variant that no check covers.
    """
    record = _record.get()
    if record is not None:
        record(Launch(kernel, arguments, options))
        return
    if 0 in grid:
        return
    for argument in arguments:
        if isinstance(argument, Tensor):
            assert argument.data_ptr() % ALIGNMENT_BYTES == 0
    kernel[grid](*arguments, **options)


@contextmanager
def recording(record: Callable[[Launch], None]) -> Iterator[None]:
    """Make `launch_kernel` call `record` instead of launching: run the model on meta tensors."""
    token = _record.set(record)
    try:
        yield
    finally:
        _record.reset(token)
