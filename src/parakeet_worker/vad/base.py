"""What every detector promises: samples in, how surely each frame of 32 ms is speech out."""

from abc import ABC, abstractmethod
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from parakeet_worker.audio.decoding import SAMPLE_RATE
from parakeet_worker.engine.base import Samples

FRAME_SAMPLES = 512
FRAME_SECONDS = FRAME_SAMPLES / SAMPLE_RATE

BLOCK_SAMPLES = 128 * FRAME_SAMPLES
"""What is heard at once at the least, but for the end: 4.1 s."""

SPEECH_BEGINS = 0.5
"""A frame at least as probable opens a stretch of speech."""

SPEECH_ENDS = 0.35
"""A frame less probable closes it."""

MIN_SILENCE_FRAMES = 6
"""A shorter pause (below 0.19 s) is part of the speech around it."""

MIN_SPEECH_FRAMES = 4
"""Shorter speech (below 0.13 s) holds no word."""

Probabilities = npt.NDArray[np.float32]
"""One number from 0 to 1 per frame."""


class Detector(ABC):
    """Listens to one recording as it arrives; how it is cut on the way changes nothing.

    Frames are heard in whole blocks of 4.1 s, so that many short stretches cost no more than a long
    one. What is no number counts as silence: one broken sample would spoil all that follows it.
    """

    most_blocks: ClassVar[int] = 1
    """Blocks that are heard at once, where there are as many."""

    is_sure: ClassVar[bool]
    """Whether a low probability is proof enough to leave audio out."""

    def __init__(self, context_samples: int = 0) -> None:
        """`context_samples` before each block are given to `_hear` with it."""
        self._context_samples = context_samples
        self._held: Samples = np.zeros(context_samples, dtype=np.float32)

    def feed(self, samples: Samples) -> Probabilities:
        """The frames that were heard now, in order; up to 4.1 s wait for what follows."""
        samples = _numbers(samples)
        held = np.concatenate((self._held, samples)) if len(self._held) else samples
        found = [np.zeros(0, dtype=np.float32)]
        while blocks := (len(held) - self._context_samples) // BLOCK_SAMPLES:
            count = min(blocks, self.most_blocks) * BLOCK_SAMPLES
            found.append(self._hear(held[: self._context_samples + count]))
            held = held[count:]
        self._held = held.copy()
        return np.concatenate(found)

    def finish(self) -> Probabilities:
        """All frames that are left, the last of them filled up with silence."""
        waiting = len(self._held) - self._context_samples
        if not waiting:
            return np.zeros(0, dtype=np.float32)
        block = np.pad(self._held, (0, -waiting % FRAME_SAMPLES))
        self._held = self._held[waiting:]
        return self._hear(block)

    @abstractmethod
    def _hear(self, blocks: Samples) -> Probabilities:
        """The frames of some whole blocks, or of the end, which follow those before them."""


def _numbers(samples: Samples) -> Samples:
    """The same samples, silence where one is no number; a copy only if there is such a one."""
    # The sum tells it in one pass; an overflow of it costs a look at each sample and no more.
    if np.isfinite(samples.sum()):
        return samples
    return np.nan_to_num(samples, posinf=0.0, neginf=0.0)


def runs(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.intp]:
    """(N, 2): the first of each run of true values, and the one after its last."""
    edges = np.zeros(len(mask) + 2, dtype=np.bool_)
    edges[1:-1] = mask
    return np.flatnonzero(edges[1:] != edges[:-1]).reshape(-1, 2)


def stretches(probabilities: Probabilities) -> list[tuple[int, int]]:
    """Where someone speaks, as (first frame, frame after the last), in order.

    A frame between the two thresholds goes on with what was before it. Short pauses are closed
    first, short speech is dropped then.
    """
    begins = probabilities >= SPEECH_BEGINS
    decided = begins | (probabilities < SPEECH_ENDS)
    frames = np.arange(len(probabilities))
    latest = np.maximum.accumulate(np.where(decided, frames, -1))
    speaks = begins[latest] & (latest >= 0)
    starts, ends = runs(speaks).T
    pauses = starts[1:] - ends[:-1] >= MIN_SILENCE_FRAMES
    starts = starts[np.concatenate(([True], pauses))[: len(starts)]]
    ends = ends[np.concatenate((pauses, [True]))[: len(ends)]]
    long = ends - starts >= MIN_SPEECH_FRAMES
    return list(zip(starts[long].tolist(), ends[long].tolist(), strict=True))
