"""Recordings of any length for callers to send: the samples in a row, in many formats.

All clips differ, so that a mixed-up response is a wrong one.
"""

import math
import random
from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import recordings
from bench import recording
from bench.harness import ROOT
from parakeet_worker.audio.decoding import SAMPLE_RATE
from parakeet_worker.engine.base import Samples

_FORMATS = {
    "wav": (),
    "mp3": ("-b:a", "64k"),
    "opus": ("-c:a", "libopus", "-b:a", "32k"),
    "m4a": ("-c:a", "aac", "-b:a", "64k"),
    "flac": (),
    "ogg": (
        "-c:a",
        "libvorbis",
    ),
    "webm": (
        "-c:a",
        "libopus",
    ),
}
_OPTIONS: tuple[dict[str, Any], ...] = (
    {},
    {"timestamp": True},
    {"format": "verbose_json"},
    {"format": "srt"},
    {"format": "text"},
    {"vad": "off"},
    {"channels": "separate"},
    {"clip": {"start": 0.5}},
)
# What fits into a job of `/run` once it is base64.
_MOST_INLINE_BYTES = 7_000_000
_PAUSES_SECONDS = (0.2, 0.5, 1.0, 2.5)


@dataclass(frozen=True, slots=True)
class Clip:
    """A recording in a file, and its request."""

    path: Path
    seconds: float
    options: Mapping[str, Any]
    inline: bool

    def payload(self, address: str) -> dict[str, Any]:
        """A job's input; files are served at `address`."""
        if self.inline:
            return self.whole()
        return {"audio_url": f"{address}/{self.path.name}", **self.options}

    def whole(self) -> dict[str, Any]:
        """The same, with the recording inside."""
        return {"audio_base64": b64encode(self.path.read_bytes()).decode(), **self.options}


def made(folder: Path, lengths: Sequence[float], seed: int) -> list[Clip]:
    """A clip of each length in seconds, written into `folder`."""
    chance = random.Random(seed)  # noqa: S311
    spoken = _spoken()
    clips = []
    for number, seconds in enumerate(lengths):
        ending = list(_FORMATS)[number % len(_FORMATS)]
        samples = _row(spoken, seconds, chance)
        path = folder / f"{number}.{ending}"
        recordings.encode(path, *_FORMATS[ending], samples=samples)
        inline = path.stat().st_size < _MOST_INLINE_BYTES and chance.random() < 0.5
        options = _OPTIONS[number % len(_OPTIONS)]
        clips.append(Clip(path, len(samples) / SAMPLE_RATE, options, inline))
    return clips


def row(seconds: float, seed: int) -> Samples:
    """Samples by chance with pauses between them."""
    return _row(_spoken(), seconds, random.Random(seed))  # noqa: S311


def _spoken() -> list[Samples]:
    return [
        recording.decoded(path) for path in sorted((ROOT / "samples").iterdir()) if _short(path)
    ]


def lengths(count: int, shortest: float, longest: float) -> list[float]:
    """As many of 2 to 4 s as of 200 to 400 s: evenly spread by their logarithm."""
    steps = max(1, count - 1)
    ratio = math.log(longest / shortest)
    return [shortest * math.exp(ratio * number / steps) for number in range(count)]


def _short(path: Path) -> bool:
    """Whether it is the sample of one language: those are named by it."""
    return path.suffix != ".json" and len(path.stem) == 2


def _row(spoken: Sequence[Samples], seconds: float, chance: random.Random) -> Samples:
    """Samples by chance with pauses between them, cut at `seconds`."""
    expected, parts, held = round(seconds * SAMPLE_RATE), [], 0
    while held < expected:
        pause = recordings.silence(chance.choice(_PAUSES_SECONDS))
        parts += [chance.choice(spoken), pause]
        held += len(parts[-2]) + len(pause)
    return np.concatenate(parts)[:expected]
