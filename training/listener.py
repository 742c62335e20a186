"""The project's engine as a plain listener: samples in, text or timed words out."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from parakeet_worker.engine.base import Hypothesis
from parakeet_worker.engine.native.engine import NativeEngine
from training.clips import SAMPLE_RATE

WORD_START = "\u2581"


@dataclass(frozen=True, slots=True)
class HeardWord:
    """A word with its punctuation, and where it was heard."""

    word: str
    start: float
    """Seconds."""
    end: float


class Listener:
    """One checkpoint on the CPU, in float32."""

    sample_rate = SAMPLE_RATE

    def __init__(self, checkpoint: Path) -> None:
        self._engine = NativeEngine.open(checkpoint, "cpu", "fp32")

    def text(self, samples: NDArray[np.float32]) -> str:
        """What is heard in 16 kHz samples."""
        return self.texts([samples])[0]

    def texts(self, batch: Sequence[NDArray[np.float32]]) -> list[str]:
        """What is heard in each."""
        return [written(hypothesis) for hypothesis in self._engine.transcribe(batch)]

    def words(self, samples: NDArray[np.float32]) -> list[HeardWord]:
        """The words with their times."""
        return list(timed_words(self._engine.transcribe([samples])[0]))


def written(hypothesis: Hypothesis) -> str:
    """The text of a hypothesis."""
    pieces = "".join(token.piece for token in hypothesis.tokens)
    return pieces.replace(WORD_START, " ").strip()


def timed_words(hypothesis: Hypothesis) -> Iterator[HeardWord]:
    """Words split at piece starts; a full stop adds no time."""
    word, start, end = "", 0, 0
    for token in hypothesis.tokens:
        if token.piece.startswith(WORD_START):
            if word:
                yield heard_word(word, start, end, hypothesis.frame_seconds)
            word, start = "", token.frame
        word += token.piece.replace(WORD_START, "")
        if token.piece != ".":
            end = token.frame + token.duration
    if word:
        yield heard_word(word, start, end, hypothesis.frame_seconds)


def heard_word(word: str, start: int, end: int, frame_seconds: float) -> HeardWord:
    """Frames to seconds."""
    return HeardWord(word, start * frame_seconds, max(end, start + 1) * frame_seconds)
