import math
from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parakeet_worker.formats import cues
from parakeet_worker.formats.cues import Cue
from parakeet_worker.options import CueLimits
from parakeet_worker.recognition.transcript import TimedToken, Word

SEEDS = st.integers(0, 2**32 - 1)

MILLISECOND = 0.0011

STORY = """When the first railway was built through the valley, most of the people who lived there
had never seen a machine larger than a mill wheel. They came down from the farms on foot, some of
them walking the whole night, and stood along the fence in their Sunday clothes. Nobody spoke. Then
the whistle sounded from behind the hill, and a child began to cry, and the engine came round the
bend, black and shining, pulling four carriages full of men in tall hats who waved at everybody as
if they had known them all their lives. My grandmother, who was seven years old at the time, told
me about that morning so often that I sometimes believe I was there myself. "It was not the noise,"
she used to say, "it was that nothing was pulling it." Yes. That is what she said, and I think she
was right: we notice strange things less than missing things. In the years that followed, the
valley changed faster than it had in the three centuries before; the mill closed, the market moved
to the station, and half of the boys I went to school with left for the city as soon as they could.
"""


def word(text: str, start: float, end: float) -> Word:
    start, end = round(start, 3), round(end, 3)
    return Word(text, (TimedToken(text, start, end, -0.1),))


def timed(text: str, *, seconds_per_letter: float = 0.06, seed: int = 0) -> list[Word]:
    """Words at the pace of a person who reads aloud: pauses at commas, longer ones at stops."""
    generator = np.random.default_rng(seed)
    words, clock = [], 0.4
    for spoken in text.split():
        seconds = max(0.12, len(spoken) * seconds_per_letter * generator.uniform(0.8, 1.2))
        words.append(word(spoken, clock, clock + seconds))
        clock += seconds
        if spoken.rstrip('"').endswith((".", "?", "!")):
            clock += generator.uniform(0.4, 1.0)
        elif spoken.endswith((",", ";", ":")):
            clock += generator.uniform(0.05, 0.4)
    return words


def random_words(seed: int) -> list[Word]:
    """Anything an engine could emit: long words, dense speech, words without length, pauses."""
    generator = np.random.default_rng(seed)
    longest = int(generator.choice([3, 12, 12, 60, 130]))
    pace = float(generator.choice([0.0, 0.01, 0.06, 0.2, 1.0]))
    words, clock = [], float(generator.choice([0.0, 3.3, 7199.9]))
    for index in range(int(generator.integers(1, 120))):
        letters = int(generator.integers(1, longest + 1))
        mark = str(generator.choice(["", "", "", "", ",", ".", "?", '."', " …"[1:]]))
        text = f"{index:x}" + "ö" * letters + mark
        seconds = pace * letters * generator.uniform(0, 2)
        words.append(word(text, clock, clock + seconds))
        clock = words[-1].end_seconds + float(generator.choice([0, 0, 0, 0.08, 0.4, 2.0])) * (
            pace > 0
        )
    return words


def spoken_text(shown: list[Cue]) -> str:
    return " ".join(line for cue in shown for line in cue.lines)


def characters(cue: Cue) -> int:
    return sum(len(line) for line in cue.lines)


def seconds(cue: Cue) -> float:
    return cue.end_seconds - cue.start_seconds


EXTREMES = {
    "story": timed(STORY),
    "hurried story": timed(STORY, seconds_per_letter=0.04),
    "slow story": timed(STORY, seconds_per_letter=0.12),
    "without marks": timed(STORY.lower().replace(".", "").replace(",", "")),
    "endless word": [word("w" * 500, 1.0, 9.0)],
    "one word of 29 s": [word("still", 1.0, 30.0)],
    "all at one time": [word("a", 1.0, 1.0)] * 300,
}
WORDS = st.builds(random_words, SEEDS) | st.sampled_from(list(EXTREMES.values()))
LIMITS = st.just(CueLimits()) | st.builds(
    CueLimits,
    max_line_characters=st.integers(10, 100),
    max_lines=st.integers(1, 4),
    max_characters_per_second=st.floats(5, 100),
    max_cue_seconds=st.floats(1, 30),
)


@given(words=WORDS, limits=LIMITS)
def test_cues_are_within_the_limits(words: list[Word], limits: CueLimits) -> None:
    shown = cues.cut(words, limits)
    assert shown
    for cue in shown:
        assert 1 <= len(cue.lines) <= limits.max_lines
        assert all(0 < len(line) <= limits.max_line_characters for line in cue.lines)
        assert 0 < seconds(cue) <= limits.max_cue_seconds + MILLISECOND


