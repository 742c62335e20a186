"""The project's recordings as utterances: cut at pauses, and some of them disguised."""

from dataclasses import dataclass
from functools import cache
from itertools import pairwise

import numpy as np

from parakeet_worker.audio.decoding import SAMPLE_RATE
from parakeet_worker.engine.base import Samples
from recordings import decode
from speech import Sample, all_samples

_PAUSE_SECONDS = 0.4
_FEWEST = 800


@dataclass(frozen=True, slots=True, eq=False)
class Utterance:
    """One stretch of speech; its name says where it is from."""

    name: str
    samples: Samples


@cache
def utterances() -> tuple[Utterance, ...]:
    """Every recording whole up to 30 s, every sentence of it, and disguises up to 800."""
    plain = [utterance for sample in all_samples() for utterance in _stretches(sample)]
    disguised = []
    while len(plain) + len(disguised) < _FEWEST:
        number = len(disguised)
        disguised.append(_disguised(plain[number * 7 % len(plain)], number))
    return (*plain, *disguised)


def _stretches(sample: Sample) -> list[Utterance]:
    samples = decode(sample.path)
    cuts = [0]
    for before, after in pairwise(sample.words):
        if after["start"] - before["end"] >= _PAUSE_SECONDS:
            cuts.append(round((before["end"] + after["start"]) / 2 * SAMPLE_RATE))
    cuts.append(len(samples))
    whole = [Utterance(sample.file, samples)] if sample.seconds <= 30 and len(cuts) > 2 else []
    return whole + [
        Utterance(f"{sample.file} from {first}", samples[first:after])
        for first, after in pairwise(cuts)
    ]


def _disguised(utterance: Utterance, number: int) -> Utterance:
    """Quieter or louder, in noise, or faster or slower, by turns."""
    chance = np.random.default_rng(number)
    samples = utterance.samples
    if number % 3 == 0:
        how, changed = "gain", samples * 10 ** chance.uniform(-1.5, 0.3)
    elif number % 3 == 1:
        level = np.sqrt(np.mean(np.square(samples))) * 10 ** chance.uniform(-1.5, -0.2)
        how, changed = "noise", samples + chance.normal(scale=level, size=len(samples))
    else:
        speed = chance.uniform(0.85, 1.2)
        places = np.arange(0, len(samples) - 1, speed)
        how, changed = "speed", np.interp(places, np.arange(len(samples)), samples)
    return Utterance(f"{utterance.name}, {how} {number}", changed.astype(np.float32))
