import math
import random
from dataclasses import replace
from itertools import dropwhile, groupby, pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parakeet_worker.audio.decoding import SAMPLE_RATE
from parakeet_worker.engine.base import Hypothesis, Token
from parakeet_worker.notices import Notice
from parakeet_worker.recognition.chunks import Chunk, SpeechFrames
from parakeet_worker.recognition.transcript import (
    MAX_SENTENCE_WORDS,
    Sentence,
    SentencesSoFar,
    Transcript,
    join,
    mean_logprob,
    stitch,
)

SEEDS = st.integers(0, 2**32 - 1)

FRAME_SECONDS = 0.08


def chunk(seconds: float = 30.0, start_seconds: float = 0.0) -> Chunk:
    return Chunk(start_seconds, np.zeros(round(seconds * SAMPLE_RATE), dtype=np.float32))


def spoken(*pieces: str, frames: int = 2) -> Hypothesis:
    """Pieces one after the other, each as long as the others."""
    return timed(*((piece, index * frames, frames) for index, piece in enumerate(pieces)))


def timed(*placed: tuple[str, int, int]) -> Hypothesis:
    """Pieces with their frame and duration."""
    return Hypothesis(tuple(Token(*place, -0.1) for place in placed), FRAME_SECONDS)


def weighed(*weighed: tuple[str, float]) -> Hypothesis:
    """Pieces with their probability."""
    tokens = (
        Token(piece, frame, 1, math.log(probability))
        for frame, (piece, probability) in enumerate(weighed)
    )
    return Hypothesis(tuple(tokens), FRAME_SECONDS)


def texts(hypothesis: Hypothesis) -> list[str]:
    return [word.text for word in stitch(chunk(), hypothesis).words]


def times(transcript: Transcript) -> list[tuple[float, float]]:
    return [(word.start_seconds, word.end_seconds) for word in transcript.words]


# words


@pytest.mark.parametrize(
    ("pieces", "words"),
    [
        ([], []),
        (["▁hello"], ["hello"]),
        (["▁hel", "lo", "▁wor", "ld"], ["hello", "world"]),
        (["hello", "▁world"], ["hello", "world"]),
        (["▁hello", ".", "▁Yes", "!"], ["hello.", "Yes!"]),
        (["▁hello", "▁.", "▁Yes"], ["hello", ".", "Yes"]),
        (["▁hello", "▁", ".", "▁Yes"], ["hello", ".", "Yes"]),
        (["▁", "hello", "▁", "world"], ["hello", "world"]),
        (["▁hello", "▁", "▁world", "▁"], ["hello", "world"]),
        (["▁", "▁"], []),
        (["▁▁hello", "▁▁", "world"], ["hello", "world"]),
        (["▁well", ",", "▁I", "'", "m", "▁here", "…"], ["well,", "I'm", "here…"]),
        (["▁3", ".", "5", "▁%"], ["3.5", "%"]),
        (["▁what", "?", "!"], ["what?!"]),
        (["▁up", "-", "to", "-", "date"], ["up-to-date"]),
        # marks at the beginning belong to the previous word
        (["."], []),
        (["▁.", "▁hello"], ["hello"]),
        (["?", "!", "▁", ",", "▁hello", "."], ["hello."]),
        (["▁-", "5"], ["-5"]),
        # marks that open a word
        (["▁then", '▁"', "hello"], ["then", '"hello']),
        (["▁is", "▁-", "5", "▁degrees"], ["is", "-5", "degrees"]),
        (["▁sa", "▁”", "hej", "”"], ["sa", "”hej”"]),
        (["▁Müller", "▁&", "▁Co"], ["Müller", "&", "Co"]),
        (["▁a", "▁−", "5", "▁#", "1", "▁@", "me", "▁§", "3"], ["a", "−5", "#1", "@me", "§3"]),
        # bytes of letters that have no piece
        (["▁", "<0xE2>", "<0x82>", "<0xAC>", "▁5"], ["€", "5"]),
        (["▁a", "<0xC3>", "<0xA9>", "<0xF0>", "<0x9F>", "<0x98>", "<0x80>"], ["aé😀"]),
        (["▁a", "<0xE2>", "<0x82>", "▁b"], ["a\ufffd\ufffd", "b"]),
        (["▁Hola", ".", "▁¿", "Qué", "▁tal", "?"], ["Hola.", "¿Qué", "tal?"]),
        (["▁dit", "▁«", "▁oui", "▁»", "."], ["dit", "«", "oui", "»."]),
        (["▁er", "▁„", "ja", "“", "▁sagt"], ["er", "„ja“", "sagt"]),
        (["▁one", "▁(", "two", ")"], ["one", "(two)"]),
        (["▁¡", "Ay", "!"], ["¡Ay!"]),
        (["", "▁hel", "", "lo", "", ".", ""], ["hello."]),
        (["", ""], []),
        (["▁", "", "hello"], ["hello"]),
        (["▁Žluťoučký", "▁кін", "ь", "▁ñandú", "▁ßÆØ"], ["Žluťoučký", "кінь", "ñandú", "ßÆØ"]),
        (["▁5", "▁$", "▁+", "▁=", "5"], ["5", "$", "+", "=5"]),
    ],
)
def test_pieces_become_words(pieces, words):
    assert texts(spoken(*pieces)) == words
    assert stitch(chunk(), spoken(*pieces)).text == " ".join(words)


