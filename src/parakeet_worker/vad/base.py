"""Interface of voice activity detectors: samples in, speech probability per 32 ms frame out."""

from abc import ABC, abstractmethod
from typing import ClassVar, Protocol

import numpy as np
import numpy.typing as npt

from parakeet_worker.audio.decoding import SAMPLE_RATE
from parakeet_worker.engine.base import Samples

FRAME_SAMPLES = 512
FRAME_SECONDS = FRAME_SAMPLES / SAMPLE_RATE

BLOCK_SAMPLES = 128 * FRAME_SAMPLES
"""Minimum input of one inference, except at the end: 4.1 s."""

CONTEXT_SAMPLES = 64
"""Samples before each frame that are part of the input of Silero's network."""

SPEECH_BEGINS = 0.5
"""A frame with at least this probability starts speech."""

SPEECH_ENDS = 0.35
"""A frame below this probability ends speech."""

MIN_SILENCE_FRAMES = 6
"""Shorter pauses (below 0.19 s) belong to the speech around them."""

MIN_SPEECH_FRAMES = 4
"""Shorter speech (below 0.13 s) contains no word."""

Probabilities = npt.NDArray[np.float32]
"""One value in [0, 1] per frame."""

NetworkState = tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]
"""State of Silero's network between frames, (1, 1, 128) each."""

Inference = tuple[Probabilities, NetworkState]
"""Probabilities of a block, and the state after it."""


class VadBackend(Protocol):
    """Computes speech probabilities for many recordings; callable from any thread."""

    def probabilities(self, block: Samples, state: NetworkState | None) -> Inference:
        """(64 + 512 T) samples to (T,) probabilities and the next state.

        `state` is None at the start of a recording.
        """
        ...


class Detector(ABC):
    """Detects speech in one recording while its samples arrive.

    Frames are evaluated in whole blocks of 4.1 s, so the division of the input does not change the
    result, and many short inputs cost no more than one long one. Non-finite samples count as
    silence: a single one would corrupt the state for the rest of the recording.
    """

    max_blocks: ClassVar[int] = 1
    """Maximum number of blocks per inference."""

    trusts_silence: ClassVar[bool]
    """Whether a low probability is reliable enough to drop audio."""

    def __init__(self, context_samples: int = 0) -> None:
        """Each inference also receives the `context_samples` before its first block."""
        self._context_samples = context_samples
        self._held: Samples = np.zeros(context_samples, dtype=np.float32)

    def feed(self, samples: Samples) -> Probabilities:
        """Probabilities of the frames completed by these samples; up to 4.1 s stay buffered."""
        samples = _finite(samples)
        held = np.concatenate((self._held, samples)) if len(self._held) else samples
        results = [np.zeros(0, dtype=np.float32)]
        while blocks := (len(held) - self._context_samples) // BLOCK_SAMPLES:
            count = min(blocks, self.max_blocks) * BLOCK_SAMPLES
            results.append(self._detect(held[: self._context_samples + count]))
            held = held[count:]
        self._held = held.copy()
        return np.concatenate(results)

    def finish(self) -> Probabilities:
        """Probabilities of the remaining frames; the last one is padded with silence."""
        waiting = len(self._held) - self._context_samples
        if not waiting:
            return np.zeros(0, dtype=np.float32)
        block = np.pad(self._held, (0, -waiting % FRAME_SAMPLES))
        self._held = self._held[waiting:]
        return self._detect(block)

    @abstractmethod
    def _detect(self, blocks: Samples) -> Probabilities:
        """Probabilities of whole blocks, or of the end, that follow the previous ones."""


def _finite(samples: Samples) -> Samples:
    """The samples with non-finite values replaced by silence; a copy only if there are any."""
    # One pass over the samples; a power that overflows costs a second pass and nothing else.
    if np.isfinite(samples @ samples):
        return samples
    return np.nan_to_num(samples, posinf=0.0, neginf=0.0)


def runs(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.intp]:
    """Runs of true values as (N, 2): index of the first, index after the last."""
    edges = np.zeros(len(mask) + 2, dtype=np.bool_)
    edges[1:-1] = mask
    return np.flatnonzero(edges[1:] != edges[:-1]).reshape(-1, 2)


def speech_spans(probabilities: Probabilities) -> list[tuple[int, int]]:
    """Speech as (first frame, frame after the last), in order.

    A frame between the two thresholds keeps the state of the frame before it. Short pauses are
    closed first, then short speech is dropped.
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
