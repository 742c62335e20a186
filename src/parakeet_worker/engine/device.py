"""Device selection, capabilities, memory, and float32 precision."""

import resource
from contextlib import suppress
from typing import Any

import torch

from parakeet_worker.errors import DeviceMissing

_KERNEL_CAPABILITY = (8, 0)


def select(device: str) -> torch.device:
    """Return the named device; `auto` selects the GPU if available, else the CPU.

    Raises `DeviceMissing` if `cuda` is requested and not available.
    """
    available = torch.cuda.is_available()
    if device == "auto":
        device = "cuda" if available else "cpu"
    if device == "cuda" and not available:
        raise DeviceMissing(device, _why_no_cuda())
    return torch.device(device)


def _why_no_cuda() -> str:
    if torch.version.cuda is None:
        return "this torch build has no CUDA support"
    return f"torch for CUDA {torch.version.cuda} found no GPU with a compatible driver"


def supports_kernels(device: torch.device) -> bool:
    """Whether the Triton kernels run on `device`: CUDA with compute capability 8.0 or later.

    Earlier GPUs lack bfloat16 and have too little shared memory.
    """
    if device.type != "cuda":
        return False
    return torch.cuda.get_device_capability(device) >= _KERNEL_CAPABILITY


def limit_threads(count: int) -> None:
    """Limit the intra-op threads of a CPU to `count`; called once at start."""
    torch.set_num_threads(min(count, torch.get_num_threads()))


def disable_tf32() -> None:
    """Disable TF32 for matmuls, convolutions and LSTMs in this process.

    By default, GPUs since Ampere round the inputs of float32 convolutions and LSTMs to TF32's
    10-bit mantissa. Called once at start, before any computation.
    """
    cudnn: Any = torch.backends.cudnn
    matmul: Any = torch.backends.cuda.matmul
    if hasattr(cudnn, "conv"):  # torch >= 2.9, where the older attributes warn
        for products in (matmul, cudnn.conv, cudnn.rnn):
            products.fp32_precision = "ieee"
        return
    matmul.allow_tf32 = False
    cudnn.allow_tf32 = False


def empty_cache(device: torch.device) -> None:
    """Return torch's cached memory to the device. A no-op on a CPU or after a CUDA error."""
    if device.type != "cuda":
        return
    # After a CUDA error every call raises.
    with suppress(RuntimeError):
        torch.cuda.empty_cache()


def peak_memory_bytes(device: torch.device) -> int:
    """Peak memory since the start: reserved by torch on a GPU, of the process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device)
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
