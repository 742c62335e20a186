"""What was said beside what was heard, word by word and in time."""

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

NEAR_SECONDS = 1.0
"""A word that is heard further from its place is not that word."""
_BAND_SECONDS = 3.0
_DOUBLED_SECONDS = 1.5

Fate = Literal["right", "wrong", "lost"]


class Timed(Protocol):
    """A word and when it begins."""

    @property
    def text(self) -> str: ...
    @property
    def start_seconds(self) -> float: ...


@dataclass(frozen=True, slots=True)
class Alignment:
    """What became of every word, and which words came from nowhere."""

    fates: tuple[Fate, ...]
    """Of every word that was said."""
    heard: tuple[int | None, ...]
    """Which word was heard in place of each."""
    inserted: tuple[int, ...]
    """Words that were heard and not said."""
    doubled: frozenset[int]
    """Of them those that say once more what is beside them."""

    @property
    def errors(self) -> int:
        return len(self.fates) - self.fates.count("right") + len(self.inserted)


def aligned(said: Sequence[Timed], heard: Sequence[Timed]) -> Alignment:
    """The fewest errors that turn one into the other, and of these the nearest in time.

    Both rise in time. Words more than a second apart are never the same word, so that of twenty
    words that a language repeats none is taken for another.
    """
    lows, highs = _band(said, heard)
    moves = _moves(said, heard, lows, highs)
    fates: list[Fate] = ["lost"] * len(said)
    partners: list[int | None] = [None] * len(said)
    row, column = len(said), len(heard)
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
        fates[row] = "right" if said[row].text == heard[column].text else "wrong"
    taken = {partner for partner in partners if partner is not None}
    inserted = tuple(index for index in range(len(heard)) if index not in taken)
    doubled = frozenset(index for index in inserted if _says_again(heard, index))
    return Alignment(tuple(fates), tuple(partners), inserted, doubled)


def _band(said: Sequence[Timed], heard: Sequence[Timed]) -> tuple[list[int], list[int]]:
    """For every number of words said, how many may have been heard by then."""
    starts = [word.start_seconds for word in heard]
    lows, highs = [0], []
    for word in said:
        highs.append(bisect_right(starts, word.start_seconds + _BAND_SECONDS))
        lows.append(max(lows[-1], bisect_left(starts, word.start_seconds - _BAND_SECONDS)))
    highs.append(len(heard))
    # A row reaches at least to where the next one begins.
    for row in range(len(said)):
        highs[row] = max(highs[row], lows[row + 1], highs[row - 1] if row else 0)
    return lows, highs


def _moves(
    said: Sequence[Timed], heard: Sequence[Timed], lows: Sequence[int], highs: Sequence[int]
) -> list[str]:
    """The last step to every cell of the band: `m`atched, `d`eleted, `i`nserted."""
    moves: list[str] = []
    above: list[float] = []
    for row in range(len(said) + 1):
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
                pair = _cost(said[row - 1], heard[column - 1])
                options.append((above[column - 1 - lows[row - 1]] + pair, "m"))
            cost, step = min(options) if options else (0.0, "i")
            costs.append(cost)
            steps.append(step)
        moves.append("".join(steps))
        above = costs
    return moves


def _cost(said: Timed, heard: Timed) -> float:
    """Zero for the same word, one for another; a little more the further apart they are."""
    apart = abs(said.start_seconds - heard.start_seconds)
    if apart > NEAR_SECONDS:
        return 3.0
    return (0.0 if said.text == heard.text else 1.0) + apart / 100


def _says_again(heard: Sequence[Timed], index: int) -> bool:
    beside = [*heard[max(0, index - 1) : index], *heard[index + 1 : index + 2]]
    return any(
        word.text == heard[index].text
        and abs(word.start_seconds - heard[index].start_seconds) < _DOUBLED_SECONDS
        for word in beside
    )


@dataclass(frozen=True, slots=True)
class Counts:
    """Errors in some places."""

    words: int
    substitutions: int
    deletions: int
    insertions: int
    doubled: int
    """Of the insertions, those that say once more what is beside them."""

    @property
    def errors(self) -> int:
        return self.substitutions + self.deletions + self.insertions


def counted(
    said: Sequence[Timed],
    heard: Sequence[Timed],
    alignment: Alignment,
    where: Callable[[float], bool] = lambda _: True,
) -> Counts:
    """The errors at words that begin at a time for which `where` holds."""
    fates = [
        fate for word, fate in zip(said, alignment.fates, strict=True) if where(word.start_seconds)
    ]
    inserted = [index for index in alignment.inserted if where(heard[index].start_seconds)]
    return Counts(
        len(fates),
        fates.count("wrong"),
        fates.count("lost"),
        len(inserted),
        sum(index in alignment.doubled for index in inserted),
    )
