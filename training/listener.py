"""The project's engine as a function: samples to text or timed words."""

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
class TimedWord:
    """A word with its punctuation and times."""

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
        """Transcribe 16 kHz samples."""
        return self.texts([samples])[0]

    def texts(self, batch: Sequence[NDArray[np.float32]]) -> list[str]:
        """Transcribe each."""
        return [written(hypothesis) for hypothesis in self._engine.transcribe(batch)]

    def words(self, samples: NDArray[np.float32]) -> list[TimedWord]:
        """Transcribe to words with times."""
        return list(timed_words(self._engine.transcribe([samples])[0]))


def written(hypothesis: Hypothesis) -> str:
    """Return the text of a hypothesis."""
    pieces = "".join(token.piece for token in hypothesis.tokens)
    return pieces.replace(WORD_START, " ").strip()


def timed_words(hypothesis: Hypothesis) -> Iterator[TimedWord]:
    """Split into words at piece starts; a full stop has no duration."""
    word, start, end = "", 0, 0
    for token in hypothesis.tokens:
        if token.piece.startswith(WORD_START):
            if word:
                yield timed_word(word, start, end, hypothesis.frame_seconds)
            word, start = "", token.frame
        word += token.piece.replace(WORD_START, "")
        if token.piece != ".":
            end = token.frame + token.duration
    if word:
        yield timed_word(word, start, end, hypothesis.frame_seconds)


def timed_word(word: str, start: int, end: int, frame_seconds: float) -> TimedWord:
    """Convert frames to seconds."""
    return TimedWord(word, start * frame_seconds, max(end, start + 1) * frame_seconds)
