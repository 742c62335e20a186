"""Words to subtitle cues with readable timing."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from parakeet_worker.options import CueLimits
from parakeet_worker.recognition.transcript import Word

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
    """One subtitle: its lines, with start and end."""

    start_seconds: float
    end_seconds: float
    lines: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Piece:
    """A word, or the part of an overlong word that fits on a line."""

    text: str
    start_seconds: float
    end_seconds: float


def cut(words: Sequence[Word], limits: CueLimits = CueLimits()) -> list[Cue]:  # noqa: B008  # frozen
    """Divide `words` into cues within `limits`.

    Dynamic programming over all positions minimizes the cost of breaks: ends of sentences and
    pauses are preferred, then commas. A cue is shown longer than its words if it could not be
    read at the limit of characters per second otherwise, up to the start of the next one.
    """
    width = limits.max_line_characters
    groups = _groups([piece for word in words for piece in _pieces(word, width)], limits)
    cues: list[Cue] = []
    for index, group in enumerate(groups):
        following = groups[index + 1][0].start_seconds if index + 1 < len(groups) else math.inf
        lines = _lines([piece.text for piece in group], width)
        start = max(group[0].start_seconds, cues[-1].end_seconds if cues else 0.0)
        readable = max(group[-1].end_seconds, start + _reading_seconds(lines, limits))
        end = min(readable, following, start + limits.max_cue_seconds)
        cues.append(Cue(start, round(max(end, start + _MILLISECOND), 3), lines))
    return cues


def _pieces(word: Word, width: int) -> Iterator[_Piece]:
    texts = [word.text[at : at + width] for at in range(0, len(word.text), width)]
    step = (word.end_seconds - word.start_seconds) / len(texts)
    for index, text in enumerate(texts):
        start = word.start_seconds + index * step
        yield _Piece(text, round(start, 3), round(start + step, 3))


def _reading_seconds(lines: Sequence[str], limits: CueLimits) -> float:
    seconds = sum(len(line) for line in lines) / limits.max_characters_per_second
    return max(MIN_CUE_SECONDS, math.ceil(1000 * seconds) / 1000)


def _groups(pieces: Sequence[_Piece], limits: CueLimits) -> list[Sequence[_Piece]]:
    """The division of least cost: best[i] is the cost before piece i, came_from[i] the last cut."""
    breaking = [0.0, *(_cost_of_break(*pair) for pair in pairwise(pieces)), 0.0]
    keeping = [0.0, *(_cost_of_none(*pair) for pair in pairwise(pieces))]
    starts = [*(piece.start_seconds for piece in pieces), math.inf]
    speed = limits.max_characters_per_second
    best = [0.0] + [math.inf] * len(pieces)
    came_from = [0] * (len(pieces) + 1)
    for first in range(len(pieces)):
        inside = best[first] + _COST_PER_CUE
        for after, characters in _fitting(pieces, first, limits):
            inside += keeping[after - 1] if after - first > 1 else 0.0
            excess = characters - speed * (starts[after] - starts[first])
            cost = inside + breaking[after] + max(0.0, excess)
            if cost < best[after]:
                best[after], came_from[after] = cost, first
    groups: list[Sequence[_Piece]] = []
    after = len(pieces)
    while after > 0:
        groups.append(pieces[came_from[after] : after])
        after = came_from[after]
    return groups[::-1]


def _fitting(pieces: Sequence[_Piece], first: int, limits: CueLimits) -> Iterator[tuple[int, int]]:
    """Every possible end of a cue that starts at `first`, with its number of characters."""
    line, lines, characters = 0, 1, -1
    for after in range(first + 1, len(pieces) + 1):
        piece = pieces[after - 1]
        width = len(piece.text)
        characters += 1 + width
        line += width + 1 if line else width
        if line > limits.max_line_characters:
            line, lines = width, lines + 1
        spoken = piece.end_seconds - pieces[first].start_seconds
        too_long = spoken > limits.max_cue_seconds and after - first > 1
        if lines > limits.max_lines or too_long:
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


def _lines(texts: Sequence[str], width: int) -> tuple[str, ...]:
    """As few lines as possible, of similar length, preferably broken after a clause."""
    whole = sum(map(len, texts)) + len(texts) - 1
    if whole <= width:
        return (" ".join(texts),)
    count = _count_of_lines(texts, width)
    mean = (whole - count + 1) / count
    # For each number of texts the least cost of lines of them, and the lines.
    best: dict[int, tuple[float, tuple[str, ...]]] = {0: (0.0, ())}
    for remaining in range(count, 0, -1):
        longer: dict[int, tuple[float, tuple[str, ...]]] = {}
        for first, (spent, lines) in best.items():
            for after, line in _possible(texts, first, width):
                cost = spent + abs(len(line) - mean)
                if remaining > 1 and _ends(line, _CLAUSE_ENDS):
                    cost -= _GAIN_LINE_ENDS_WITH_CLAUSE
                if after not in longer or cost < longer[after][0]:
                    longer[after] = cost, (*lines, line)
        best = longer
    return best[len(texts)][1]


def _count_of_lines(texts: Sequence[str], width: int) -> int:
    lines, line = 1, -1
    for text in texts:
        line += 1 + len(text)
        if line > width:
            lines, line = lines + 1, len(text)
    return lines


def _possible(texts: Sequence[str], first: int, width: int) -> Iterator[tuple[int, str]]:
    """Every line that starts with the text at `first`, with the index after its last text."""
    line = ""
    for after, text in enumerate(texts[first:], start=first + 1):
        line = f"{line} {text}" if line else text
        if len(line) > width:
            return
        yield after, line
