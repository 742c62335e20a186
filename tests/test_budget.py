import numpy as np
import pytest
import torch

from parakeet_worker.engine.base import Capacity
from parakeet_worker.engine.budget import capacity, noise


def test_a_cpu_batches_four_full_chunks_without_a_measurement() -> None:
    runs = []
    limits = capacity(torch.device("cpu"), lambda: runs.append(1), 30.0)
    assert limits == Capacity(120.0, 512, packed=True)
    assert runs == []


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_the_capacity_of_a_gpu_follows_from_its_free_memory() -> None:
    device = torch.device("cuda")
    free, _ = torch.cuda.mem_get_info(device)
    megabytes = 1 << 20

    def holding(bytes_: int) -> float:
        return capacity(
            device, lambda: torch.empty(bytes_, dtype=torch.uint8, device=device), 30.0
        ).seconds

    assert holding(64 * megabytes) > holding(2 * free // 8) >= 30.0


def test_noise_has_the_requested_length_and_is_deterministic() -> None:
    made = noise(1.5, 16_000)
    assert made.dtype == np.float32
    assert len(made) == 24_000
    assert np.array_equal(made, noise(1.5, 16_000))
    assert 0.05 < made.std() < 0.2
