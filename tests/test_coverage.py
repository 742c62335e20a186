import numpy as np
import pytest

from parakeet_worker.coverage import MIN_GAP_SECONDS, filled, inside, uncovered
from parakeet_worker.segments import Span
from parakeet_worker.transcript import TimedToken, Word


def word(start_seconds: float, end_seconds: float, text: str = "word") -> Word:
    return Word(text, (TimedToken(text, start_seconds, end_seconds, -0.1),))


def words(*placed: tuple[float, float]) -> tuple[Word, ...]:
    return tuple(word(*each) for each in placed)


def spans(*placed: tuple[float, float]) -> list[Span]:
    return [Span(*each) for each in placed]


@pytest.mark.parametrize(
    ("speech", "heard", "gaps"),
    [
        # nobody speaks, or words are everywhere
        ([], [], []),
        ([], [(1, 2)], []),
        ([(0, 4)], [(0.2, 0.5), (1.0, 1.4), (2.5, 3.0)], []),
        # no word at all
        ([(3, 9)], [], [(3, 9)]),
        ([(3, 9), (12, 14)], [], [(3, 9), (12, 14)]),
        # a speaker may hesitate for 1.5 s
        ([(0, 1.5)], [], []),
        ([(0, 1.52)], [], [(0, 1.52)]),
        ([(0, 5)], [(0, 1), (2.5, 3.5)], []),
        ([(0, 5)], [(0, 1), (2.52, 3.6)], [(1, 2.52)]),
        # at the beginning, in the middle, at the end
        ([(0, 9)], [(2, 3), (4, 9)], [(0, 2)]),
        ([(0, 9)], [(0, 3), (6, 9)], [(3, 6)]),
        ([(0, 9)], [(0, 3), (4, 7)], [(7, 9)]),
        ([(0, 12)], [(2, 3), (5, 6), (8, 9)], [(0, 2), (3, 5), (6, 8), (9, 12)]),
        # words around a stretch are none in it
        ([(10, 14)], [(0, 1), (9, 9.9), (14, 15)], [(10, 14)]),
        # words over its edges are
        ([(10, 14)], [(9, 11), (12.4, 15)], []),
        ([(10, 14)], [(9, 15)], []),
        # a long word covers what begins within it
        ([(0, 9)], [(0, 5), (1, 2), (6, 9)], []),
        # silence between stretches needs no word
        ([(0, 1), (4, 5)], [(0, 1), (4, 5)], []),
        # a word without length covers its moment
        ([(0, 3)], [(1.5, 1.5)], []),
        ([(0, 3.2)], [(1.5, 1.5)], [(1.5, 3.2)]),
    ],
)
def test_a_gap_is_speech_without_words_for_more_than_a_second_and_a_half(speech, heard, gaps):
    assert uncovered(spans(*speech), words(*heard)) == spans(*gaps)


@pytest.mark.parametrize("seed", range(50))
def test_gaps_are_in_speech_outside_words_and_none_is_overlooked(seed):
    generator = np.random.default_rng(seed)
    turns = np.sort(generator.uniform(0, 60, 12))
    speech = spans(*turns.reshape(-1, 2).tolist())
    starts = np.sort(generator.uniform(0, 60, 20))
    heard = words(*((start, start + generator.uniform(0, 0.8)) for start in starts.tolist()))
    gaps = uncovered(speech, heard)

    # the same on a clock of milliseconds
    clock = np.arange(0, 60, 0.001)
    bare = np.zeros(len(clock), dtype=bool)
    for span in speech:
        bare |= (clock >= span.start_seconds) & (clock < span.end_seconds)
    for each in heard:
        bare &= ~((clock >= each.start_seconds) & (clock < each.end_seconds))
    edges = np.flatnonzero(np.diff(bare, prepend=False, append=False)).reshape(-1, 2) * 0.001
    expected = [(begin, end) for begin, end in edges if end - begin > MIN_GAP_SECONDS]
    found = [(gap.start_seconds, gap.end_seconds) for gap in gaps]
    assert np.array(found).reshape(-1, 2) == pytest.approx(
        np.array(expected).reshape(-1, 2), abs=0.002
    )
    assert found == sorted(found)


GAP = Span(10.0, 14.0)


@pytest.mark.parametrize(
    ("heard", "found", "expected"),
    [
        ([(9, 10), (14, 15)], [(11, 12)], [(9, 10), (11, 12), (14, 15)]),
        ([], [(11, 12), (12, 13)], [(11, 12), (12, 13)]),
        ([(9, 10)], [], [(9, 10)]),
        # what was said around it is heard again and left out
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
def test_a_gap_is_filled_with_the_words_that_lie_in_it(heard, found, expected):
    result = filled(words(*heard), GAP, words(*found))
    assert [(each.start_seconds, each.end_seconds) for each in result] == expected


def test_all_tokens_of_a_word_stay_in_the_gap_and_keep_their_text():
    tokens = (
        TimedToken("be", 9.8, 10.1, -0.1),
        TimedToken("gin", 10.1, 10.9, -0.2),
        TimedToken(".", 10.9, 10.9, -0.3),
    )
    (only,) = filled((), GAP, [Word("begin.", tokens)])
    assert only.text == "begin."
    assert [(token.text, token.start_seconds, token.end_seconds) for token in only.tokens] == [
        ("be", 10.0, 10.1),
        ("gin", 10.1, 10.9),
        (".", 10.9, 10.9),
    ]
    assert [token.logprob for token in only.tokens] == [-0.1, -0.2, -0.3]


@pytest.mark.parametrize("seed", range(30))
def test_after_filling_times_rise_and_no_word_is_lost(seed):
    generator = np.random.default_rng(seed)

    def series(begin: float, end: float) -> tuple[Word, ...]:
        turns = np.sort(generator.uniform(begin, end, 2 * generator.integers(0, 8)))
        return words(*turns.reshape(-1, 2).tolist())

    around = (*series(0, GAP.start_seconds), *series(GAP.end_seconds, 24))
    found = series(GAP.start_seconds - 0.5, GAP.end_seconds + 0.5)
    result = filled(around, GAP, found)
    starts = [each.start_seconds for each in result]
    assert starts == sorted(starts)
    assert [each for each in result if each in around] == list(around)
    assert len(result) == len(around) + len(inside(GAP, found))
