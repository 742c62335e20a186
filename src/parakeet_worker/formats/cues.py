"""Words to subtitle cues with readable timing."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from parakeet_worker.recognition.transcript import Word

MAX_LINES = 2
MAX_LINE_CHARACTERS = 42
MAX_CHARACTERS_PER_SECOND = 17.0
MAX_CUE_SECONDS = 7.0
MIN_CUE_SECONDS = 1.0

# Costs of a break inside a unit of the text, and of no break, in units of one character over the
# reading speed.
_COST_PER_CUE = 3.0
_COST_INSIDE_CLAUSE = 12.0
_COST_AFTER_CLAUSE = 4.0
_COST_SENTENCE_END_INSIDE = 5.0
_COST_PAUSE_INSIDE_PER_SECOND = 20.0
_LONG_PAUSE_SECONDS = 0.5
_GAIN_LINE_ENDS_WITH_CLAUSE = 20
_SENTENCE_ENDS = (".", "?", "!", "…")
_CLAUSE_ENDS = (*_SENTENCE_ENDS, ",", ";", ":", "–", "—")
_QUOTES = "\"'»«”“’)]"
_MILLISECOND = 0.001


@dataclass(frozen=True, slots=True)
class Cue:
    """One subtitle: one or two lines, with start and end."""

    start_seconds: float
    end_seconds: float
    lines: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Piece:
    """A word, or the part of an overlong word that fits on a line."""

    text: str
    start_seconds: float
    end_seconds: float


def cut(words: Sequence[Word]) -> list[Cue]:
    """Divide `words` into cues of at most two lines of 42 characters and 7 s.

    Dynamic programming over all positions minimizes the cost of breaks: ends of sentences and
    pauses are preferred, then commas. A cue is shown longer than its words if it could not be
    read at 17 characters per second otherwise, up to the start of the next one.
    """
    groups = _groups([piece for word in words for piece in _pieces(word)])
    cues: list[Cue] = []
    for index, group in enumerate(groups):
        following = groups[index + 1][0].start_seconds if index + 1 < len(groups) else math.inf
        lines = _lines([piece.text for piece in group])
        start = max(group[0].start_seconds, cues[-1].end_seconds if cues else 0.0)
        readable = max(group[-1].end_seconds, start + _reading_seconds(lines))
        end = min(readable, following, start + MAX_CUE_SECONDS)
        cues.append(Cue(start, round(max(end, start + _MILLISECOND), 3), lines))
    return cues


def _pieces(word: Word) -> Iterator[_Piece]:
    texts = [
        word.text[at : at + MAX_LINE_CHARACTERS]
        for at in range(0, len(word.text), MAX_LINE_CHARACTERS)
    ]
    step = (word.end_seconds - word.start_seconds) / len(texts)
    for index, text in enumerate(texts):
        start = word.start_seconds + index * step
        yield _Piece(text, round(start, 3), round(start + step, 3))


def _reading_seconds(lines: Sequence[str]) -> float:
    characters = sum(len(line) for line in lines)
    return max(MIN_CUE_SECONDS, math.ceil(1000 * characters / MAX_CHARACTERS_PER_SECOND) / 1000)


def _groups(pieces: Sequence[_Piece]) -> list[Sequence[_Piece]]:
    """The division of least cost: best[i] is the cost before piece i, came_from[i] the last cut."""
    breaking = [0.0, *(_cost_of_break(*pair) for pair in pairwise(pieces)), 0.0]
    keeping = [0.0, *(_cost_of_none(*pair) for pair in pairwise(pieces))]
    starts = [*(piece.start_seconds for piece in pieces), math.inf]
    best = [0.0] + [math.inf] * len(pieces)
    came_from = [0] * (len(pieces) + 1)
    for first in range(len(pieces)):
        inside = best[first] + _COST_PER_CUE
        for after, characters in _fitting(pieces, first):
            inside += keeping[after - 1] if after - first > 1 else 0.0
            excess = characters - MAX_CHARACTERS_PER_SECOND * (starts[after] - starts[first])
            cost = inside + breaking[after] + max(0.0, excess)
            if cost < best[after]:
                best[after], came_from[after] = cost, first
    groups: list[Sequence[_Piece]] = []
    after = len(pieces)
    while after > 0:
        groups.append(pieces[came_from[after] : after])
        after = came_from[after]
    return groups[::-1]


def _fitting(pieces: Sequence[_Piece], first: int) -> Iterator[tuple[int, int]]:
    """Every possible end of a cue that starts at `first`, with its number of characters."""
    line, lines, characters = 0, 1, -1
    for after in range(first + 1, len(pieces) + 1):
        piece = pieces[after - 1]
        width = len(piece.text)
        characters += 1 + width
        line += width + 1 if line else width
        if line > MAX_LINE_CHARACTERS:
            line, lines = width, lines + 1
        spoken = piece.end_seconds - pieces[first].start_seconds
        if lines > MAX_LINES or (spoken > MAX_CUE_SECONDS and after - first > 1):
            return
        yield after, characters


def _cost_of_break(piece: _Piece, following: _Piece) -> float:
    if _ends(piece.text, _SENTENCE_ENDS):
        return 0.0
    torn = _COST_AFTER_CLAUSE if _ends(piece.text, _CLAUSE_ENDS) else _COST_INSIDE_CLAUSE
    return torn * (1.0 - min(1.0, _pause(piece, following) / _LONG_PAUSE_SECONDS))


def _cost_of_none(piece: _Piece, following: _Piece) -> float:
    excess = max(0.0, _pause(piece, following) - _LONG_PAUSE_SECONDS)
    ended = _COST_SENTENCE_END_INSIDE if _ends(piece.text, _SENTENCE_ENDS) else 0.0
    return ended + _COST_PAUSE_INSIDE_PER_SECOND * excess


def _pause(piece: _Piece, following: _Piece) -> float:
    return max(0.0, following.start_seconds - piece.end_seconds)


def _ends(text: str, marks: tuple[str, ...]) -> bool:
    return text.rstrip(_QUOTES).endswith(marks)


def _lines(texts: Sequence[str]) -> tuple[str, ...]:
    """One line if the text fits, else two of similar length, preferably broken after a comma."""
    whole = " ".join(texts)
    if len(whole) <= MAX_LINE_CHARACTERS:
        return (whole,)
    halves = [(" ".join(texts[:at]), " ".join(texts[at:])) for at in range(1, len(texts))]
    fitting = [pair for pair in halves if max(map(len, pair)) <= MAX_LINE_CHARACTERS]
    return min(fitting, key=_unevenness)


def _unevenness(halves: tuple[str, str]) -> int:
    upper, lower = halves
    gain = _GAIN_LINE_ENDS_WITH_CLAUSE if _ends(upper, _CLAUSE_ENDS) else 0
    return abs(len(upper) - len(lower)) - gain
