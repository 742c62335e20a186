"""The engine on the device: its tests need torch, Triton and numpy, and skip without a GPU.

None of this has run on a GPU. `GPU_TESTS_DEVICE=cpu` runs what does not need one on a CPU, with
plain PyTorch in the place of the kernels, so that the tests themselves are tried.
"""

import os
from pathlib import Path

import pytest
import torch

from bench.gpu import stand_ins
from bench.gpu.parts import Setup

# Before anything of the engine is imported, as it imports what may be missing.
stand_ins.install()

CPU = os.environ.get("GPU_TESTS_DEVICE") == "cpu"


@pytest.fixture(scope="session", autouse=True)
def _gpu() -> None:
    if not (CPU or torch.cuda.is_available()):
        pytest.skip("no GPU with CUDA")


@pytest.fixture
def cuda() -> None:
    """For what means nothing on a CPU."""
    if CPU:
        pytest.skip("means nothing on a CPU")


@pytest.fixture(scope="session")
def setup(tmp_path_factory: pytest.TempPathFactory) -> Setup:
    """The device, and a folder for what is converted."""
    work: Path = tmp_path_factory.mktemp("gpu")
    return Setup("cpu" if CPU else "cuda", "small" if CPU else "full", quick=True, work=work)


@pytest.fixture(autouse=True)
def _exactly() -> None:
    """As a worker does at its start."""
    from parakeet_worker.engine import device

    device.disable_tf32()
