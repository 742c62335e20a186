"""A GPU with kernels is served by `GpuEngine`, every other device by `NativeEngine`."""

from pathlib import Path

import numpy as np
import pytest
import torch

from parakeet_worker.engine.native import NativeEngine
from parakeet_worker.engine.native.gpu_engine import GpuEngine
from parakeet_worker.engine.native.opening import open_native
from parakeet_worker.errors import InvalidSetting
from tiny_model import write_nemo

on_gpu = pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_capability() < (8, 0),
    reason="needs a GPU of compute capability 8.0 or later",
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write_nemo(tmp_path / "tiny.nemo")


@pytest.mark.parametrize("kernels", [True, False])
@pytest.mark.parametrize("reproducible", [True, False])
def test_a_cpu_serves_in_plain_pytorch(
    path: Path, caplog: pytest.LogCaptureFixture, *, kernels: bool, reproducible: bool
) -> None:
    """With any option for a GPU, and without a warning."""
    batch = [np.random.default_rng(0).normal(0, 0.1, 30_000).astype(np.float32)]
    expected = NativeEngine.open(path, "cpu", "fp32").transcribe(batch)
    engine = open_native(path, "cpu", "fp32", kernels=kernels, reproducible=reproducible)
    assert isinstance(engine, NativeEngine)
    assert engine.transcribe(batch) == expected
    assert not caplog.records


def test_a_precision_other_than_that_of_a_prepacked_file_is_refused(
    path: Path, tmp_path: Path
) -> None:
    """A file of converted weights has one precision."""
    open_native(path, "cpu", "fp32", tmp_path / "converted")
    (converted,) = (tmp_path / "converted").iterdir()
    with pytest.raises(InvalidSetting, match="was converted to fp32"):
        open_native(converted, "cpu", "bf16")


@on_gpu
def test_a_gpu_serves_packed_batches(path: Path) -> None:
    """Unless the kernels are switched off."""
    assert isinstance(open_native(path, "cuda", "bf16"), GpuEngine)
    assert isinstance(open_native(path, "cuda", "bf16", kernels=False), NativeEngine)
