"""A model on disk to the engine that serves it best on a device."""

import logging
from dataclasses import replace
from pathlib import Path

import torch

from parakeet_worker.engine import device as devices
from parakeet_worker.engine.base import Engine
from parakeet_worker.engine.native.converted import Converted
from parakeet_worker.engine.native.engine import NativeEngine, load
from parakeet_worker.engine.native.precision import Precision

log = logging.getLogger(__name__)

_KERNEL_PRECISIONS = (Precision.BF16, Precision.FP16)


def open_native(
    path: Path,
    device: str = "auto",
    precision: str = "auto",
    converted: Path | None = None,
    *,
    kernels: bool = True,
    reproducible: bool = False,
    chunk_seconds: float = 30.0,
) -> Engine:
    """The engine for the model at `path`; raises `SetupError`s.

    `device`, `precision` and `converted` are as for `NativeEngine.open`. With `kernels` a GPU of
    compute capability 8.0 or later computes packed batches in Triton kernels, for chunks of about
    `chunk_seconds`; else, and where they cannot be had, in plain PyTorch. With `reproducible` a
    chunk has the same text beside any others.
    """
    where = devices.choose(device)
    model = load(path, where, precision, converted)
    reason = _without_kernels(model, where) if kernels else "they are switched off"
    if reason is None:
        on_device = {name: tensor.to(where) for name, tensor in model.tensors.items()}
        model = replace(model, tensors=on_device)
        try:
            return _packed(model, where, reproducible=reproducible, chunk_seconds=chunk_seconds)
        except (ImportError, ValueError) as failure:
            reason = f"{type(failure).__name__}: {failure}"
    if where.type == "cuda":
        log.warning("no Triton kernels: %s; plain PyTorch serves, several times slower", reason)
    return NativeEngine(model, where, reproducible=reproducible)


def _without_kernels(model: Converted, device: torch.device) -> str | None:
    """Why there are none for this model on this device; None where there are."""
    if device.type != "cuda":
        return "they are for a GPU"
    if not devices.supports_kernels(device):
        major, minor = torch.cuda.get_device_capability(device)
        return f"compute capability {major}.{minor} is below 8.0"
    if model.precision not in _KERNEL_PRECISIONS:
        return f"they compute in bf16 and fp16, not in {model.precision}"
    return None


def _packed(
    model: Converted, device: torch.device, *, reproducible: bool, chunk_seconds: float
) -> Engine:
    """Raises `ImportError` without Triton, `ValueError` for another subsampling."""
    from parakeet_worker.engine.native.gpu_engine import GpuEngine

    return GpuEngine.on_device(
        model, device, reproducible=reproducible, chunk_seconds=chunk_seconds
    )
