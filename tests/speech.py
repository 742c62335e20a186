"""The sample recordings with their transcripts."""

import json
from base64 import b64encode
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from parakeet_worker.engine.base import Samples
from recordings import decode

SAMPLES = Path(__file__).resolve().parent.parent / "samples"


@dataclass(frozen=True, slots=True)
class Sample:
    """One recording of the project."""

    file: str
    language: str | None
    text: str
    seconds: float
    words: tuple[dict[str, Any], ...]

    @property
    def path(self) -> Path:
        return SAMPLES / self.file

    @property
    def base64(self) -> str:
        return b64encode(self.path.read_bytes()).decode()


@cache
def all_samples() -> tuple[Sample, ...]:
    entries = json.loads((SAMPLES / "manifest.json").read_text())
    return tuple(Sample(**{**entry, "words": tuple(entry["words"])}) for entry in entries)


def sample(language: str) -> Sample:
    """The short sample of a language."""
    return next(
        entry
        for entry in all_samples()
        if entry.language == language and entry.file.startswith(f"{language}.")
    )


def named(stem: str) -> Sample:
    """The sample in the file of that name, whatever its ending."""
    return next(entry for entry in all_samples() if Path(entry.file).stem == stem)


def crowd(voices: int, count: int) -> Samples:
    """Several readers at a time, at equal levels; together with an RMS of one."""
    chance = np.random.default_rng(1)
    chosen = chance.permutation([entry for entry in all_samples() if entry.seconds < 20])[:voices]
    total = np.zeros(count)
    for entry in chosen:
        read = decode(entry.path)
        level = float(np.sqrt(np.mean(np.square(read))))
        total += np.roll(np.resize(read / level, count), int(chance.integers(count)))
    mixed: Samples = (total / total.std()).astype(np.float32)
    return mixed
