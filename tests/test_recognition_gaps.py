import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parakeet_worker.engine.base import Samples
from parakeet_worker.recognition.chunks import Chunk, Span
from parakeet_worker.recognition.gaps import (
    credible_words,
    fill,
    find_gaps,
    reported_spans,
    uncovered,
    words_within,
)
from parakeet_worker.recognition.transcript import TimedToken, Word
from parakeet_worker.vad.base import FRAME_SECONDS, MIN_SPEECH_FRAMES

SEEDS = st.integers(0, 2**32 - 1)


def word(
    start_seconds: float, end_seconds: float, text: str = "word", logprob: float = -0.1
) -> Word:
    return Word(text, (TimedToken(text, start_seconds, end_seconds, logprob),))


def words(*placed: tuple[float, float]) -> tuple[Word, ...]:
    return tuple(word(*each) for each in placed)


def spans(*placed: tuple[float, float]) -> list[Span]:
    return [Span(*each) for each in placed]


@pytest.mark.parametrize(
    ("speech", "transcribed", "gaps"),
    [
        # no speech, or words everywhere
        ([], [], []),
        ([], [(1, 2)], []),
        ([(0, 4)], [(0.2, 0.5), (1.0, 1.4), (2.0, 2.6), (3.2, 4)], []),
        # no word at all: any speech counts, all of it as one gap
        ([(3, 9)], [], [[(3, 9)]]),
        ([(3, 9), (12, 14)], [], [[(3, 9), (12, 14)]]),
        ([(3, 3.2)], [], [[(3, 3.2)]]),
        # a speaker may hesitate for 0.65 s
        ([(0, 5)], [(0, 1), (1.63, 5)], []),
        ([(0, 5)], [(0, 1), (1.67, 5)], [[(1, 1.67)]]),
        # at the beginning, in the middle, at the end
        ([(0, 9)], [(2, 3), (3.5, 9)], [[(0, 2)]]),
        ([(0, 9)], [(0, 3), (6, 9)], [[(3, 6)]]),
        ([(0, 9)], [(0, 3), (3.5, 7)], [[(7, 9)]]),
        ([(0, 12)], [(2, 3), (5, 6), (8, 9)], [[(0, 2)], [(3, 5)], [(6, 8)], [(9, 12)]]),
        # the onset of a word before its first token is not in a gap
        ([(0, 1.6), (3, 5)], [(0, 1), (3.12, 5)], []),
        ([(0, 1.6), (3, 5)], [(0, 1), (3.14, 5)], [[(1, 1.6), (3, 3.14)]]),
        # words around a span are not in it
        ([(10, 14)], [(0, 1), (9, 9.9), (14, 15)], [[(10, 14)]]),
        # words over its edges are
        ([(10, 14)], [(9, 11), (11.4, 15)], []),
        ([(10, 14)], [(9, 15)], []),
        # a long word covers what begins within it
        ([(0, 9)], [(0, 5), (1, 2), (5.5, 9)], []),
        # silence between spans needs no word
        ([(0, 1), (4, 5)], [(0, 1), (4, 5)], []),
        # a word without length covers its moment
        ([(0, 1.2)], [(0.6, 0.6)], []),
        ([(0, 1.3)], [(0.6, 0.6)], [[(0.6, 1.3)]]),
        # spans between two words add up
        ([(0, 1), (2, 2.5), (3, 3.5), (4, 5)], [(0, 1), (4, 5)], [[(2, 2.5), (3, 3.5)]]),
        # a span of which no part has a word is a gap of any length, and the rest of one is not
        ([(0, 1), (2, 2.13), (3, 5)], [(0, 1), (3, 5)], [[(2, 2.13)]]),
        ([(0, 1), (2, 2.13), (3, 3.13), (4, 5)], [(0, 1), (4, 5)], [[(2, 2.13), (3, 3.13)]]),
        ([(0, 1.6), (3, 5)], [(0, 1), (3, 5)], []),
        # but for what a cut left of one
        ([(0, 1), (2, 2.1), (3, 5)], [(0, 1), (3, 5)], []),
        ([(0, 1.2), (2, 2.4), (3, 5)], [(0, 1), (3, 5)], [[(1, 1.2), (2, 2.4)]]),
        # not over a word
        ([(0, 9)], [(0, 1), (1.6, 3), (3.6, 5), (5.6, 7), (7.6, 9)], []),
    ],
)  # fmt: skip
def test_a_gap_is_speech_between_two_words_however_it_is_distributed(speech, transcribed, gaps):
    redecoded = uncovered(spans(*speech), words(*transcribed))
    assert [list(gap.speech) for gap in redecoded] == [spans(*gap) for gap in gaps]


