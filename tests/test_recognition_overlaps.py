"""What is said over a cut in speech comes out once and whole, whatever each window made of it."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pytest

from parakeet_worker.recognition.chunks import Span
from parakeet_worker.recognition.overlaps import merge
from parakeet_worker.recognition.transcript import TimedToken, Word

SEAM = 20.0
SIDE = 4.96
BRIDGE = Span(SEAM - SIDE, SEAM + SIDE)
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


def spliced(before: Sequence[Word], overlap: Sequence[Word], after: Sequence[Word]) -> list[Word]:
    """Both sides in one, after what must hold of them whatever was heard."""
    left, right = merge(before, overlap, after, cut_seconds=SEAM, window=BRIDGE)
    assert all(each.start_seconds < SEAM for each in left)
    assert all(each.start_seconds >= SEAM for each in right)
    both = [*left, *right]
    assert all(
        one.start_seconds <= other.start_seconds <= other.end_seconds
        for one, other in pairwise(both)
    )
    return both


# the three windows over a true sequence


@dataclass(frozen=True, slots=True)
class Said:
    """A word that is truly said."""

    text: str
    start: float
    end: float


def speech(generator: np.random.Generator, vocabulary: Sequence[str], pause: float) -> list[Said]:
    """Words over 40 s, one of them across the seam as often as not."""
    said: list[Said] = []
    at = float(generator.uniform(0, 1))
    while True:
        length = float(generator.uniform(0.2, 0.7))
        if at + length > 2 * SEAM:
            return said
        said.append(Said(str(generator.choice(vocabulary)), at, at + length))
        at += length + float(generator.choice([0.0, generator.exponential(pause)]))


def window(
    generator: np.random.Generator,
    said: Sequence[Said],
    span: Span,
    *,
    jitter: int,
    misheard: float,
) -> list[Word]:
    """What a window hears: at its edges halves of words, and words as they begin a sentence.

    An edge at the end of the recording is no edge.
    """
    heard: list[Word] = []
    for each in said:
        start, end = max(each.start, span.start_seconds), min(each.end, span.end_seconds)
        if start >= end:
            continue
        text = each.text
        halved = (start, end) != (each.start, each.end)
        if halved or (_near_edge(each, span) and generator.random() < misheard):
            text = str(generator.choice(["", text[:2] + "_", "_" + text[-2:], "uh_"]))
            if not text:
                continue
        elif generator.random() < 0.2:
            text = text.capitalize() + str(generator.choice(["", ".", ",", "?"]))
        shift = int(generator.integers(-jitter, jitter + 1)) * FRAME
        earliest = max(span.start_seconds, heard[-1].start_seconds if heard else 0.0)
        start = min(max(start + shift, earliest), span.end_seconds)
        heard.append(word(text, start, min(max(end + shift, start), span.end_seconds)))
    return heard


def _near_edge(each: Said, span: Span) -> bool:
    """Whether one of the edges, if it is none of the recording's, is nearer than half a second."""
    inner = (edge for edge in (span.start_seconds, span.end_seconds) if 0 < edge < 2 * SEAM)
    return any(abs(edge - (each.start + each.end) / 2) < 0.5 for edge in inner)


@pytest.mark.parametrize("jitter", [0, 1, 2])
@pytest.mark.parametrize("vocabulary", [FEW_WORDS, MANY_WORDS], ids=["few words", "many words"])
@pytest.mark.parametrize("pause", [0.02, 0.5])
def test_no_word_is_lost_doubled_or_halved(vocabulary, pause, jitter):
    across = 0
    for seed in range(150):
        generator = np.random.default_rng(seed)
        said = speech(generator, vocabulary, pause)
        across += any(each.start < SEAM < each.end for each in said)
        windows = [
            window(generator, said, span, jitter=jitter, misheard=0.5)
            for span in (Span(0, SEAM), BRIDGE, Span(SEAM, 2 * SEAM))
        ]
        heard = spliced(*windows)
        assert [bare(each.text) for each in heard] == [each.text for each in said], seed
        for each, truly in zip(heard, said, strict=True):
            assert each.start_seconds == pytest.approx(truly.start, abs=(2 * jitter + 0.1) * FRAME)
    assert across > 30


