"""Batch capacity of a device, measured by running a batch."""

from collections.abc import Callable

import numpy as np
import torch

from parakeet_worker.engine.base import Capacity, Samples

# Share of the free memory; the rest covers fragmentation and other processes on the GPU.
_SHARE = 0.8
# RTFx is flat from about 64 full chunks on; larger batches only add latency.
_MAX_FULL_CHUNKS = 128
_MAX_CHUNKS = 512
# A CPU encodes chunk by chunk: a batch shares only the decoder steps.
_FULL_CHUNKS_ON_CPU = 4


def capacity(device: torch.device, run: Callable[[], object], chunk_seconds: float) -> Capacity:
    """Limits of one batch on `device`; `run` computes a batch of two full chunks.

    A GPU pads, a CPU computes chunk by chunk. `run` is called only on a GPU, to measure its memory.
    """
    if device.type != "cuda":
        return Capacity(_FULL_CHUNKS_ON_CPU * chunk_seconds, _MAX_CHUNKS, packed=True)
    fitting = 2 * batches_that_fit(device, run)
    seconds = chunk_seconds * min(max(fitting, 1.0), _MAX_FULL_CHUNKS)
    return Capacity(seconds, _MAX_CHUNKS, packed=False)


def batches_that_fit(device: torch.device, run: Callable[[], object]) -> float:
    """Free GPU memory as a multiple of the peak memory that `run` allocates."""
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    run()
    torch.cuda.synchronize(device)
    used = max(1, torch.cuda.max_memory_allocated(device) - before)
    free, _ = torch.cuda.mem_get_info(device)
    free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return _SHARE * free / used


def noise(seconds: float, sample_rate: int) -> Samples:
    """Gaussian noise, RMS 0.1, from a fixed seed: input for warm-up and measurements."""
    generator = np.random.default_rng(0)
    return generator.normal(0, 0.1, round(seconds * sample_rate)).astype(np.float32)
