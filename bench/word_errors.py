"""Word errors between two texts, and the difference of two measurements of a set."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import jiwer

_RESAMPLINGS = 1000


@dataclass(frozen=True, slots=True)
class Errors:
    """Edit counts against a reference."""

    words: int = 0
    substitutions: int = 0
    insertions: int = 0
    deletions: int = 0

    def __add__(self, other: "Errors") -> "Errors":
        return Errors(
            self.words + other.words,
            self.substitutions + other.substitutions,
            self.insertions + other.insertions,
            self.deletions + other.deletions,
        )

    @property
    def count(self) -> int:
        return self.substitutions + self.insertions + self.deletions

    @property
    def percent(self) -> float:
        """The word error rate."""
        return 100 * self.count / self.words if self.words else 0.0


def compared(reference: str, hypothesis: str) -> Errors:
    """Minimum edit counts between two normalised texts."""
    edits = jiwer.process_words(reference, hypothesis)
    words = edits.hits + edits.substitutions + edits.deletions
    return Errors(words, edits.substitutions, edits.insertions, edits.deletions)


@dataclass(frozen=True, slots=True)
class Difference:
    """Difference of two measurements of the same utterances, in points of WER."""

    points: float
    interval_points: tuple[float, float]
    """95 % bootstrap interval."""
    utterances: int
    """Number of utterances with more or fewer errors."""


def difference(first: Sequence[Errors], other: Sequence[Errors]) -> Difference:
    """`other` minus `first`, with a paired bootstrap over utterances."""
    pairs = [(one.words, two.count - one.count) for one, two in zip(first, other, strict=True)]
    drawn = random.Random(0)  # noqa: S311
    resampled = sorted(_points(drawn.choices(pairs, k=len(pairs))) for _ in range(_RESAMPLINGS))
    tail = _RESAMPLINGS // 40
    return Difference(
        points=_points(pairs),
        interval_points=(resampled[tail], resampled[-1 - tail]),
        utterances=sum(more != 0 for _, more in pairs),
    )


def _points(pairs: Sequence[tuple[int, int]]) -> float:
    return 100 * sum(more for _, more in pairs) / sum(words for words, _ in pairs)
