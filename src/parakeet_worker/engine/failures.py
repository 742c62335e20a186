"""What a library's exception means: no memory, or a device that is gone.

Told by type where the library has one and by its text otherwise: CUDA's libraries report most
failures as a bare `RuntimeError`. Nothing here imports torch or touches a device.
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
    "Cannot allocate memory",  # the system's own text, as in a failed mlock or mmap
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
    """Whether it says that there is no memory for this work, on the device or on the host."""
    if isinstance(failure, MemoryError | OutOfMemory):
        return True
    if isinstance(failure, OSError):
        return failure.errno == errno.ENOMEM
    if not isinstance(failure, RuntimeError):
        return False
    kind = _of_torch("OutOfMemoryError")
    if kind is not None and isinstance(failure, kind):
        return True
    return _says(failure, _NO_MEMORY)


def is_device_failure(failure: BaseException) -> bool:
    """Whether the device's context cannot be used any more, as after every other CUDA error."""
    if not isinstance(failure, RuntimeError) or is_out_of_memory(failure):
        return False
    kind = _of_torch("AcceleratorError")
    if kind is not None and isinstance(failure, kind):
        return True
    return _says(failure, _DEVICE_FAILED)


@contextmanager
def translate_out_of_memory(seconds: float) -> Iterator[None]:
    """Raise `OutOfMemory`, for a chunk of `seconds`, where a library reports it in its own way."""
    try:
        yield
    except Exception as failure:
        if isinstance(failure, OutOfMemory) or not is_out_of_memory(failure):
            raise
        raise OutOfMemory(seconds) from failure


def clear_tracebacks(failure: BaseException) -> None:
    """Drop what the failure keeps alive: the locals of the frames that it passed through.

    A traceback holds every frame between the raise and the handler, and with them the tensors
    of the attempt that failed; so does each failure that it was raised from or during.
    """
    seen: set[int] = set()
    waiting: list[BaseException | None] = [failure]
    while waiting:
        current = waiting.pop()
        if current is None or id(current) in seen:
            continue
        seen.add(id(current))
        waiting += [current.__cause__, current.__context__]
        traceback.clear_frames(current.__traceback__)
        current.__traceback__ = current.__cause__ = current.__context__ = None


def _of_torch(name: str) -> type[BaseException] | None:
    """A type of torch's; None where torch was never imported, and so cannot have raised it."""
    kind = getattr(sys.modules.get("torch"), name, None)
    return kind if isinstance(kind, type) else None


def _says(failure: BaseException, signs: tuple[str, ...]) -> bool:
    text = str(failure)
    return any(sign in text for sign in signs)
