"""Starts Triton kernels, or records what would be started, so that it can be compiled ahead."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from torch import Tensor

ALIGNMENT_BYTES = 16


@dataclass(frozen=True, slots=True, eq=False)
class Launch:
    """One launch of a kernel: what decides which machine code it needs."""

    kernel: Any
    """The function under `triton.jit`."""
    arguments: tuple[Any, ...]
    options: dict[str, Any]
    """Constants by name, `num_warps` and `num_stages`."""


_record: ContextVar[Callable[[Launch], None] | None] = ContextVar("_record", default=None)


def launch(kernel: Any, grid: tuple[int, ...], *arguments: Any, **options: Any) -> None:
    """Start `kernel` on the current stream; an empty grid starts nothing.

    Pointers must be divisible by 16: kernels are compiled for that alone, ahead of time and at
    the first launch, and a second variant would be one that no check has seen.
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
    """Within it, `launch` calls `record` and starts nothing: run the model on meta tensors."""
    token = _record.set(record)
    try:
        yield
    finally:
        _record.reset(token)
