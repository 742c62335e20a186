"""What every engine promises: samples in, one hypothesis each out."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from parakeet_worker.language import Script

Samples = npt.NDArray[np.float32]
"""Mono samples at 16 kHz, full scale at 1.0."""


@dataclass(frozen=True, slots=True)
class Token:
    """One piece of text with its place in the utterance."""

    piece: str
    """A SentencePiece piece; `▁` in front opens a word."""
    frame: int
    """Encoder frame at which the token was emitted."""
    duration: int
    """Frames until the next decision."""
    logprob: float
    """Natural logarithm of the token's probability among all tokens and the blank."""


@dataclass(frozen=True, slots=True)
class Hypothesis:
    """What was heard in one piece of audio."""

    tokens: tuple[Token, ...]
    frame_seconds: float


class Engine(Protocol):
    """Transcribes batches; called from one thread only."""

    def transcribe(
        self, batch: Sequence[Samples], scripts: Sequence[Script | None] = ()
    ) -> list[Hypothesis]:
        """One hypothesis per piece, in order; raises `OutOfMemory` or anything for "lost".

        `scripts`, if given, has for each piece what its letters have to be in, or none.
        """

    def warm_up(self, piece_seconds: float) -> float:
        """Do once what the first pieces would wait for, for pieces of up to `piece_seconds`.

        Returns how many seconds of audio, padding counted, one batch may hold.
        """

    def close(self) -> None:
        """Give back memory and devices."""
