"""Tests of the engine on the device: they need torch, Triton and numpy, and skip without a GPU.

They have not been run on a GPU. `GPU_TESTS_DEVICE=cpu` runs those that do not require one on a
CPU, with plain PyTorch instead of kernels, to test the tests themselves.
"""

import os
from pathlib import Path

import pytest
import torch

from bench.gpu import stubs
from bench.gpu.parts import Setup

# Before the engine is imported, which imports packages that may be missing.
stubs.install()

CPU = os.environ.get("GPU_TESTS_DEVICE") == "cpu"


@pytest.fixture(scope="session", autouse=True)
def _gpu() -> None:
    if not (CPU or torch.cuda.is_available()):
        pytest.skip("no GPU with CUDA")


@pytest.fixture
def cuda() -> None:
    """Skip a test that is meaningless on a CPU."""
    if CPU:
        pytest.skip("meaningless on a CPU")


@pytest.fixture(scope="session")
def setup(tmp_path_factory: pytest.TempPathFactory) -> Setup:
    """The device, and a folder for prepacked models."""
    work: Path = tmp_path_factory.mktemp("gpu")
    return Setup("cpu" if CPU else "cuda", "small" if CPU else "full", quick=True, work=work)


@pytest.fixture(autouse=True)
def _exactly() -> None:
    """As at the start of a worker."""
    from parakeet_worker.engine import device

    device.disable_tf32()
