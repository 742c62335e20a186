"""Opens the fastest engine for a model on disk and a device."""

import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import torch

from parakeet_worker.engine import device as devices
from parakeet_worker.engine.base import Engine
from parakeet_worker.engine.kernel_report import NoKernels
from parakeet_worker.engine.native.encoder import EncoderConfig
from parakeet_worker.engine.native.engine import NativeEngine, load_model
from parakeet_worker.engine.native.precision import KERNEL_PRECISIONS
from parakeet_worker.engine.native.prepacked import Prepacked
from parakeet_worker.engine.native.rows import FACTOR

log = logging.getLogger(__name__)


def open_native(
    path: Path,
    device: str = "auto",
    precision: str = "auto",
    cache_dir: Path | None = None,
    *,
    kernels: bool = True,
    kernel_folders: Sequence[Path] = (),
    reproducible: bool = False,
    chunk_seconds: float = 30.0,
) -> Engine:
    """Open the engine for the model at `path`. Raises `SetupError`s.

    `device`, `precision` and `cache_dir` are as for `NativeEngine.open`. With `kernels`, a GPU of
    compute capability 8.0 or later computes packed batches in Triton kernels, for chunks of about
    `chunk_seconds`; plain PyTorch is the fallback. Compiled kernels are read from `kernel_folders`
    and written to the last of them. With `reproducible`, the text of a chunk is independent of the
    rest of its batch.
    """
    target_device = devices.select(device)
    model = load_model(path, target_device, precision, cache_dir)
    reason = _unsupported_reason(model, target_device) if kernels else "they are switched off"
    if reason is None:
        try:
            return _open_gpu_engine(
                model,
                target_device,
                kernel_folders,
                reproducible=reproducible,
                chunk_seconds=chunk_seconds,
            )
        except (ImportError, NoKernels, ValueError) as failure:
            reason = str(failure)
    if target_device.type == "cuda":
        log.warning("no Triton kernels: %s; plain PyTorch serves, several times slower", reason)
    return NativeEngine(model, target_device, reproducible=reproducible)


def _unsupported_reason(model: Prepacked, device: torch.device) -> str | None:
    """Why kernels do not support the model or the device; None if they do."""
    if device.type != "cuda":
        return "they are for a GPU"
    if not devices.supports_kernels(device):
        major, minor = torch.cuda.get_device_capability(device)
        return f"compute capability {major}.{minor} is below 8.0"
    if model.precision not in KERNEL_PRECISIONS:
        return f"they compute in bf16 and fp16, not in {model.precision}"
    factor = EncoderConfig.from_nemo(model.encoder).subsampling_factor
    if factor != FACTOR:
        return f"they subsample by {FACTOR}, not by {factor}"
    return None


def _open_gpu_engine(
    model: Prepacked,
    device: torch.device,
    folders: Sequence[Path],
    *,
    reproducible: bool,
    chunk_seconds: float,
) -> Engine:
    """Raises `ImportError` without Triton, `ValueError` for another subsampling, `NoKernels`."""
    from parakeet_worker.engine.native import kernel_choice
    from parakeet_worker.engine.native.compilation import Target
    from parakeet_worker.engine.native.gpu_engine import GpuEngine
    from parakeet_worker.engine.native.kernels.ahead import card_name
    from parakeet_worker.engine.native.launches import ModelShape

    capability = torch.cuda.get_device_capability(device)
    target = Target(ModelShape.of(model), model.precision, capability, reproducible)
    with ThreadPoolExecutor(1) as executor:
        compiling = executor.submit(kernel_choice.compile_missing, target, folders)
        on_device = {name: tensor.to(device) for name, tensor in model.tensors.items()}
        compile_failures = compiling.result()
    return GpuEngine.on_device(
        replace(model, tensors=on_device),
        device,
        reproducible=reproducible,
        chunk_seconds=chunk_seconds,
        compile_failures=compile_failures,
        report_path=folders[-1] / f"compared-{card_name(capability)}.json" if folders else None,
    )
