"""The GPU engine on a CPU: the same stages with the reference of each kernel."""

from pathlib import Path

import torch

from parakeet_worker.engine.native import NativeEngine
from parakeet_worker.engine.native.gpu_engine import GpuEngine, search_model
from parakeet_worker.engine.native.kernels.kernel_set import Kernels
from parakeet_worker.engine.native.precision import Precision
from parakeet_worker.engine.native.prepacked import open_prepacked
from parakeet_worker.engine.native.search import GraphSearch, Limits, SearchKernels

CPU = torch.device("cpu")


def gpu_engine(
    path: Path,
    kernels: Kernels | None = None,
    search_kernels: SearchKernels | None = None,
    chunk_seconds: float = 10.0,
) -> GpuEngine:
    """Before `warm_up`, no batch uses the buffers of a graph."""
    model = open_prepacked(path, Precision.FP32, None)
    search = GraphSearch(
        search_model(model),
        CPU,
        dtype=torch.float32,
        kernels=search_kernels,
        limits=Limits(rows=16, tokens=2000),
    )
    return GpuEngine(
        model,
        NativeEngine(model, CPU),
        kernels or Kernels.reference(),
        search,
        chunk_seconds=chunk_seconds,
        bucket_tokens=(64, 192),
    )
