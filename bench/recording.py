"""The audio of all measurements: the project's own minute of speech, cut to any length."""

import asyncio
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from bench.harness import ROOT
from parakeet_worker.engine.base import SAMPLE_RATE, Samples

Sounds = TypeVar("Sounds", bound="np.ndarray[Any, Any]")

_RECORDING = ROOT / "samples" / "minute.mp3"
# Spans start at different offsets, so that all chunks of a batch differ.
_STEP_SECONDS = 7.3


def pieces(seconds: float, count: int) -> list[Samples]:
    """`count` spans of `seconds` at different offsets of the repeated recording."""
    return spans_of(decoded(_RECORDING), seconds, count)


def spans_of(samples: Sounds, seconds: float, count: int) -> list[Sounds]:
    """`count` spans of any samples."""
    length = round(seconds * SAMPLE_RATE)
    starts = (round(index * _STEP_SECONDS * SAMPLE_RATE) for index in range(count))
    taken: Any = (samples.take(range(start, start + length), mode="wrap") for start in starts)
    return list(taken)


def decoded(path: Path) -> Samples:
    """Decode a whole file as the worker does."""
    # Imported here: the GPU benchmark runs without ffmpeg and some dependencies of the worker.
    from parakeet_worker.audio.decoding import Decoding, find_ffmpeg

    async def whole() -> list[Samples]:
        decoding = Decoding(path, ffmpeg=find_ffmpeg(), max_seconds=3600, timeout_seconds=600)
        return [part async for part in decoding.samples()]

    return np.concatenate(asyncio.run(whole()))


def stored(folder: Path, seconds: float, count: int) -> Path:
    """The same pieces as rows of a `.npy` file, made once."""
    path = folder / f"{count}x{seconds:g}s.npy"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        np.save(path, np.stack(pieces(seconds, count)))
    return path
