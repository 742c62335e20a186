"""Classification of library exceptions: out of memory, or an unusable device.

Classified by type if the library has one, else by message: CUDA libraries report most failures as
a bare `RuntimeError`. Does not import torch or use a device.
"""

import errno
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

from parakeet_worker.errors import OutOfMemory

_NO_MEMORY = (
    "out of memory",  # CUDA's runtime and driver, pinned host memory, Triton's launcher
    "cudaErrorMemoryAllocation",
    "CUDA_ERROR_OUT_OF_MEMORY",
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUSOLVER_STATUS_ALLOC_FAILED",
    "CUFFT_ALLOC_FAILED",
    "can't allocate memory",  # DefaultCPUAllocator on Linux
    "not enough memory",  # DefaultCPUAllocator elsewhere
    "Cannot allocate memory",  # strerror(ENOMEM), as in a failed mlock or mmap
)
_DEVICE_FAILED = (
    "CUDA error",
    "CUDA_ERROR_",
    "CUDA driver error",
    "Triton Error [CUDA]",
    "CUDNN_STATUS_",
    "CUBLAS_STATUS_",
    "CUSOLVER_STATUS_",
    "CUFFT_",
    "cuDNN error",
    "device-side assert",
    "illegal memory access",
    "misaligned address",
)


def is_out_of_memory(failure: BaseException) -> bool:
    """Whether `failure` reports exhausted device or host memory."""
    if isinstance(failure, MemoryError | OutOfMemory):
        return True
    if isinstance(failure, OSError):
        return failure.errno == errno.ENOMEM
    if not isinstance(failure, RuntimeError):
        return False
    kind = _torch_type("OutOfMemoryError")
    if kind is not None and isinstance(failure, kind):
        return True
    return _matches(failure, _NO_MEMORY)


def is_device_failure(failure: BaseException) -> bool:
    """Whether `failure` leaves the device context unusable: any CUDA error but out of memory."""
    if not isinstance(failure, RuntimeError) or is_out_of_memory(failure):
        return False
    kind = _torch_type("AcceleratorError")
    if kind is not None and isinstance(failure, kind):
        return True
    return _matches(failure, _DEVICE_FAILED)


@contextmanager
def translate_out_of_memory(seconds: float) -> Iterator[None]:
    """Translate library-specific out-of-memory errors to `OutOfMemory(seconds)`."""
    try:
        yield
    except Exception as failure:
        if isinstance(failure, OutOfMemory) or not is_out_of_memory(failure):
            raise
        raise OutOfMemory(seconds) from failure


def clear_tracebacks(failure: BaseException) -> None:
    """Release the frames, and so the tensors, that an exception and its causes keep alive.

    A traceback references every frame between the raise and the handler; so do the tracebacks of
    `__cause__` and `__context__`.
    """
    seen: set[int] = set()
    pending: list[BaseException | None] = [failure]
    while pending:
        current = pending.pop()
        if current is None or id(current) in seen:
            continue
        seen.add(id(current))
        pending += [current.__cause__, current.__context__]
        traceback.clear_frames(current.__traceback__)
        current.__traceback__ = current.__cause__ = current.__context__ = None


def _torch_type(name: str) -> type[BaseException] | None:
    """An exception type of torch; None if torch is not imported."""
    kind = getattr(sys.modules.get("torch"), name, None)
    return kind if isinstance(kind, type) else None


def _matches(failure: BaseException, markers: tuple[str, ...]) -> bool:
    text = str(failure)
    return any(marker in text for marker in markers)
