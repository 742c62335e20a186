"""Finds speech without words."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from parakeet_worker.recognition.chunks import Chunk, Span
from parakeet_worker.recognition.transcript import Word, bare
from parakeet_worker.vad.base import FRAME_SECONDS, MIN_SPEECH_FRAMES
from parakeet_worker.vad.level import stationary_seconds

GAP_SECONDS = 0.65
"""Speech between two words, in one span or several, that is decoded again.

The detector recognises about two thirds of a second of speech: it omits fricatives and closures.
"""
WHOLE_SPAN_SECONDS = (MIN_SPEECH_FRAMES - 0.5) * FRAME_SECONDS
"""The same of one span of which no part has a word: of any that is detected."""
_MAX_PART_SECONDS = 10.0
# What a word leaves of a span: its onset before the first token, or its release.
_MIN_REST_SECONDS = MIN_SPEECH_FRAMES * FRAME_SECONDS
# Words below it in a gap are usually noise.
_MIN_CONFIDENCE = 0.5
# The end of the word before a gap is decoded again with it, and may yield the same word.
_ECHO_SECONDS = 0.4


@dataclass(frozen=True, slots=True)
class Gap:
    """Speech without words between two words, in one or several spans."""

    speech: tuple[Span, ...]
    whole_seconds: float = 0.0
    """The longest of the spans of which no part has a word."""

    @property
    def span(self) -> Span:
        return Span(self.speech[0].start_seconds, self.speech[-1].end_seconds)

    @property
    def seconds(self) -> float:
        """Sum over the spans."""
        return sum(span.seconds for span in self.speech)

    def parts(self) -> Iterator["Gap"]:
        """The gap in parts of at most 10 s, as far as its pauses permit."""
        part: list[Span] = []
        for span in self.speech:
            if part and span.end_seconds - part[0].start_seconds > _MAX_PART_SECONDS:
                yield Gap(tuple(part))
                part = []
            part.append(span)
        yield Gap(tuple(part))


def uncovered(speech: Sequence[Span], words: Sequence[Word]) -> list[Gap]:
    """Gaps of at least 0.65 s, or with a span without a word; in order; without `words`, all.

    `words` are in order; a word covers the time from its first token to the end of its last.
    """
    gaps = [*_gaps(speech, words)]
    return _long_enough(gaps) if words else gaps


def _long_enough(gaps: Iterable[Gap]) -> list[Gap]:
    return [
        gap for gap in gaps if gap.seconds >= GAP_SECONDS or gap.whole_seconds >= WHOLE_SPAN_SECONDS
    ]


def reported_spans(gaps: Iterable[Gap]) -> tuple[Span, ...]:
    """The spans of gaps that remained without words, as the answer reports them."""
    return tuple(span for gap in gaps for span in gap.speech)


def find_gaps(chunk: Chunk, words: Sequence[Word]) -> list[Gap]:
    """Gaps in a chunk's speech, without sustained vowels."""
    gaps = uncovered(chunk.speech, words)
    return _long_enough(without_sustained_sound(gaps, chunk)) if words else gaps


def _gaps(speech: Sequence[Span], words: Sequence[Word]) -> Iterator[Gap]:
    """The speech between every two words."""
    start = float("-inf")
    first = 0
    for end, covered_until in [*((w.start_seconds, w.end_seconds) for w in words), _END]:
        while first < len(speech) and speech[first].end_seconds <= start:
            first += 1
        spans, whole_seconds = [], 0.0
        for span in speech[first:]:
            if span.start_seconds >= end:
                break
            left = Span(max(span.start_seconds, start), min(span.end_seconds, end))
            whole = left == span
            if left.seconds > 0 and (whole or left.seconds >= _MIN_REST_SECONDS):
                spans.append(left)
                whole_seconds = max(whole_seconds, left.seconds * whole)
        if spans:
            yield Gap(tuple(spans), whole_seconds)
        start = max(start, covered_until)


_END = (float("inf"), float("inf"))


def words_within(gap: Span, words: Iterable[Word]) -> list[Word]:
    """Words whose middle lies in the gap."""
    return [word for word in words if gap.start_seconds <= _middle(word) <= gap.end_seconds]


def credible_words(words: Sequence[Word], gap: Span, decoded: Iterable[Word]) -> list[Word]:
    """The words of `decoded` that lie in the gap and may be inserted.

    Excludes words of low confidence, and a word at the edge that repeats its neighbour outside
    the gap: that is the same sound, decoded twice.
    """
    sure = [word for word in words_within(gap, decoded) if word.confidence >= _MIN_CONFIDENCE]
    before, after = _around(words, gap)
    if before and sure and bare(sure[0]) == bare(before[-1]):
        edge = max(before[-1].end_seconds, gap.start_seconds) + _ECHO_SECONDS
        sure = sure[1:] if sure[0].start_seconds < edge else sure
    if after and sure and bare(sure[-1]) == bare(after[0]):
        edge = min(after[0].start_seconds, gap.end_seconds) - _ECHO_SECONDS
        sure = sure[:-1] if sure[-1].end_seconds > edge else sure
    return sure


def fill(words: Sequence[Word], gap: Span, decoded: Iterable[Word]) -> tuple[Word, ...]:
    """`words` with those of `decoded` that lie in the gap inserted."""
    before, after = _around(words, gap)
    clamped = (_clamped(word, gap) for word in words_within(gap, decoded))
    return (*before, *clamped, *after)


def _around(words: Sequence[Word], gap: Span) -> tuple[Sequence[Word], Sequence[Word]]:
    count = sum(word.start_seconds <= gap.start_seconds for word in words)
    return words[:count], words[count:]


def without_sustained_sound(gaps: Iterable[Gap], chunk: Chunk) -> list[Gap]:
    """The gaps without the beginning that only sustains the sound before it.

    A vowel may last for seconds, while the model's word ends after 0.3 s.
    """
    return [left for gap in gaps if (left := _after_sustained_sound(gap, chunk)) is not None]


def _after_sustained_sound(gap: Gap, chunk: Chunk) -> Gap | None:
    first, *others = gap.speech
    start = first.start_seconds + stationary_seconds(chunk.part(first).samples)
    speech = [Span(start, first.end_seconds)] if start < first.end_seconds else []
    left = (*speech, *others)
    if not left:
        return None
    return Gap(left, min(gap.whole_seconds, max(span.seconds for span in left)))


def _middle(word: Word) -> float:
    return (word.start_seconds + word.end_seconds) / 2


def _clamped(word: Word, gap: Span) -> Word:
    """The word with its times limited to the gap."""
    tokens = (
        replace(
            token,
            start_seconds=min(max(token.start_seconds, gap.start_seconds), gap.end_seconds),
            end_seconds=min(max(token.end_seconds, gap.start_seconds), gap.end_seconds),
        )
        for token in word.tokens
    )
    return replace(word, tokens=tuple(tokens))