@settings(max_examples=25)
@given(seed=SEEDS)
def test_words_hold_all_letters_in_order_and_join_to_the_text(seed):
    generator = np.random.default_rng(seed)
    pieces = generator.choice(["▁a", "▁be", "c", "de", "▁", "", ".", "▁,", "▁(", "?"], 60).tolist()
    transcript = stitch(chunk(), spoken(*pieces))
    assert transcript.text == " ".join(word.text for word in transcript.words)
    written = "".join(pieces).replace("▁", " ").split()
    assert transcript.text.split() == [*dropwhile(lambda word: not word.strip(",.?"), written)]
    assert all(word.text and " " not in word.text for word in transcript.words)
    for word in transcript.words:
        assert word.text == "".join(token.text for token in word.tokens)


KINDS = (
    *("▁a", "▁Über", "▁ñ", "▁де", "▁ή", "b", "ing", "ß", "о", "ς", "'", "’", "-", "–", "—", "−"),
    *('▁"', '"', "▁“", "”", "▁„", "▁«", "»", "▁(", ")", "▁¿", "?", "▁¡", "!", ".", ",", "…", ":"),
    *(
        "▁&",
        "&",
        "▁#",
        "▁@",
        "@",
        "▁§",
        "▁$",
        "%",
        "▁%",
        "▁5",
        "5",
        "▁",
        "▁▁",
        "▁a▁b",
        "/",
        "<",
        ">",
    ),
    *("<0xE2>", "<0x82>", "<0xAC>", "<0xC3>", "<0xA9>", "<0x20>", "<0x41>", "<0xFF>"),
)


def detokenised(pieces: list[str]) -> str:
    """As SentencePiece does it, with runs of spaces as one, and none at the ends."""
    detokenised = ""
    for is_byte, run in groupby(pieces, key=lambda piece: len(piece) == 6 and piece[:3] == "<0x"):
        if not is_byte:
            detokenised += "".join(run)
            continue
        spelled = bytes(int(piece[3:5], 16) for piece in run)
        while spelled:
            size = next((n for n in range(1, 5) if _is_letter(spelled[:n])), 0)
            detokenised += spelled[:size].decode() or "\ufffd"
            spelled = spelled[size or 1 :]
    return " ".join(detokenised.replace("▁", " ").split())


def _is_letter(encoded: bytes) -> bool:
    try:
        return len(encoded.decode()) == 1
    except UnicodeDecodeError:
        return False


@settings(max_examples=40)
@given(seed=SEEDS)
def test_the_text_is_sentencepieces_own(seed):
    pieces = ["▁Go", *np.random.default_rng(seed).choice(KINDS, 60).tolist()]
    transcript = stitch(chunk(), spoken(*pieces, frames=1))
    assert transcript.text == detokenised(pieces)
    assert [word.text for word in transcript.words] == transcript.text.split()


# times


def test_several_words_at_one_frame_have_times_that_rise_and_a_length():
    transcript = stitch(chunk(4), timed(("▁a", 5, 0), ("▁b", 5, 0), ("▁c", 5, 0), ("▁d", 20, 0)))
    assert times(transcript) == [(0.4, 0.41), (0.41, 0.42), (0.42, 0.5), (1.6, 1.68)]


