"""Is there a word wherever someone speaks?"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from parakeet_worker.recognition.chunks import Segment, Span
from parakeet_worker.recognition.transcript import Word, bare
from parakeet_worker.vad.level import held_seconds

GAP_SECONDS = 0.9
"""So much speech between two words, in one stretch or in many, is decoded again."""
SHORT_GAP_SECONDS = 0.7
"""Gaps from this length on are decoded again where they add up, ..."""
SHORT_GAPS_SECONDS = 2.0
"""... within a chunk, to so much."""
REPORTED_SECONDS = 0.5
"""Less speech in a chunk without any word is decoded again, and not reported: it may be a cough."""
_LONGEST_PART_SECONDS = 10.0
# Below it, a word in a gap is rather a sound that the model made a word of.
_LEAST_CONFIDENCE = 0.5
# The end of a word is decoded again with the gap behind it, and may be taken for the word itself.
_ECHO_SECONDS = 0.4


@dataclass(frozen=True, slots=True)
class Gap:
    """Speech without words between two words, in one or several stretches."""

    speech: tuple[Span, ...]

    @property
    def span(self) -> Span:
        return Span(self.speech[0].start_seconds, self.speech[-1].end_seconds)

    @property
    def seconds(self) -> float:
        """Of speech."""
        return sum(stretch.seconds for stretch in self.speech)

    def parts(self) -> Iterator["Gap"]:
        """The same in pieces of at most 10 s, as far as there are pauses to divide it in."""
        begun: list[Span] = []
        for stretch in self.speech:
            if begun and stretch.end_seconds - begun[0].start_seconds > _LONGEST_PART_SECONDS:
                yield Gap(tuple(begun))
                begun = []
            begun.append(stretch)
        yield Gap(tuple(begun))


def uncovered(speech: Sequence[Span], words: Sequence[Word]) -> list[Gap]:
    """Where someone speaks for 0.9 s between two words and no word is, in order.

    Shorter gaps count where they add up to 2 s, and any where there is no word at all. `words`
    are in order; a word covers the time from its first token to the end of its last.
    """
    gaps = [*_gaps(speech, words)]
    if not words:
        return gaps
    short = [gap for gap in gaps if SHORT_GAP_SECONDS <= gap.seconds < GAP_SECONDS]
    adds_up = sum(gap.seconds for gap in short) >= SHORT_GAPS_SECONDS
    least = SHORT_GAP_SECONDS if adds_up else GAP_SECONDS
    return [gap for gap in gaps if gap.seconds >= least]


def reported_spans(gaps: Iterable[Gap]) -> tuple[Span, ...]:
    """The speech of gaps that stayed without words, as the answer lists it."""
    those = (gap for gap in gaps if gap.seconds >= REPORTED_SECONDS)
    return tuple(stretch for gap in those for stretch in gap.speech)


def find_gaps(segment: Segment, words: Sequence[Word]) -> list[Gap]:
    """What of a segment's speech is uncovered by its words, but for held sounds."""
    gaps = uncovered(segment.speech, words)
    return without_held_sound(gaps, segment) if words else gaps


def _gaps(speech: Sequence[Span], words: Sequence[Word]) -> Iterator[Gap]:
    """What is between two words of all speech."""
    begin = float("-inf")
    first = 0
    for end, covered_until in [*((w.start_seconds, w.end_seconds) for w in words), _END]:
        while first < len(speech) and speech[first].end_seconds <= begin:
            first += 1
        found = []
        for stretch in speech[first:]:
            if stretch.start_seconds >= end:
                break
            left = Span(max(stretch.start_seconds, begin), min(stretch.end_seconds, end))
            if left.seconds > 0:
                found.append(left)
        if found:
            yield Gap(tuple(found))
        begin = max(begin, covered_until)


_END = (float("inf"), float("inf"))


def words_within(gap: Span, words: Iterable[Word]) -> list[Word]:
    """Those that lie in the gap, and not in what is said around it."""
    return [word for word in words if gap.start_seconds <= _middle(word) <= gap.end_seconds]


def credible_words(words: Sequence[Word], gap: Span, found: Iterable[Word]) -> list[Word]:
    """Those of `found` that lie in the gap and may be inserted.

    Words that the model is not sure of stay out, and so does what repeats a word beside the gap
    right at its edge: that is the same sound, decoded twice.
    """
    sure = [word for word in words_within(gap, found) if word.confidence >= _LEAST_CONFIDENCE]
    before, after = _beside(words, gap)
    if before and sure and bare(sure[0]) == bare(before[-1]):
        edge = max(before[-1].end_seconds, gap.start_seconds) + _ECHO_SECONDS
        sure = sure[1:] if sure[0].start_seconds < edge else sure
    if after and sure and bare(sure[-1]) == bare(after[0]):
        edge = min(after[0].start_seconds, gap.end_seconds) - _ECHO_SECONDS
        sure = sure[:-1] if sure[-1].end_seconds > edge else sure
    return sure


def fill(words: Sequence[Word], gap: Span, found: Iterable[Word]) -> tuple[Word, ...]:
    """The words with those of `found` that lie in the gap; the others were there before."""
    before, after = _beside(words, gap)
    clamped = (_within(word, gap) for word in words_within(gap, found))
    return (*before, *clamped, *after)


def _beside(words: Sequence[Word], gap: Span) -> tuple[Sequence[Word], Sequence[Word]]:
    count = sum(word.start_seconds <= gap.start_seconds for word in words)
    return words[:count], words[count:]


def without_held_sound(gaps: Iterable[Gap], segment: Segment) -> list[Gap]:
    """The gaps without the part of their first stretch in which the sound before them is held.

    A vowel may last for seconds, the model's word ends after 0.3 s.
    """
    return [left for gap in gaps if (left := _after_held_sound(gap, segment)) is not None]


def _after_held_sound(gap: Gap, segment: Segment) -> Gap | None:
    first, *others = gap.speech
    begin = first.start_seconds + held_seconds(segment.part(first).samples)
    speech = [Span(begin, first.end_seconds)] if begin < first.end_seconds else []
    left = Gap((*speech, *others))
    return left if left.speech and left.seconds >= GAP_SECONDS else None


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
