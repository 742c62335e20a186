"""Models and engines for the parts: on a GPU, or on a CPU with references as kernels."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from bench.gpu.figures import Report
from bench.gpu.parts import Setup
from bench.harness import ROOT
from bench.random_model import Files
from parakeet_worker.engine.native.engine import NativeEngine
from parakeet_worker.engine.native.gpu_engine import GpuEngine, search_model
from parakeet_worker.engine.native.kernels import cache
from parakeet_worker.engine.native.kernels.kernel_set import Kernels
from parakeet_worker.engine.native.kernels.tiles import Tiles, tiles_for
from parakeet_worker.engine.native.opening import open_native
from parakeet_worker.engine.native.precision import Precision
from parakeet_worker.engine.native.prepacked import Prepacked, open_prepacked
from parakeet_worker.engine.native.search import GraphSearch, SearchKernels

DEMO = ROOT / "src" / "parakeet_worker" / "checkpoints" / "demo.nemo"
CHUNK_SECONDS = 30.0
CPU_BUCKETS = (64, 128)
"""Buckets of the encoder's graphs on a CPU, where all of them would take minutes."""


@dataclass(frozen=True, slots=True, eq=False)
class Loaded:
    """A model with its tensors on the device, and its kernels."""

    model: Prepacked
    device: torch.device
    kernels: Kernels
    search_kernels: SearchKernels
    tiles: Tiles

    @property
    def search_dtype(self) -> torch.dtype:
        """Dtype of the search's weights."""
        # float16 products take seconds on a CPU.
        exact = self.model.precision is Precision.FP32 or self.device.type == "cpu"
        return torch.float32 if exact else torch.float16

    def search(self, *, kernels: SearchKernels | None = None) -> GraphSearch:
        """A new search; `kernels` default to those of the engine."""
        return GraphSearch(
            search_model(self.model),
            self.device,
            dtype=self.search_dtype,
            kernels=kernels or self.search_kernels,
            tiles=self.tiles,
        )

    def engine(self) -> GpuEngine:
        """An engine on a CPU with the stages of a GPU."""
        return GpuEngine(
            self.model,
            NativeEngine(self.model, self.device),
            self.kernels,
            self.search(),
            chunk_seconds=CHUNK_SECONDS,
            bucket_tokens=CPU_BUCKETS,
        )

    def with_references(self) -> "Loaded":
        """The same model with plain PyTorch for all kernels."""
        return replace(self, kernels=Kernels.reference(), search_kernels=SearchKernels.reference())


def random_nemo(setup: Setup) -> Path:
    """Path of the random model, which the part `model` writes."""
    return Files(setup.work / setup.size).nemo


def loaded(setup: Setup, path: Path, precision: str, *, reproducible: bool = False) -> Loaded:
    """Load the checkpoint at `path` for the device of the setup."""
    device = torch.device(setup.device)
    if setup.cuda:
        cache.activate((setup.work / "kernels",))
    model = open_prepacked(path, Precision(precision), setup.work / "converted")
    tensors = {name: tensor.to(device) for name, tensor in model.tensors.items()}
    tiles = tiles_for(torch.cuda.get_device_capability(device)) if setup.cuda else Tiles()
    return Loaded(
        model=replace(model, tensors=tensors),
        device=device,
        kernels=Kernels.triton(tiles, reproducible=reproducible)
        if setup.cuda
        else Kernels.reference(),
        search_kernels=SearchKernels.triton(tiles, reproducible=reproducible)
        if setup.cuda
        else SearchKernels.reference(),
        tiles=tiles,
    )


class NotPacked(Exception):
    """The engine computes in plain PyTorch."""


def opened(
    setup: Setup,
    path: Path,
    precision: str,
    *,
    reproducible: bool = False,
    kernels: Path | None = None,
) -> GpuEngine:
    """Open an engine without warm-up, on a GPU in the same way as a worker.

    Compiled kernels are cached in the folder `kernels`, by default one that all parts share.
    """
    if not setup.cuda:
        return loaded(setup, path, precision, reproducible=reproducible).engine()
    engine = open_native(
        path,
        setup.device,
        precision,
        setup.work / "converted",
        kernel_folders=(kernels or setup.work / "kernels",),
        reproducible=reproducible,
        chunk_seconds=CHUNK_SECONDS,
    )
    if not isinstance(engine, GpuEngine):
        raise NotPacked(str(engine))
    return engine


@contextmanager
def served(
    setup: Setup, path: Path, precision: str, *, reproducible: bool = False
) -> Iterator[GpuEngine]:
    """Open an engine, and warm it up."""
    engine = opened(setup, path, precision, reproducible=reproducible)
    try:
        warm(setup, engine)
        yield engine
    finally:
        engine.close()


def check_in_use(report: Report, engine: GpuEngine) -> None:
    """Check that the measured engine uses its kernels, none replaced at start."""
    replaced = sum(each.replaced for each in engine.reports)
    report.check("replaced by plain PyTorch", replaced, "kernels", at_most=0)


@contextmanager
def plain(path: Path, precision: str, device: str) -> Iterator[NativeEngine]:
    """Open the reference engine: padded batches, plain PyTorch, `GreedyDecoder`."""
    engine = NativeEngine.open(path, device, precision)
    try:
        yield engine
    finally:
        engine.close()


def warm(setup: Setup, engine: GpuEngine) -> None:
    """Compile, capture, and run once, as a worker does before its first job."""
    engine.warm_up(CHUNK_SECONDS if setup.cuda else 1.0)


def settle(setup: Setup) -> None:
    """Synchronise with the device."""
    if setup.cuda:
        torch.cuda.synchronize()
