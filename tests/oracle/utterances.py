"""The project's recordings as utterances: cut at pauses, and some of them modified."""

from dataclasses import dataclass
from functools import cache
from itertools import pairwise

import numpy as np

from parakeet_worker.audio.decoding import SAMPLE_RATE
from parakeet_worker.engine.base import Samples
from recordings import decode
from speech import Sample, all_samples

_PAUSE_SECONDS = 0.4
_COUNT = 800


@dataclass(frozen=True, slots=True, eq=False)
class Utterance:
    """A span of speech, named after its source."""

    name: str
    samples: Samples


@cache
def utterances() -> tuple[Utterance, ...]:
    """Recordings of up to 30 s, every sentence, and modified copies, 800 in all."""
    plain = [utterance for sample in all_samples() for utterance in _spans(sample)]
    modified = []
    while len(plain) + len(modified) < _COUNT:
        number = len(modified)
        modified.append(_modified(plain[number * 7 % len(plain)], number))
    return (*plain, *modified)


def _spans(sample: Sample) -> list[Utterance]:
    samples = decode(sample.path)
    cuts = [0]
    for before, after in pairwise(sample.words):
        if after["start"] - before["end"] >= _PAUSE_SECONDS:
            cuts.append(round((before["end"] + after["start"]) / 2 * SAMPLE_RATE))
    cuts.append(len(samples))
    whole = [Utterance(sample.file, samples)] if sample.seconds <= 30 and len(cuts) > 2 else []
    return whole + [
        Utterance(f"{sample.file} from {first}", samples[first:end])
        for first, end in pairwise(cuts)
    ]


def _modified(utterance: Utterance, number: int) -> Utterance:
    """Change the gain, add noise, or change the speed."""
    chance = np.random.default_rng(number)
    samples = utterance.samples
    if number % 3 == 0:
        how, changed = "gain", samples * 10 ** chance.uniform(-1.5, 0.3)
    elif number % 3 == 1:
        level = np.sqrt(np.mean(np.square(samples))) * 10 ** chance.uniform(-1.5, -0.2)
        how, changed = "noise", samples + chance.normal(scale=level, size=len(samples))
    else:
        speed = chance.uniform(0.85, 1.2)
        positions = np.arange(0, len(samples) - 1, speed)
        how, changed = "speed", np.interp(positions, np.arange(len(samples)), samples)
    return Utterance(f"{utterance.name}, {how} {number}", changed.astype(np.float32))
