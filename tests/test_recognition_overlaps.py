"""Words over a cut in speech appear once and complete, for any result of each window."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parakeet_worker.recognition.chunks import Span
from parakeet_worker.recognition.overlaps import merge
from parakeet_worker.recognition.transcript import TimedToken, Word

CUT = 20.0
SIDE = 4.96
OVERLAP = Span(CUT - SIDE, CUT + SIDE)
FRAME = 0.08

FEW_WORDS = ("two", "six", "two", "one")
MANY_WORDS = tuple(f"{first}{last}" for first in "bdfglmnprst" for last in ("ake", "ord", "ill"))


def word(text: str, start_seconds: float, end_seconds: float | None = None) -> Word:
    end_seconds = start_seconds + 0.3 if end_seconds is None else end_seconds
    return Word(text, (TimedToken(text, round(start_seconds, 3), round(end_seconds, 3), -0.1),))


def words(*placed: tuple[str, float]) -> tuple[Word, ...]:
    return tuple(word(*each) for each in placed)


def bare(text: str) -> str:
    return text.strip(".,?").lower()


def merged(before: Sequence[Word], overlap: Sequence[Word], after: Sequence[Word]) -> list[Word]:
    """Merge both sides, and check the invariants that hold for any words."""
    left, right = merge(before, overlap, after, cut_seconds=CUT, window=OVERLAP)
    assert all(each.start_seconds < CUT for each in left)
    assert all(each.start_seconds >= CUT for each in right)
    both = [*left, *right]
    assert all(
        one.start_seconds <= other.start_seconds <= other.end_seconds
        for one, other in pairwise(both)
    )
    return both


# the three windows over a true sequence


@dataclass(frozen=True, slots=True)
class Spoken:
    """A spoken word."""

    text: str
    start: float
    end: float


@st.composite
def speech(draw: st.DrawFn, vocabulary: Sequence[str], longest_pause: float) -> list[Spoken]:
    """Words from before the overlap until after it, without a pause after every second of them."""
    spoken_words: list[Spoken] = []
    at = draw(hundredths(1300, 1340))
    while at < OVERLAP.end_seconds + 1.5:
        length = draw(hundredths(20, 70))
        spoken_words.append(Spoken(draw(st.sampled_from(vocabulary)), at, at + length))
        at += length + draw(st.just(0.0) | st.floats(0, longest_pause))
    return spoken_words


def hundredths(least: int, most: int) -> st.SearchStrategy[float]:
    return st.integers(least, most).map(lambda number: number / 100)


@st.composite
def window(
    draw: st.DrawFn, spoken_words: Sequence[Spoken], span: Span, *, jitter: int
) -> list[Word]:
    """The words of a window: halves at its edges, and words as at the start of a sentence.

    An edge at the end of the recording is no edge.
    """
    window_words: list[Word] = []
    for each in spoken_words:
        start, end = max(each.start, span.start_seconds), min(each.end, span.end_seconds)
        if start >= end:
            continue
        halved = (start, end) != (each.start, each.end)
        if halved or (_near_edge(each, span) and draw(st.booleans())):
            text = draw(st.sampled_from(["", each.text[:2] + "_", "_" + each.text[-2:], "uh_"]))
            if not text:
                continue
        else:
            text = draw(st.sampled_from([each.text, f"{each.text.capitalize()}?", f"{each.text},"]))
        shift = draw(st.integers(-jitter, jitter)) * FRAME
        earliest = max(span.start_seconds, window_words[-1].start_seconds if window_words else 0.0)
        start = min(max(start + shift, earliest), span.end_seconds)
        window_words.append(word(text, start, min(max(end + shift, start), span.end_seconds)))
    return window_words


def _near_edge(each: Spoken, span: Span) -> bool:
    """Whether one of the edges, if it is none of the recording's, is nearer than half a second."""
    inner = (edge for edge in (span.start_seconds, span.end_seconds) if 0 < edge < 2 * CUT)
    return any(abs(edge - (each.start + each.end) / 2) < 0.5 for edge in inner)


@pytest.mark.parametrize("jitter", [0, 1, 2])
@pytest.mark.parametrize("vocabulary", [FEW_WORDS, MANY_WORDS], ids=["few words", "many words"])
@pytest.mark.parametrize("longest_pause", [0.1, 2.0])
def test_no_word_is_lost_doubled_or_halved(vocabulary, longest_pause, jitter):
    @settings(max_examples=50)
    @given(data=st.data())
    def for_any_speech(data):
        spoken_words = data.draw(speech(vocabulary, longest_pause))
        windows = [
            data.draw(window(spoken_words, span, jitter=jitter))
            for span in (Span(0, CUT), OVERLAP, Span(CUT, 2 * CUT))
        ]
        window_words = merged(*windows)
        assert [bare(each.text) for each in window_words] == [each.text for each in spoken_words]
        for each, truly in zip(window_words, spoken_words, strict=True):
            assert each.start_seconds == pytest.approx(truly.start, abs=(2 * jitter + 0.1) * FRAME)

    for_any_speech()


