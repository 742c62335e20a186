"""The device that is chosen, and the precision of float32 on it."""

import subprocess
import sys

import pytest
import torch

from parakeet_worker.engine import device
from parakeet_worker.errors import DeviceMissing

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")


def test_auto_selects_the_gpu_if_available():
    expected = "cuda" if torch.cuda.is_available() else "cpu"
    assert device.select("auto") == torch.device(expected)
    assert device.select("cpu") == torch.device("cpu")
    assert device.select("cuda:1") == torch.device("cuda", 1)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize(("built_for", "message"), [(None, "no CUDA support"), ("12.8", "12.8")])
def test_a_missing_gpu_is_an_error_with_a_code(monkeypatch, built_for, message):
    monkeypatch.setattr(torch.version, "cuda", built_for)
    with pytest.raises(DeviceMissing, match=message) as caught:
        device.select("cuda")
    assert caught.value.code == "device_missing"


@pytest.mark.parametrize(
    ("capability", "supported"),
    [((7, 5), False), ((8, 0), True), ((8, 9), True), ((9, 0), True), ((12, 0), True)],
)
def test_kernels_require_compute_capability_8(monkeypatch, capability, supported):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    assert device.supports_kernels(torch.device("cuda")) is supported
    assert not device.supports_kernels(torch.device("cpu"))


def test_disable_tf32_disables_it_in_matmuls_and_cudnn():
    # In a process of its own: the flags are of the whole process.
    code = (
        "import torch\n"
        "from parakeet_worker.engine.device import disable_tf32\n"
        "torch.backends.cuda.matmul.allow_tf32 = True\n"
        "assert torch.backends.cudnn.allow_tf32\n"
        "disable_tf32()\n"
        "assert not torch.backends.cuda.matmul.allow_tf32\n"
        "assert not torch.backends.cudnn.allow_tf32\n"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, timeout=120)


@needs_gpu
def test_products_and_convolutions_of_a_gpu_keep_float32():
    device.disable_tf32()
    chance = torch.Generator().manual_seed(0)
    left, right = torch.randn(2, 512, 512, generator=chance)
    exact = left.double() @ right.double()
    product = (left.cuda() @ right.cuda()).cpu().double()
    assert (product - exact).norm() / exact.norm() < 1e-6
    frames, weight = torch.randn(4, 128, 256, generator=chance), torch.randn(64, 128, 3)
    exact = torch.nn.functional.conv1d(frames.double(), weight.double())
    product = torch.nn.functional.conv1d(frames.cuda(), weight.cuda()).cpu().double()
    assert (product - exact).norm() / exact.norm() < 1e-6


def test_empty_cache_is_a_no_op_after_a_device_failure(monkeypatch):
    calls = []

    def empty_cache():
        calls.append("empty_cache")
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(torch.cuda, "empty_cache", empty_cache)
    device.empty_cache(torch.device("cuda"))
    device.empty_cache(torch.device("cpu"))
    assert calls == ["empty_cache"]


def test_peak_memory_is_in_bytes():
    before = device.peak_memory_bytes(torch.device("cpu"))
    kept = torch.ones(64 << 18)  # 64 MiB
    assert before > 50 << 20
    assert device.peak_memory_bytes(torch.device("cpu")) >= before
    assert kept.sum() > 0