def test_a_word_without_length_at_the_end_lies_inside_the_recording():
    transcript = stitch(chunk(4), timed(("▁a", 49, 0), ("▁b", 50, 0), ("▁c", 50, 2), (".", 50, 0)))
    assert all(
        word.end_seconds - word.start_seconds >= 0.01 - 1e-9 for word in transcript.words[:2]
    )
    assert all(0 <= word.start_seconds <= word.end_seconds <= 4 for word in transcript.words)
    starts = [word.start_seconds for word in transcript.words]
    assert starts == sorted(starts)


def test_a_word_lasts_from_its_first_token_to_the_end_of_its_last():
    transcript = stitch(chunk(), timed(("▁hel", 5, 2), ("lo", 9, 3), ("▁you", 20, 4)))
    assert times(transcript) == [(0.4, 0.96), (1.6, 1.92)]


def test_a_lone_space_gives_the_word_its_beginning():
    transcript = stitch(chunk(), timed(("▁a", 0, 1), ("▁", 5, 1), ("b", 8, 2)))
    assert times(transcript) == [(0.0, 0.08), (0.4, 0.8)]


@pytest.mark.parametrize("mark", [[(".", 30, 2)], [("…", 31, 1)]])
def test_a_mark_takes_no_time_however_late_it_comes(mark):
    transcript = stitch(chunk(), timed(("▁hello", 0, 4), *mark, ("▁Yes", 40, 2)))
    assert times(transcript) == [(0.0, 0.32), (3.2, 3.36)]
    end = transcript.words[0].tokens[-1]
    assert (end.text, end.start_seconds, end.end_seconds) == (mark[0][0], 0.32, 0.32)


def test_marks_after_marks_take_no_time_either():
    transcript = stitch(chunk(), timed(("▁what", 0, 4), ("?", 9, 1), ("!", 19, 1)))
    assert times(transcript) == [(0.0, 0.32)]


def test_an_opening_mark_has_its_own_time():
    transcript = stitch(chunk(), timed(("▁sí", 0, 2), (".", 3, 1), ("▁¿", 20, 1), ("Qué", 21, 2)))
    assert times(transcript) == [(0.0, 0.16), (1.6, 1.84)]


def test_times_are_on_the_clock_of_the_recording():
    transcript = stitch(chunk(10, start_seconds=61.44), timed(("▁a", 0, 1), ("▁b", 100, 2)))
    assert times(transcript) == [(61.44, 61.52), (69.44, 69.6)]
    assert transcript.frame_seconds == FRAME_SECONDS


def test_times_are_rounded_to_milliseconds():
    tokens = [(f"▁{frame}", frame, 1) for frame in range(400)]
    for start, end in times(stitch(chunk(32, start_seconds=0.1), timed(*tokens))):
        assert start == round(start, 3)
        assert end == round(end, 3)


@pytest.mark.parametrize("length", [1.0, 1.04, 0.96, 1.0001])
def test_nothing_ends_after_the_segment(length):
    transcript = stitch(
        chunk(length, start_seconds=8.0),
        timed(("▁in", 0, 2), ("▁over", 11, 4), ("▁beyond", 15, 4), (".", 19, 2)),
    )
    assert [word.text for word in transcript.words] == ["in", "over", "beyond."]
    assert transcript.words[-1].end_seconds == round(8.0 + length, 3)
    for start, end in times(transcript):
        assert 8.0 <= start <= end <= round(8.0 + length, 3)


@settings(max_examples=25)
@given(seed=SEEDS)
def test_times_rise_and_lie_inside_the_recording_across_segments(seed):
    generator = np.random.default_rng(seed)
    partials, begin = [], 0.0
    for _ in range(5):
        seconds = float(generator.integers(25, 100)) * FRAME_SECONDS
        tokens, frame = [], 0
        while frame * FRAME_SECONDS < seconds:
            piece = str(generator.choice(["▁a", "b", "▁", "", ".", "▁.", "▁¿"]))
            duration = int(generator.integers(0, 5))
            tokens.append((piece, frame, duration))
            frame += duration + int(generator.integers(0, 4))
        partials.append(stitch(chunk(seconds, begin), timed(*tokens)))
        begin += seconds
    whole = join(partials)
    tokens = [token for word in whole.words for token in word.tokens]
    assert len(tokens) > 20
    for token in tokens:
        assert 0 <= token.start_seconds <= token.end_seconds <= round(begin, 3)
    for token, following in pairwise(tokens):
        assert token.end_seconds <= following.start_seconds
    for word in whole.words:
        assert word.start_seconds <= word.end_seconds


