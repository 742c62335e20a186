"""Alignment of reference and hypothesis words, by text and time."""

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

NEAR_SECONDS = 1.0
"""Words further apart than this are never matched."""
_BAND_SECONDS = 3.0
_DOUBLED_SECONDS = 1.5

Fate = Literal["right", "wrong", "lost"]


class Timed(Protocol):
    """A word with its start time."""

    @property
    def text(self) -> str: ...
    @property
    def start_seconds(self) -> float: ...


@dataclass(frozen=True, slots=True)
class Alignment:
    """The result for every reference word, and the insertions."""

    fates: tuple[Fate, ...]
    """Result per reference word."""
    partners: tuple[int | None, ...]
    """Per reference word, the index of the matched hypothesis word."""
    inserted: tuple[int, ...]
    """Indices of inserted hypothesis words."""
    doubled: frozenset[int]
    """Insertions that repeat an adjacent word."""

    @property
    def errors(self) -> int:
        return len(self.fates) - self.fates.count("right") + len(self.inserted)


def aligned(reference: Sequence[Timed], hypothesis: Sequence[Timed]) -> Alignment:
    """Minimum edit distance alignment; ties are resolved by distance in time.

    Both sequences are ordered by time. Words more than a second apart are never matched, so that
    repetitions of a word are not confused.
    """
    lows, highs = _band(reference, hypothesis)
    moves = _moves(reference, hypothesis, lows, highs)
    fates: list[Fate] = ["lost"] * len(reference)
    partners: list[int | None] = [None] * len(reference)
    row, column = len(reference), len(hypothesis)
    while row or column:
        move = moves[row][column - lows[row]]
        if move == "i":
            column -= 1
            continue
        row -= 1
        if move == "d":
            continue
        column -= 1
        partners[row] = column
        fates[row] = "right" if reference[row].text == hypothesis[column].text else "wrong"
    taken = {partner for partner in partners if partner is not None}
    inserted = tuple(index for index in range(len(hypothesis)) if index not in taken)
    doubled = frozenset(index for index in inserted if _repeats_neighbour(hypothesis, index))
    return Alignment(tuple(fates), tuple(partners), inserted, doubled)


def _band(reference: Sequence[Timed], hypothesis: Sequence[Timed]) -> tuple[list[int], list[int]]:
    """Per reference prefix, the range of hypothesis prefixes to consider."""
    starts = [word.start_seconds for word in hypothesis]
    lows, highs = [0], []
    for word in reference:
        highs.append(bisect_right(starts, word.start_seconds + _BAND_SECONDS))
        lows.append(max(lows[-1], bisect_left(starts, word.start_seconds - _BAND_SECONDS)))
    highs.append(len(hypothesis))
    # A row overlaps the start of the next one.
    for row in range(len(reference)):
        highs[row] = max(highs[row], lows[row + 1], highs[row - 1] if row else 0)
    return lows, highs


def _moves(
    reference: Sequence[Timed],
    hypothesis: Sequence[Timed],
    lows: Sequence[int],
    highs: Sequence[int],
) -> list[str]:
    """The last step to every cell of the band: `m`atch, `d`elete, `i`nsert."""
    moves: list[str] = []
    above: list[float] = []
    for row in range(len(reference) + 1):
        low, high = lows[row], highs[row]
        costs: list[float] = []
        steps: list[str] = []
        for column in range(low, high + 1):
            options: list[tuple[float, str]] = []
            if costs:
                options.append((costs[-1] + 1, "i"))
            if row and column <= highs[row - 1]:
                options.append((above[column - lows[row - 1]] + 1, "d"))
            if row and lows[row - 1] < column <= highs[row - 1] + 1:
                pair = _cost(reference[row - 1], hypothesis[column - 1])
                options.append((above[column - 1 - lows[row - 1]] + pair, "m"))
            cost, step = min(options) if options else (0.0, "i")
            costs.append(cost)
            steps.append(step)
        moves.append("".join(steps))
        above = costs
    return moves


def _cost(reference: Timed, hypothesis: Timed) -> float:
    """0 for equal words, 1 for others, plus a small penalty for the distance in time."""
    apart = abs(reference.start_seconds - hypothesis.start_seconds)
    if apart > NEAR_SECONDS:
        return 3.0
    return (0.0 if reference.text == hypothesis.text else 1.0) + apart / 100


def _repeats_neighbour(hypothesis: Sequence[Timed], index: int) -> bool:
    neighbours = [*hypothesis[max(0, index - 1) : index], *hypothesis[index + 1 : index + 2]]
    return any(
        word.text == hypothesis[index].text
        and abs(word.start_seconds - hypothesis[index].start_seconds) < _DOUBLED_SECONDS
        for word in neighbours
    )


@dataclass(frozen=True, slots=True)
class Counts:
    """Error counts of a selection of words."""

    words: int
    substitutions: int
    deletions: int
    insertions: int
    doubled: int
    """Insertions that repeat an adjacent word."""

    @property
    def errors(self) -> int:
        return self.substitutions + self.deletions + self.insertions


def counted(
    reference: Sequence[Timed],
    hypothesis: Sequence[Timed],
    alignment: Alignment,
    where: Callable[[float], bool] = lambda _: True,
) -> Counts:
    """Errors of words whose start time satisfies `where`."""
    fates = [
        fate
        for word, fate in zip(reference, alignment.fates, strict=True)
        if where(word.start_seconds)
    ]
    inserted = [index for index in alignment.inserted if where(hypothesis[index].start_seconds)]
    return Counts(
        len(fates),
        fates.count("wrong"),
        fates.count("lost"),
        len(inserted),
        sum(index in alignment.doubled for index in inserted),
    )