@given(words=WORDS, limits=LIMITS)
def test_cues_follow_each_other_and_never_overlap(words: list[Word], limits: CueLimits) -> None:
    shown = cues.cut(words, limits)
    assert shown[0].start_seconds == words[0].start_seconds
    for cue, following in pairwise(shown):
        assert cue.start_seconds < cue.end_seconds <= following.start_seconds


@given(words=WORDS, limits=LIMITS)
def test_no_word_is_lost_doubled_or_moved(words: list[Word], limits: CueLimits) -> None:
    # A word longer than a line is divided, so blanks are left out of the comparison.
    letters = "".join(word.text for word in words)
    assert spoken_text(cues.cut(words, limits)).replace(" ", "") == letters


@given(words=WORDS, limits=LIMITS)
def test_a_cue_can_be_read_where_the_next_leaves_room(words: list[Word], limits: CueLimits) -> None:
    shown = cues.cut(words, limits)
    longest = limits.max_cue_seconds
    for cue, following in zip(shown, [*shown[1:], None], strict=True):
        left = longest if following is None else following.start_seconds - cue.start_seconds
        required = max(1.0, characters(cue) / limits.max_characters_per_second)
        assert seconds(cue) >= min(required, left, longest) - MILLISECOND


@pytest.mark.parametrize("words", EXTREMES.values(), ids=EXTREMES)
def test_the_default_is_two_lines_of_42_characters_and_seven_seconds(words: list[Word]) -> None:
    shown = cues.cut(words)
    assert max(len(cue.lines) for cue in shown) <= 2
    assert max(len(line) for cue in shown for line in cue.lines) <= 42
    assert max(map(seconds, shown)) <= 7 + MILLISECOND


def test_more_lines_are_of_similar_length() -> None:
    (cue,) = cues.cut(
        [word(text, 0.0, 1.0) for text in ["aaaa", "bbbb", "cccc", "dddd", "eeee", "ffff"]],
        CueLimits(max_line_characters=10, max_lines=3),
    )
    assert cue.lines == ("aaaa bbbb", "cccc dddd", "eeee ffff")


PACES = (0.04, 0.055, 0.07, 0.09)
"""Seconds per letter; at the first two, cues can barely show it at 17 characters per second."""


def words_of(shown: list[Cue], words: list[Word]) -> Iterator[tuple[list[Word], float]]:
    """The words of each cue, with the start of the first one after it."""
    at = 0
    for cue in shown:
        after = at + len(" ".join(cue.lines).split())
        yield words[at:after], (words[after].start_seconds if after < len(words) else math.inf)
        at = after


def ends_sentence(word: Word) -> bool:
    return word.text.rstrip('"').endswith(".")


def clauses(words: list[Word]) -> list[list[Word]]:
    result: list[list[Word]] = [[]]
    for word in words:
        result[-1].append(word)
        if word.text.rstrip('"').endswith((".", ",", ";", ":")):
            result.append([])
    return result[:-1]


def rate_of(words: list[Word], following: float) -> float:
    """Characters per second of a cue with these words, shown until the next one."""
    return len(" ".join(word.text for word in words)) / (following - words[0].start_seconds)


@settings(max_examples=45)
@given(seed=SEEDS)
@pytest.mark.parametrize("pace", PACES)
def test_a_story_is_cut_into_sentences_and_clauses(pace: float, seed: int) -> None:
    shown = cues.cut(timed(STORY, seconds_per_letter=pace, seed=seed))
    assert spoken_text(shown) == " ".join(STORY.split())
    ends = [cue.lines[-1].rstrip('"')[-1] for cue in shown]
    assert sum(end in ".,;:" for end in ends) >= 0.8 * len(shown)
    assert 16 <= len(shown) <= 20


@settings(max_examples=45)
@given(seed=SEEDS)
@pytest.mark.parametrize("pace", PACES)
def test_sentences_share_a_cue_only_if_one_of_them_could_not_be_read(
    pace: float, seed: int
) -> None:
    words = timed(STORY, seconds_per_letter=pace, seed=seed)
    for shown, following in words_of(cues.cut(words), words):
        for at in range(1, len(shown)):
            if ends_sentence(shown[at - 1]):
                before = rate_of(shown[:at], shown[at].start_seconds)
                assert max(before, rate_of(shown[at:], following)) > 17


@settings(max_examples=45)
@given(seed=SEEDS)
@pytest.mark.parametrize("pace", PACES)
def test_no_cue_is_faster_than_readers_or_the_fastest_clause(pace: float, seed: int) -> None:
    words = timed(STORY, seconds_per_letter=pace, seed=seed)
    starts = [*(clause[0].start_seconds for clause in clauses(words)[1:]), math.inf]
    fastest = max(map(rate_of, clauses(words), starts))
    # A clause longer than a cue is divided, and one of its parts is the faster one.
    limit = max(17.0, 1.05 * fastest)
    assert all(characters(cue) / seconds(cue) <= limit for cue in cues.cut(words))


