"""Word errors: how many between two texts, and how two measurements of one set differ."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import jiwer

_RESAMPLINGS = 1000


@dataclass(frozen=True, slots=True)
class Errors:
    """Words that were said, and what became of them."""

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


def compared(said: str, heard: str) -> Errors:
    """The fewest errors that turn one normalised text into the other."""
    told = jiwer.process_words(said, heard)
    words = told.hits + told.substitutions + told.deletions
    return Errors(words, told.substitutions, told.insertions, told.deletions)


@dataclass(frozen=True, slots=True)
class Difference:
    """Between two measurements of the same utterances, in points of WER."""

    points: float
    interval_points: tuple[float, float]
    """Holds 95 % of the sets that are drawn from the utterances anew."""
    utterances: int
    """With more errors or fewer."""


def difference(first: Sequence[Errors], other: Sequence[Errors]) -> Difference:
    """What `other` has more; utterances are drawn in pairs, so that their difficulty cancels."""
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