def placed_words(span: Span) -> st.SearchStrategy[list[Word]]:
    """Up to twelve words that begin in a span."""
    starts = st.lists(st.floats(span.start_seconds, span.end_seconds), max_size=12).map(sorted)
    texts = st.lists(st.sampled_from(FEW_WORDS), min_size=12, max_size=12)
    return st.tuples(texts, starts).map(
        lambda both: [word(*each) for each in zip(*both, strict=False)]
    )


@given(st.tuples(placed_words(Span(10, CUT)), placed_words(OVERLAP), placed_words(Span(CUT, 30))))
def test_for_any_windows_times_increase_and_every_word_is_from_one_of_them(windows):
    window_words = merged(*windows)
    assert {each.text for each in window_words} <= {each.text for side in windows for each in side}
    assert len(window_words) <= sum(map(len, windows))


# case by case


@pytest.mark.parametrize(
    ("before", "overlap", "after", "expected"),
    [
        # the word across the cut is from the overlap
        (
            [("one", 17), ("two", 18), ("hel", 19.8)],
            [("one", 17), ("two", 18), ("hello", 19.8), ("three", 21), ("four", 22)],
            [("lo", 20.0), ("three", 21), ("four", 22)],
            "one two hello three four",
        ),
        # also where no other word is near
        ([("hel", 19.8)], [("hello", 19.8)], [("lo", 20.0)], "hello"),
        # a side that missed it
        (
            [("one", 17)],
            [("one", 17), ("hello", 19.8), ("two", 22)],
            [("two", 22)],
            "one hello two",
        ),
        # complete in all three
        (
            [("one", 17), ("hello", 19.8)],
            [("one", 17), ("hello", 19.84), ("two", 22)],
            [("hello", 20.0), ("two", 22)],
            "one hello two",
        ),
        ([("hello", 19.8)], [("hello", 19.9)], [("hello", 20.0)], "hello"),
        # halves at the edges of the overlap
        (
            [("seven", 14.9), ("one", 17)],
            [("ven", 15.04), ("one", 17), ("two", 22), ("ele", 24.8)],
            [("two", 22), ("eleven", 24.8)],
            "seven one two eleven",
        ),
        # capitals and marks of a sentence that begins with the window
        (
            [("so", 16), ("you", 17), ("agreed.", 18)],
            [("So", 16), ("you", 17), ("agreed", 18), ("that", 19.8), ("we", 21), ("go.", 22)],
            [("We", 21), ("go", 22)],
            "so you agreed that we go",
        ),
        # the same word repeatedly
        (
            [("two", 18.0), ("two", 18.4), ("two", 18.8), ("two", 19.2), ("two", 19.6)],
            [("two", 18.08 + 0.4 * index) for index in range(10)],
            [("two", 20.08), ("two", 20.4), ("two", 20.8), ("two", 21.2), ("two", 21.6)],
            "two two two two two two two two two two",
        ),
        # no common word: the middle of the shared part decides
        (
            [("a", 16.0), ("b", 18.5)],
            [("c", 16.0), ("d", 18.5), ("e", 21.0), ("f", 23.5)],
            [("g", 21.0), ("h", 23.5)],
            "a d e h",
        ),
        # also for a word that is wrong in both, at another time
        ([("a", 17.0), ("b", 17.4)], [("c", 17.0), ("d", 17.22), ("e", 21)], [], "a d e"),
        # the same word at another time is another word
        ([("one", 16.9)], [("one", 17.5), ("two", 21.0)], [("two", 21.0)], "one one two"),
        # sides without words
        ([], [], [], ""),
        ([("one", 17)], [], [("two", 21)], "one two"),
        ([], [("one", 17), ("two", 21)], [], "one two"),
        ([("one", 17)], [("one", 17), ("two", 21)], [], "one two"),
        ([], [("one", 17), ("two", 21)], [("two", 21)], "one two"),
        ([("one", 2)], [("two", 19)], [("three", 38)], "one two three"),
    ],
)
def test_words_at_a_cut(before, overlap, after, expected):
    window_words = merged(words(*before), words(*overlap), words(*after))
    assert " ".join(bare(each.text) for each in window_words) == expected


def test_each_side_has_the_words_that_begin_in_it():
    overlap = words(("one", 17), ("hello", 19.8), ("you", 20.0), ("two", 22))
    left, right = merge(
        words(("one", 17)), overlap, words(("two", 22)), cut_seconds=CUT, window=OVERLAP
    )
    assert [each.text for each in left] == ["one", "hello"]
    assert [each.text for each in right] == ["you", "two"]


def test_a_word_of_another_window_that_begins_too_early_is_moved_and_not_dropped():
    moved = merged(words(("x", 17.0), ("y", 18.0)), [word("y", 17.7), word("z", 17.6)], ())
    assert [each.text for each in moved] == ["x", "y", "z"]
    assert [each.start_seconds for each in moved] == [17.0, 17.7, 17.7]


def test_the_tokens_of_a_word_stay_with_it():
    tokens = (TimedToken("hel", 19.8, 19.9, -0.5), TimedToken("lo", 20.0, 20.2, -0.25))
    (window_words,) = merged((), [Word("hello", tokens)], ())
    assert window_words.tokens == tokens
    assert (window_words.start_seconds, window_words.end_seconds) == (19.8, 20.2)
