"""How much audio a device has room for at once, measured and not guessed."""

from collections.abc import Callable

import numpy as np
import torch

from parakeet_worker.engine.base import Samples

# Of what is free: the rest is for fragments, and for what else lives on the card.
_SHARE = 0.8
# More pieces at once gain nothing (RTFx is flat from about 64 on) and keep the next callers
# waiting.
_MOST_PIECES = 128
# A processor encodes piece by piece: a batch only shares the decoder's steps.
_PIECES_ON_PROCESSOR = 4


def batch_seconds(device: torch.device, run: Callable[[], object], piece_seconds: float) -> float:
    """Run two pieces of `piece_seconds` on the device; how many seconds one batch may hold."""
    run()
    if device.type != "cuda":
        return _PIECES_ON_PROCESSOR * piece_seconds
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    run()
    torch.cuda.synchronize(device)
    used = max(1, torch.cuda.max_memory_allocated(device) - before)
    free, _ = torch.cuda.mem_get_info(device)
    free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    fitting = _SHARE * free / (used / 2)
    return piece_seconds * min(max(fitting, 1.0), _MOST_PIECES)


def noise(seconds: float, sample_rate: int) -> Samples:
    """Something to run on."""
    chance = np.random.default_rng(0)
    return chance.normal(0, 0.1, round(seconds * sample_rate)).astype(np.float32)
