"""Words to subtitle cues that can be read in time."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from parakeet_worker.transcript import Word

MAX_LINES = 2
MAX_LINE_CHARACTERS = 42
MAX_CHARACTERS_PER_SECOND = 17.0
MAX_CUE_SECONDS = 7.0
MIN_CUE_SECONDS = 1.0

# What a break costs where it tears what belongs together, in arbitrary units.
_COST_INSIDE_CLAUSE = 12.0
_COST_AFTER_COMMA = 4.0
_COST_PER_CUE = 3.0
_COST_PAUSE_INSIDE_PER_SECOND = 20.0
_COST_SENTENCE_END_INSIDE = 5.0
_COST_TOO_FAST = 1.0
_LONG_PAUSE_SECONDS = 0.5
_SENTENCE_ENDS = (".", "?", "!", "…")
_CLAUSE_ENDS = (",", ";", ":", "–", "—")


@dataclass(frozen=True, slots=True)
class Cue:
    """One subtitle: one or two lines, and when to show them."""

    start_seconds: float
    end_seconds: float
    lines: tuple[str, ...]


def cut(words: Sequence[Word]) -> list[Cue]:
    """Divide `words` into cues of at most two lines of 42 characters and 7 s.

    Breaks are chosen together, by dynamic programming over all places to break: at the ends of
    sentences and at pauses where that is possible, at commas else. A cue stays on longer than
    its words where it could not be read at 17 characters a second otherwise and the next one
    leaves room.
    """
    groups = _groups(words)
    cues = []
    for index, group in enumerate(groups):
        following = groups[index + 1][0].start_seconds if index + 1 < len(groups) else math.inf
        lines = _lines(" ".join(word.text for word in group))
        cues.append(Cue(group[0].start_seconds, _end(group, lines, following), lines))
    return cues


def _end(group: Sequence[Word], lines: Sequence[str], following_seconds: float) -> float:
    start = group[0].start_seconds
    readable = start + max(MIN_CUE_SECONDS, _characters(lines) / MAX_CHARACTERS_PER_SECOND)
    spoken = group[-1].end_seconds
    return round(min(max(spoken, readable), max(following_seconds, spoken)), 3)


def _characters(lines: Sequence[str]) -> int:
    return sum(len(line) for line in lines)


def _groups(words: Sequence[Word]) -> list[Sequence[Word]]:
    """The cheapest division: best[i] is the cost of the words before i, from[i] the last cut."""
    best = [0.0] + [math.inf] * len(words)
    came_from = [0] * (len(words) + 1)
    for after in range(1, len(words) + 1):
        for first in range(after - 1, -1, -1):
            if after - first > 1 and not _fits(words[first:after]):
                break
            cost = best[first] + _cost(words, first, after)
            if cost < best[after]:
                best[after], came_from[after] = cost, first
    groups: list[Sequence[Word]] = []
    after = len(words)
    while after > 0:
        groups.append(words[came_from[after] : after])
        after = came_from[after]
    return groups[::-1]


def _fits(group: Sequence[Word]) -> bool:
    if group[-1].end_seconds - group[0].start_seconds > MAX_CUE_SECONDS:
        return False
    return len(_lines(" ".join(word.text for word in group))) <= MAX_LINES


def _cost(words: Sequence[Word], first: int, after: int) -> float:
    group = words[first:after]
    cost = _COST_PER_CUE
    if after < len(words):
        cost += _break_cost(words[after - 1], words[after])
    for word, following in pairwise(group):
        pause = following.start_seconds - word.end_seconds
        cost += _COST_PAUSE_INSIDE_PER_SECOND * max(0.0, pause - _LONG_PAUSE_SECONDS)
        if word.text.endswith(_SENTENCE_ENDS):
            cost += _COST_SENTENCE_END_INSIDE
    shown = words[after].start_seconds if after < len(words) else math.inf
    characters = sum(len(word.text) + 1 for word in group) - 1
    excess = characters - MAX_CHARACTERS_PER_SECOND * max(shown - group[0].start_seconds, 0.0)
    return cost + _COST_TOO_FAST * max(0.0, excess)


def _break_cost(word: Word, following: Word) -> float:
    if word.text.endswith(_SENTENCE_ENDS):
        return 0.0
    pause = following.start_seconds - word.end_seconds
    relief = min(1.0, max(0.0, pause) / _LONG_PAUSE_SECONDS)
    torn = _COST_AFTER_COMMA if word.text.endswith(_CLAUSE_ENDS) else _COST_INSIDE_CLAUSE
    return torn * (1.0 - relief)


def _lines(text: str) -> tuple[str, ...]:
    """Wrap into as few lines as possible, and two lines as even as possible."""
    if len(text) <= MAX_LINE_CHARACTERS:
        return (text,)
    breaks = [index for index, character in enumerate(text) if character == " "]
    halves = [(text[:index], text[index + 1 :]) for index in breaks]
    fitting = [
        (upper, lower)
        for upper, lower in halves
        if len(upper) <= MAX_LINE_CHARACTERS and len(lower) <= MAX_LINE_CHARACTERS
    ]
    if fitting:
        return min(fitting, key=lambda pair: abs(len(pair[0]) - len(pair[1])))
    return _wrapped(text)


def _wrapped(text: str) -> tuple[str, ...]:
    """Greedy wrapping for what does not fit two lines; an endless word is cut."""
    lines: list[str] = []
    for word in text.split(" "):
        parts = [
            word[at : at + MAX_LINE_CHARACTERS] for at in range(0, len(word), MAX_LINE_CHARACTERS)
        ]
        joined = f"{lines[-1]} {parts[0]}" if lines else parts[0]
        if lines and len(joined) <= MAX_LINE_CHARACTERS:
            lines[-1] = joined
            lines.extend(parts[1:])
        else:
            lines.extend(parts)
    return tuple(lines)
