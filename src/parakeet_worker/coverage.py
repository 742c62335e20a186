"""Is there a word wherever someone speaks?"""

from collections.abc import Iterable, Sequence
from dataclasses import replace

from parakeet_worker.segments import Span
from parakeet_worker.transcript import Word

MIN_GAP_SECONDS = 1.5
"""A speaker may hesitate, hum or breathe for as long."""


def uncovered(speech: Iterable[Span], words: Sequence[Word]) -> list[Span]:
    """Where someone speaks for more than 1.5 s and no word is, in order.

    `words` are in order; a word covers the time from its first token to the end of its last.
    """
    gaps = (gap for stretch in speech for gap in _gaps(stretch, words))
    return [gap for gap in gaps if gap.seconds > MIN_GAP_SECONDS]


def _gaps(stretch: Span, words: Sequence[Word]) -> Iterable[Span]:
    """What the words leave of one stretch of speech."""
    begin = stretch.start_seconds
    for word in words:
        if word.start_seconds >= stretch.end_seconds:
            break
        yield Span(begin, word.start_seconds)
        begin = max(begin, word.end_seconds)
    yield Span(begin, stretch.end_seconds)


def inside(gap: Span, words: Iterable[Word]) -> list[Word]:
    """Those that lie in the gap, and not in what is said around it."""
    return [word for word in words if gap.start_seconds <= _middle(word) <= gap.end_seconds]


def filled(words: Sequence[Word], gap: Span, found: Iterable[Word]) -> tuple[Word, ...]:
    """The words with those of `found` that lie in the gap; the others were there before."""
    before = [word for word in words if word.start_seconds <= gap.start_seconds]
    after = words[len(before) :]
    clamped = (_within(word, gap) for word in inside(gap, found))
    return (*before, *clamped, *after)


def _middle(word: Word) -> float:
    return (word.start_seconds + word.end_seconds) / 2


def _within(word: Word, gap: Span) -> Word:
    """The word with no time outside the gap: there others are said."""
    tokens = (
        replace(
            token,
            start_seconds=min(max(token.start_seconds, gap.start_seconds), gap.end_seconds),
            end_seconds=min(max(token.end_seconds, gap.start_seconds), gap.end_seconds),
        )
        for token in word.tokens
    )
    return replace(word, tokens=tuple(tokens))
