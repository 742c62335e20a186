"""Which device computes, what it is capable of, and in what precision float32 is computed there."""

import resource
from contextlib import suppress
from typing import Any

import torch

from parakeet_worker.errors import DeviceMissing

_KERNEL_CAPABILITY = (8, 0)


def select(device: str) -> torch.device:
    """The device of that name; `auto` is the GPU where there is one, else the CPU.

    Raises `DeviceMissing` for `cuda` where there is none.
    """
    available = torch.cuda.is_available()
    if device == "auto":
        device = "cuda" if available else "cpu"
    if device == "cuda" and not available:
        raise DeviceMissing(device, _why_no_cuda())
    return torch.device(device)


def _why_no_cuda() -> str:
    if torch.version.cuda is None:
        return "this torch is built for processors alone"
    return f"torch for CUDA {torch.version.cuda} finds no GPU with a driver for it"


def supports_kernels(device: torch.device) -> bool:
    """Whether the Triton kernels run on `device`: CUDA with compute capability 8.0 or later.

    Earlier cards have no bfloat16 and too little shared memory.
    """
    if device.type != "cuda":
        return False
    return torch.cuda.get_device_capability(device) >= _KERNEL_CAPABILITY


def limit_threads(count: int) -> None:
    """Compute with at most so many threads on a processor; to be called once at start."""
    torch.set_num_threads(min(count, torch.get_num_threads()))


def disable_tf32() -> None:
    """Compute products and convolutions of float32 in float32, for the whole process.

    A GPU from Ampere on otherwise rounds the inputs of convolutions and LSTMs to the 10 bits of
    TF32. To be called once at start, before anything is computed.
    """
    cudnn: Any = torch.backends.cudnn
    matmul: Any = torch.backends.cuda.matmul
    if hasattr(cudnn, "conv"):  # torch 2.9 and later, where the older names warn
        for products in (matmul, cudnn.conv, cudnn.rnn):
            products.fp32_precision = "ieee"
        return
    matmul.allow_tf32 = False
    cudnn.allow_tf32 = False


def empty_cache(device: torch.device) -> None:
    """Return torch's cached memory to the device, if the device can still be reached."""
    if device.type != "cuda":
        return
    # After a CUDA error every call raises, at once; there is nothing left to return then.
    with suppress(RuntimeError):
        torch.cuda.empty_cache()


def peak_memory_bytes(device: torch.device) -> int:
    """The most memory since the start: reserved on a GPU by torch, on a CPU of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device)
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
