"""Real audio, in windows of 10 s."""

import warnings

import pytest
import torch

# They warn of deprecations in what they import.
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import pyannote.audio  # noqa: F401
    import torchaudio  # noqa: F401

from parakeet_worker.speakers.windows import WINDOW_SAMPLES
from recordings import decode
from speech import named


@pytest.fixture(scope="session")
def windows() -> torch.Tensor:
    """(W, 160000): several readers, a reader with long pauses, and noise."""
    result = []
    for name in ("minute", "pause", "noise"):
        samples = torch.from_numpy(decode(named(name).path))
        count = min(len(samples) // WINDOW_SAMPLES, 3)
        result.append(samples[: count * WINDOW_SAMPLES].view(count, WINDOW_SAMPLES))
    return torch.cat(result)