def test_a_cue_shows_each_word_while_it_is_spoken():
    words = timed(STORY)
    shown = cues.cut(words)
    at = 0
    for cue in shown:
        count = len(" ".join(cue.lines).split())
        shown = words[at : at + count]
        assert cue.start_seconds == shown[0].start_seconds
        assert cue.end_seconds >= shown[-1].end_seconds
        at += count
    assert at == len(words)


def lines(*texts_and_pauses: str | float) -> list[tuple[str, ...]]:
    """The lines of cues of words that last 0.4 s each, with these pauses in between."""
    words, clock = [], 0.0
    for item in texts_and_pauses:
        if isinstance(item, float):
            clock += item
            continue
        for text in item.split():
            words.append(word(text, clock, clock + 0.4))
            clock += 0.4
    return [cue.lines for cue in cues.cut(words)]


def test_no_words_give_no_cue():
    assert cues.cut([]) == []


def test_one_word_is_one_cue_that_stays_for_a_second():
    assert cues.cut([word("Yes.", 2.0, 2.2)]) == [Cue(2.0, 3.0, ("Yes.",))]


def test_what_fits_on_one_line_is_one_line():
    assert lines("a short remark of less than 42 characters.") == [
        ("a short remark of less than 42 characters.",)
    ]


def test_two_lines_are_about_as_long_as_each_other():
    assert lines("this remark is somewhat longer than one line holds") == [
        ("this remark is somewhat", "longer than one line holds")
    ]


def test_a_line_ends_after_a_comma_rather():
    assert lines("My grandmother, who was seven years old at the time") == [
        ("My grandmother,", "who was seven years old at the time")
    ]


def test_sentences_do_not_share_a_cue_where_there_is_time():
    assert lines("Nobody spoke at all.", 1.5, "Then the whistle sounded.") == [
        ("Nobody spoke at all.",),
        ("Then the whistle sounded.",),
    ]


def test_a_full_stop_inside_quotes_ends_a_sentence():
    assert lines('she said, "nothing pulled it."', 0.2, "Yes, that is what she said.") == [
        ('she said, "nothing pulled it."',),
        ("Yes, that is what she said.",),
    ]


def test_without_marks_a_pause_divides():
    assert lines("this is the one thing", 1.2, "and that is another thing again") == [
        ("this is the one thing",),
        ("and that is another thing again",),
    ]


def test_a_comma_divides_rather_than_the_middle_of_a_clause():
    shown = lines(
        "the people who lived in that valley had never seen, a machine larger than a mill wheel"
        " before"
    )
    assert len(shown) == 2
    assert shown[0][-1].endswith("seen,")


def test_a_cue_lingers_until_it_is_read_but_not_into_the_next():
    fast = "a remark that is said much too fast to be read in time"
    words = [
        word(text, 0.02 * index, 0.02 * index + 0.02) for index, text in enumerate(fast.split())
    ]
    (alone,) = cues.cut(words)
    assert alone.end_seconds == pytest.approx(characters(alone) / 17, abs=MILLISECOND)
    first, _ = cues.cut([*words, word("Next", 2.5, 2.7)])
    assert first.end_seconds == 2.5


def test_a_word_longer_than_a_line_is_divided():
    assert cues.cut([word("x" * 60, 10.0, 16.0)]) == [Cue(10.0, 16.0, ("x" * 42, "x" * 18))]


def test_the_time_of_a_word_longer_than_a_cue_is_divided_too():
    shown = cues.cut([word("x" * 420, 10.0, 60.0)])
    assert [cue.start_seconds for cue in shown] == [10.0 + 5 * index for index in range(10)]
    assert all(cue.lines == ("x" * 42,) for cue in shown)


def test_a_sentence_that_could_not_be_read_alone_shares_a_cue():
    hurried = [word("Oh", 0.0, 0.1), word("dear", 0.1, 0.2), word("me.", 0.2, 0.3)]
    calm = [word("Then", 0.3, 0.8), word("nothing", 0.8, 1.3), word("happened.", 1.3, 2.0)]
    (shared,) = cues.cut([*hurried, *calm])
    assert shared.lines == ("Oh dear me. Then nothing happened.",)


class Counted(list[cues._Piece]):
    """Pieces that count how often they are looked at."""

    looks = 0

    def __getitem__(self, index):
        self.looks += 1
        return super().__getitem__(index)


@pytest.mark.parametrize("count", [300, 3000])
def test_the_work_grows_with_the_words_and_no_faster(count):
    pieces = Counted([cues._Piece("a", 0.0, 0.0)] * count)
    cues._groups(pieces, CueLimits())
    assert count < pieces.looks <= 130 * count
