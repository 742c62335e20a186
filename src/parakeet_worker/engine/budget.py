"""How much audio a device has room for at once, measured and not guessed."""

from collections.abc import Callable

import numpy as np
import torch

from parakeet_worker.engine.base import Capacity, Samples

# Of what is free: the rest is for fragments, and for what else lives on the card.
_SHARE = 0.8
# More full chunks at once gain nothing (RTFx is flat from about 64 on) and delay the next callers.
_MOST_FULL_CHUNKS = 128
_MOST_CHUNKS = 512
# A CPU encodes chunk by chunk: a batch only shares the decoder's steps.
_FULL_CHUNKS_ON_CPU = 4


def capacity(device: torch.device, run: Callable[[], object], chunk_seconds: float) -> Capacity:
    """What one batch may hold on `device`, where `run` computes two full chunks.

    A GPU pads, a CPU computes chunk by chunk. `run` is called only where its memory can be
    measured.
    """
    if device.type != "cuda":
        return Capacity(_FULL_CHUNKS_ON_CPU * chunk_seconds, _MOST_CHUNKS, packed=True)
    fitting = 2 * batches_that_fit(device, run)
    seconds = chunk_seconds * min(max(fitting, 1.0), _MOST_FULL_CHUNKS)
    return Capacity(seconds, _MOST_CHUNKS, packed=False)


def batches_that_fit(device: torch.device, run: Callable[[], object]) -> float:
    """How often what `run` allocates on a GPU fits into the memory that is free."""
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
    """Something to run on."""
    chance = np.random.default_rng(0)
    return chance.normal(0, 0.1, round(seconds * sample_rate)).astype(np.float32)