def test_many_short_spans_without_a_word_are_one_gap_of_all_their_seconds():
    speech = spans(*((2.0 * at, 2.0 * at + 1.15) for at in range(8)))
    (gap,) = uncovered(speech, ())
    assert gap.seconds == pytest.approx(9.2)
    assert reported_spans([gap]) == tuple(speech)
    assert [part.span for part in gap.parts()] == spans((0, 9.15), (10, 15.15))


@pytest.mark.parametrize("transcribed", [(), ((3, 4),)])
def test_the_shortest_detected_speech_without_a_word_is_reported(transcribed):
    shortest = spans((1, 1 + MIN_SPEECH_FRAMES * FRAME_SECONDS))
    gaps = uncovered([*shortest, Span(3, 4)][: 1 + len(transcribed)], words(*transcribed))
    assert reported_spans(gaps) == tuple(shortest)


@settings(max_examples=25, deadline=None)
@given(seed=SEEDS)
def test_gaps_are_in_speech_outside_words_and_none_is_overlooked(seed):
    generator = np.random.default_rng(seed)
    turns = np.sort(generator.uniform(0, 60, 24))
    speech = spans(*turns.reshape(-1, 2).tolist())
    starts = np.sort(generator.uniform(0, 60, 20))
    transcribed = words(*((start, start + generator.uniform(0, 0.8)) for start in starts.tolist()))
    redecoded = uncovered(speech, transcribed)

    # the same on a clock of milliseconds: speech without words, numbered by the words before it
    clock = np.arange(0, 60, 0.001)
    bare = np.zeros(len(clock), dtype=bool)
    for span in speech:
        bare |= (clock >= span.start_seconds) & (clock < span.end_seconds)
    for each in transcribed:
        bare &= ~((clock >= each.start_seconds) & (clock < each.end_seconds))
    between = np.searchsorted(starts, clock[bare], side="right")
    seconds = np.bincount(between, minlength=21) * 0.001
    # a rest of a span at a word, below 0.13 s, is part of that word
    rest_seconds = 0.26
    long = seconds > 0.652 + rest_seconds
    assert sum(gap.seconds for gap in redecoded) >= (seconds[long] - rest_seconds).sum() - 0.1
    for gap in redecoded:
        number = np.searchsorted(starts, gap.span.start_seconds + 1e-6, side="right")
        assert seconds[number] - rest_seconds - 0.02 <= gap.seconds <= seconds[number] + 0.02
        assert gap.seconds >= 0.65 or gap.whole_seconds >= 0.112
    assert [gap.span.start_seconds for gap in redecoded] == sorted(
        gap.span.start_seconds for gap in redecoded
    )


GAP = Span(10.0, 14.0)


@pytest.mark.parametrize(
    ("transcribed", "redecoded", "expected"),
    [
        ([(9, 10), (14, 15)], [(11, 12)], [(9, 10), (11, 12), (14, 15)]),
        ([], [(11, 12), (12, 13)], [(11, 12), (12, 13)]),
        ([(9, 10)], [], [(9, 10)]),
        # words around it are decoded again and omitted
        ([(9, 10), (14, 15)], [(9.2, 10), (11, 12), (14, 14.3)], [(9, 10), (11, 12), (14, 15)]),
        # a word over the edge is kept, within the gap
        ([(9, 10), (14, 15)], [(9.9, 10.8)], [(9, 10), (10, 10.8), (14, 15)]),
        ([(9, 10), (14, 15)], [(13.4, 14.2)], [(9, 10), (13.4, 14), (14, 15)]),
        # there are more words before and after
        ([(1, 2), (9, 10), (14, 15), (20, 21)], [(11, 12)],
         [(1, 2), (9, 10), (11, 12), (14, 15), (20, 21)]),
        # the word before it is longer than its beginning
        ([(10, 10)], [(10.1, 11)], [(10, 10), (10.1, 11)]),
    ],
)  # fmt: skip
def test_a_gap_is_filled_with_the_words_that_lie_in_it(transcribed, redecoded, expected):
    result = fill(words(*transcribed), GAP, words(*redecoded))
    assert [(each.start_seconds, each.end_seconds) for each in result] == expected


def test_all_tokens_of_a_word_stay_in_the_gap_and_keep_their_text():
    tokens = (
        TimedToken("be", 9.8, 10.1, -0.1),
        TimedToken("gin", 10.1, 10.9, -0.2),
        TimedToken(".", 10.9, 10.9, -0.3),
    )
    (only,) = fill((), GAP, [Word("begin.", tokens)])
    assert only.text == "begin."
    assert [(token.text, token.start_seconds, token.end_seconds) for token in only.tokens] == [
        ("be", 10.0, 10.1),
        ("gin", 10.1, 10.9),
        (".", 10.9, 10.9),
    ]
    assert [token.logprob for token in only.tokens] == [-0.1, -0.2, -0.3]