# sentences


@pytest.mark.parametrize(
    ("pieces", "sentences"),
    [
        ([], []),
        (["▁no", "▁mark"], ["no mark"]),
        (["▁One", ".", "▁Two", "▁Three", "?", "▁Four", "!"], ["One.", "Two Three?", "Four!"]),
        (["▁One", ".", "▁and", "▁more"], ["One.", "and more"]),
        (["▁well", ",", "▁yes", ";", "▁no", ":"], ["well, yes; no:"]),
        (["▁3", ".", "5", "▁is", "▁it", "."], ["3.5 is it."]),
        (["▁§", "."], ["§."]),
    ],
)
def test_sentences_end_at_full_stops_and_question_and_exclamation_marks(pieces, sentences):
    transcript = stitch(chunk(), spoken(*pieces))
    assert [sentence.text for sentence in transcript.sentences] == sentences
    assert [word for sentence in transcript.sentences for word in sentence.words] == list(
        transcript.words
    )


def test_a_sentence_lasts_from_its_first_word_to_its_last():
    hypothesis = timed(("▁a", 1, 2), ("▁b", 5, 2), (".", 9, 1), ("▁c", 20, 3))
    first, second = stitch(chunk(), hypothesis).sentences
    assert (first.start_seconds, first.end_seconds) == (0.08, 0.56)
    assert (second.start_seconds, second.end_seconds) == (1.6, 1.84)


def test_a_sentence_continues_across_chunks():
    whole = join(
        [stitch(chunk(8), spoken("▁half", "▁a")), stitch(chunk(8, 8.0), spoken("▁loaf", "."))]
    )
    assert [sentence.text for sentence in whole.sentences] == ["half a loaf."]


# confidence


def test_confidence_is_the_geometric_mean_of_the_models_probabilities():
    transcript = stitch(chunk(), weighed(("▁hel", 0.9), ("lo", 0.4), (".", 0.6), ("▁you", 0.25)))
    assert [word.confidence for word in transcript.words] == pytest.approx(
        [(0.9 * 0.4 * 0.6) ** (1 / 3), 0.25]
    )


@settings(max_examples=10)
@given(seed=SEEDS)
def test_confidence_follows_the_probabilities_and_stays_between_0_and_1(seed):
    probabilities = np.random.default_rng(seed).uniform(1e-6, 1, 20).tolist()
    transcript = stitch(
        chunk(), weighed(*((f"▁{index}", p) for index, p in enumerate(probabilities)))
    )
    assert [word.confidence for word in transcript.words] == pytest.approx(probabilities)
    assert all(0 <= word.confidence <= 1 for word in transcript.words)


def test_the_mean_log_probability_is_that_of_the_tokens_and_0_of_none():
    transcript = stitch(chunk(), weighed(("▁a", 0.5), ("b", 0.5), ("▁c", 0.125)))
    assert mean_logprob(transcript.words) == pytest.approx(math.log(0.5 * 0.5 * 0.125) / 3)
    assert mean_logprob([]) == 0.0


# join


def test_joined_partials_are_one_transcript_in_their_order():
    first = Transcript(
        stitch(chunk(8), spoken("▁a")).words, 8.0, FRAME_SECONDS, (Notice("noisy", "x"),)
    )
    second = replace(stitch(chunk(4, 8.0), spoken()), seconds=4.0)
    third = Transcript(
        stitch(chunk(2.5, 12.0), spoken("▁b")).words,
        2.5,
        FRAME_SECONDS,
        (Notice("cut", "x"), Notice("odd", "x")),
    )
    whole = join([first, second, third])
    assert whole.text == "a b"
    assert whole.words == (*first.words, *third.words)
    assert whole.seconds == 14.5
    assert whole.frame_seconds == FRAME_SECONDS
    assert [warning.code for warning in whole.warnings] == ["noisy", "cut", "odd"]