@pytest.mark.parametrize("seed", range(200))
def test_whatever_the_windows_hear_the_times_rise_and_every_word_is_one_of_theirs(seed):
    generator = np.random.default_rng(seed)
    windows = [
        [
            word(str(generator.choice(FEW_WORDS)), start)
            for start in np.sort(generator.uniform(*span, generator.integers(0, 12)))
        ]
        for span in ((10, SEAM), (SEAM - SIDE, SEAM + SIDE), (SEAM, 30))
    ]
    heard = spliced(*windows)
    assert {each.text for each in heard} <= {each.text for side in windows for each in side}
    assert len(heard) <= sum(map(len, windows))


# case by case


@pytest.mark.parametrize(
    ("before", "overlap", "after", "expected"),
    [
        # the word across the seam is the bridge's
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
        # heard whole by all three
        (
            [("one", 17), ("hello", 19.8)],
            [("one", 17), ("hello", 19.84), ("two", 22)],
            [("hello", 20.0), ("two", 22)],
            "one hello two",
        ),
        ([("hello", 19.8)], [("hello", 19.9)], [("hello", 20.0)], "hello"),
        # halves at the edges of the bridge
        (
            [("seven", 14.9), ("one", 17)],
            [("ven", 15.04), ("one", 17), ("two", 22), ("ele", 24.8)],
            [("two", 22), ("eleven", 24.8)],
            "seven one two eleven",
        ),
        # capitals and marks of a sentence that begins with the window
        (
            [("so", 16), ("he", 17), ("said.", 18)],
            [("So", 16), ("he", 17), ("said", 18), ("that", 19.8), ("we", 21), ("go.", 22)],
            [("We", 21), ("go", 22)],
            "so he said that we go",
        ),
        # the same word over and over
        (
            [("two", 18.0), ("two", 18.4), ("two", 18.8), ("two", 19.2), ("two", 19.6)],
            [("two", 18.08 + 0.4 * index) for index in range(10)],
            [("two", 20.08), ("two", 20.4), ("two", 20.8), ("two", 21.2), ("two", 21.6)],
            "two two two two two two two two two two",
        ),
        # no word alike: the middle of what both heard decides
        (
            [("a", 16.0), ("b", 18.5)],
            [("c", 16.0), ("d", 18.5), ("e", 21.0), ("f", 23.5)],
            [("g", 21.0), ("h", 23.5)],
            "a d e h",
        ),
        # also for a word that both misheard, and at another moment
        ([("a", 17.0), ("b", 17.4)], [("c", 17.0), ("d", 17.22), ("e", 21)], [], "a d e"),
        # the same word at another time is another word
        ([("one", 16.9)], [("one", 17.5), ("two", 21.0)], [("two", 21.0)], "one one two"),
        # sides on which nothing was heard
        ([], [], [], ""),
        ([("one", 17)], [], [("two", 21)], "one two"),
        ([], [("one", 17), ("two", 21)], [], "one two"),
        ([("one", 17)], [("one", 17), ("two", 21)], [], "one two"),
        ([], [("one", 17), ("two", 21)], [("two", 21)], "one two"),
        ([("one", 2)], [("two", 19)], [("three", 38)], "one two three"),
    ],
)
def test_words_at_a_seam(before, overlap, after, expected):
    heard = spliced(words(*before), words(*overlap), words(*after))
    assert " ".join(bare(each.text) for each in heard) == expected


def test_each_side_has_the_words_that_begin_in_it():
    overlap = words(("one", 17), ("hello", 19.8), ("you", 20.0), ("two", 22))
    left, right = merge(
        words(("one", 17)), overlap, words(("two", 22)), cut_seconds=SEAM, window=BRIDGE
    )
    assert [each.text for each in left] == ["one", "hello"]
    assert [each.text for each in right] == ["you", "two"]


def test_a_word_of_another_window_that_begins_too_early_is_moved_and_not_dropped():
    moved = spliced(words(("x", 17.0), ("y", 18.0)), [word("y", 17.7), word("z", 17.6)], ())
    assert [each.text for each in moved] == ["x", "y", "z"]
    assert [each.start_seconds for each in moved] == [17.0, 17.7, 17.7]


def test_the_tokens_of_a_word_stay_with_it():
    tokens = (TimedToken("hel", 19.8, 19.9, -0.5), TimedToken("lo", 20.0, 20.2, -0.25))
    (heard,) = spliced((), [Word("hello", tokens)], ())
    assert heard.tokens == tokens
    assert (heard.start_seconds, heard.end_seconds) == (19.8, 20.2)