@settings(max_examples=20, deadline=None)
@given(seed=SEEDS)
def test_after_filling_times_rise_and_no_word_is_lost(seed):
    generator = np.random.default_rng(seed)

    def series(begin: float, end: float) -> tuple[Word, ...]:
        turns = np.sort(generator.uniform(begin, end, 2 * generator.integers(0, 8)))
        return words(*turns.reshape(-1, 2).tolist())

    around = (*series(0, GAP.start_seconds), *series(GAP.end_seconds, 24))
    redecoded = series(GAP.start_seconds - 0.5, GAP.end_seconds + 0.5)
    result = fill(around, GAP, redecoded)
    starts = [each.start_seconds for each in result]
    assert starts == sorted(starts)
    assert [each for each in result if each in around] == list(around)
    assert len(result) == len(around) + len(words_within(GAP, redecoded))


# what may be inserted


@pytest.mark.parametrize(
    ("redecoded", "kept"),
    [
        ([word(11, 11.4, "new")], ["new"]),
        # the model is not sure of it
        ([word(11, 11.4, "new", -0.8), word(12, 12.4, "sure", -0.6)], ["sure"]),
        # the word next to the gap, decoded again at its edge
        ([word(10.1, 10.4, "La"), word(11, 11.4, "new")], ["new"]),
        ([word(11, 11.4, "new"), word(13.5, 13.9, "le,")], ["new"]),
        # and spoken again, further away
        ([word(10.9, 11.2, "la"), word(12.5, 12.9, "le")], ["la", "le"]),
        # another word there
        ([word(10.1, 10.4, "le"), word(13.5, 13.9, "la")], ["le", "la"]),
    ],
)
def test_a_word_is_inserted_if_it_is_certain_and_not_a_repetition_of_the_next_one(redecoded, kept):
    around = (word(9.6, 10, "la."), word(14, 14.4, "le"))
    assert [each.text for each in credible_words(around, GAP, redecoded)] == kept


def vowel(seconds: float, formants: tuple[float, float] = (700, 1200)) -> Samples:
    """A voice of 120 Hz with slightly varying level and one vowel."""
    clock = np.arange(round(seconds * 16_000)) / 16_000
    harmonics = np.arange(1, 33) * 120 * (1 + 0.01 * np.sin(2 * np.pi * 5 * clock[:, None]))
    peaks = sum(np.exp(-(((harmonics - formant) / 150) ** 2)) for formant in formants) + 0.01
    phases = np.cumsum(2 * np.pi * harmonics / 16_000, axis=0)
    sound = (peaks * np.sin(phases)).sum(axis=1) * (1 + 0.3 * np.sin(2 * np.pi * 3 * clock))
    return (0.05 * sound).astype(np.float32)


def test_a_held_vowel_is_its_words_and_no_gap():
    held = Chunk(5.0, vowel(3.0), speech=(Span(5.0, 8.0),))
    assert uncovered(held.speech, words((5.0, 5.4)))
    assert find_gaps(held, words((5.0, 5.4))) == []


def test_what_follows_a_held_vowel_is_a_gap():
    vowels = [(700, 1200), (300, 2200), (400, 800), (600, 1800)]
    vowel_parts = [vowel(0.2, vowels[index % 4]) for index in range(8)]
    chunk = Chunk(5.0, np.concatenate([vowel(1.0), *vowel_parts]), speech=(Span(5.0, 7.6),))
    (gap,) = find_gaps(chunk, words((5.0, 5.3)))
    assert gap.span.start_seconds == pytest.approx(6.0, abs=0.15)
    assert gap.span.end_seconds == 7.6


def test_a_gap_without_a_held_vowel_is_found_from_the_same_length_on():
    vowels = [(700, 1200), (300, 2200), (400, 800), (600, 1800)]
    samples = np.concatenate([vowel(0.05, vowels[index % 4]) for index in range(60)])
    chunk = Chunk(0.0, samples, speech=(Span(0.0, 3.0),))
    (gap,) = find_gaps(chunk, words((0, 1), (1.75, 3)))
    assert gap.span.start_seconds == pytest.approx(1, abs=0.08)


def test_a_vowel_without_any_word_is_a_gap():
    held = Chunk(5.0, vowel(3.0), speech=(Span(5.0, 8.0),))
    assert [gap.span for gap in find_gaps(held, ())] == [Span(5.0, 8.0)]
