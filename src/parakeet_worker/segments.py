"""A recording to pieces that the engine can take."""

from collections.abc import AsyncGenerator, AsyncIterable
from dataclasses import dataclass

import numpy as np

from parakeet_worker.audio import SAMPLE_RATE
from parakeet_worker.engine.base import Samples

_SEARCH_SECONDS = 8.0
_WINDOW_SECONDS = 0.1
# Cuts fall on whole encoder frames, so that frame numbers count on across pieces.
_GRID_SAMPLES = 1280


@dataclass(frozen=True, slots=True, eq=False)
class Segment:
    """A piece of the recording."""

    start_seconds: float
    samples: Samples

    @property
    def seconds(self) -> float:
        return len(self.samples) / SAMPLE_RATE

    @property
    def end_seconds(self) -> float:
        return self.start_seconds + self.seconds


async def split(
    stretches: AsyncIterable[Samples], *, max_seconds: float, start_seconds: float = 0.0
) -> AsyncGenerator[Segment, None]:
    """Cut a recording as it arrives into segments of at most `max_seconds`.

    A cut falls at the quietest moment of the last 8 s before the limit. `start_seconds` is where
    the first sample lies in the recording.
    """
    limit = round(max_seconds * SAMPLE_RATE)
    held: list[Samples] = []
    held_samples = 0
    cut_samples = 0
    async for stretch in stretches:
        held.append(stretch)
        held_samples += len(stretch)
        while held_samples > limit:
            samples = np.concatenate(held)
            cut = quietest(samples[:limit])
            yield Segment(start_seconds + cut_samples / SAMPLE_RATE, samples[:cut])
            held = [samples[cut:]]
            held_samples -= cut
            cut_samples += cut
    if held_samples:
        yield Segment(start_seconds + cut_samples / SAMPLE_RATE, np.concatenate(held))


def quietest(samples: Samples) -> int:
    """Index of the frame in the last 8 s (or half) of `samples` with the quietest 0.1 s around."""
    search = min(round(_SEARCH_SECONDS * SAMPLE_RATE), len(samples) // 2)
    around = round(_WINDOW_SECONDS * SAMPLE_RATE) // 2
    skipped = len(samples) - search
    energy = np.cumsum(np.square(samples[skipped:], dtype=np.float64))
    first = -(-(skipped + around + 1) // _GRID_SAMPLES) * _GRID_SAMPLES
    cuts = np.arange(first, len(samples) - around + 1, _GRID_SAMPLES)
    ends = cuts - skipped - 1
    return int(cuts[np.argmin(energy[ends + around] - energy[ends - around])])