def test_one_partial_joins_to_itself():
    alone = stitch(chunk(3), spoken("▁a", "▁b"))
    assert join([alone]) == alone


def test_silence_is_an_empty_transcript():
    transcript = stitch(chunk(3), spoken())
    assert (transcript.text, transcript.words, transcript.sentences) == ("", (), ())


# sentences as they are complete


def partials_of(
    pieces: list[str], cuts: list[int], channels: int | None = None
) -> list[Transcript]:
    """Pieces cut into partials, with alternating channels."""
    parts = [pieces[begin:end] for begin, end in pairwise([0, *cuts, len(pieces)])]
    return [
        stitch(
            replace(
                chunk(3600.0, 3600.0 * index),
                channel=None if channels is None else 1 + index % channels,
            ),
            spoken(*part),
        )
        for index, part in enumerate(parts)
    ]


def streamed(partials: list[Transcript]) -> list[Sentence]:
    so_far = SentencesSoFar()
    detokenised = [sentence for partial in partials for sentence in so_far.add(partial)]
    return [*detokenised, *so_far.rest()]


@pytest.mark.parametrize("channels", [None, 2])
@settings(max_examples=12)
@given(seed=SEEDS)
def test_streamed_sentences_are_those_of_the_whole(seed, channels):
    chance = random.Random(seed)  # noqa: S311  # the same every time
    pieces = chance.choices(["▁a", "▁b", "c", ".", "?", "▁d", "!"], k=300)
    cuts = sorted(chance.sample(range(1, 300), k=chance.randrange(12)))
    partials = partials_of(pieces, cuts, channels)
    detokenised = streamed(partials)
    if channels is not None:
        detokenised.sort(key=lambda sentence: sentence.start_seconds)
    assert tuple(detokenised) == join(partials).sentences


def test_a_sentence_is_streamed_as_soon_as_it_is_complete_and_no_sooner():
    so_far = SentencesSoFar()
    first, second, third = partials_of(["▁a", "▁b", "▁c", ".", "▁d", "▁e"], [2, 5])
    assert so_far.add(first) == ()
    assert [sentence.text for sentence in so_far.add(second)] == ["a b c."]
    assert so_far.add(third) == ()
    assert [sentence.text for sentence in so_far.rest()] == ["d e"]
    assert so_far.rest() == ()


@pytest.mark.parametrize("words", [999, 1000, 1001, 2500])
def test_a_text_without_full_stops_is_cut_into_sentences_of_a_thousand_words(words):
    partials = partials_of([f"▁w{number}" for number in range(words)], [700])
    whole = join(partials)
    assert MAX_SENTENCE_WORDS == 1000
    assert tuple(streamed(partials)) == whole.sentences
    lengths = [len(sentence.words) for sentence in whole.sentences]
    assert lengths == [1000] * (words // 1000) + [words % 1000] * bool(words % 1000)
    assert " ".join(sentence.text for sentence in whole.sentences) == whole.text


def test_ids_of_tokens_stay_with_their_words_and_bytes_keep_all_of_them():
    pieces = ["▁a", "▁", "<0xE2>", "<0x82>", "<0xAC>", "."]
    tokens = tuple(Token(piece, 3 * at, 1, -0.1, 10 + at) for at, piece in enumerate(pieces))
    first, second = stitch(chunk(), Hypothesis(tokens, FRAME_SECONDS)).words
    assert (first.text, [token.ids for token in first.tokens]) == ("a", [(10,)])
    assert second.text == "€."
    assert [number for token in second.tokens for number in token.ids] == [11, 12, 13, 14, 15]


def test_a_word_has_the_speech_probability_of_its_time():
    probabilities = np.array([0.25] * 50 + [0.75] * 50, dtype=np.float32)  # 1.6 s each
    spoken_chunk = replace(chunk(3.2, 5.0), frames=SpeechFrames(5.0, 0, probabilities))
    first, second = stitch(spoken_chunk, timed(("▁a", 2, 4), ("▁b", 30, 4))).words
    assert (first.speech_probability, second.speech_probability) == (0.25, 0.75)
    assert stitch(chunk(), timed(("▁a", 2, 4))).words[0].speech_probability is None
