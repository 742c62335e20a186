"""The audio of all measurements: the project's own minute of speech, cut to any length."""

import asyncio
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from bench.harness import ROOT
from parakeet_worker.engine.base import SAMPLE_RATE, Samples

Sounds = TypeVar("Sounds", bound="np.ndarray[Any, Any]")

_RECORDING = ROOT / "samples" / "minute.mp3"
# Pieces begin in different places, so that no two of a batch are alike.
_STEP_SECONDS = 7.3


def pieces(seconds: float, count: int) -> list[Samples]:
    """`count` stretches of `seconds`, each from its own place in the recording, which repeats."""
    return stretches(decoded(_RECORDING), seconds, count)


def stretches(samples: Sounds, seconds: float, count: int) -> list[Sounds]:
    """The same of any samples."""
    length = round(seconds * SAMPLE_RATE)
    starts = (round(index * _STEP_SECONDS * SAMPLE_RATE) for index in range(count))
    taken: Any = (samples.take(range(start, start + length), mode="wrap") for start in starts)
    return list(taken)


def decoded(path: Path) -> Samples:
    """A whole file as the worker hears it."""
    # Here, as the GPU's bench has no ffmpeg and not all that the worker is made of.
    from parakeet_worker.audio.decoding import Decoding, find_ffmpeg

    async def whole() -> list[Samples]:
        decoding = Decoding(path, ffmpeg=find_ffmpeg(), max_seconds=3600, timeout_seconds=600)
        return [stretch async for stretch in decoding.samples()]

    return np.concatenate(asyncio.run(whole()))


def stored(folder: Path, seconds: float, count: int) -> Path:
    """The same pieces as rows of a `.npy` file, made once."""
    path = folder / f"{count}x{seconds:g}s.npy"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        np.save(path, np.stack(pieces(seconds, count)))
    return path
