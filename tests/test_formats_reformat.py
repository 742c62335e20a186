"""Subtitles of an answer that is already there are those that a request for them gives."""

from dataclasses import replace
from typing import Any, get_args

import pytest
from pydantic import ValidationError

from parakeet_worker.errors import InvalidRequest
from parakeet_worker.formats import render
from parakeet_worker.formats.reformat import MAX_WORDS, TextFormat, rewrite
from parakeet_worker.options import Format
from parakeet_worker.recognition.transcript import TimedToken, Transcript, Word, join

TEXT_FORMATS = get_args(TextFormat)


def spoken(text: str, start: float, channel: int | None = None) -> Transcript:
    """Words of two tokens each, 0.4 s apart."""
    words = []
    for index, word in enumerate(text.split()):
        begins = round(start + 0.4 * index, 3)
        middle, ends = round(begins + 0.16, 3), round(begins + 0.32, 3)
        halves = (
            TimedToken(word[:1], begins, middle, -0.1),
            TimedToken(word[1:], middle, ends, -0.7),
        )
        words.append(Word(word, halves, channel))
    return Transcript(tuple(words), seconds=ends)


TALK = join(
    [
        spoken("Čaj & <káva>, prosím. Děkuji!", 0.24),
        spoken("Now a sentence that is much too long to be shown on one line of a subtitle.", 3.6),
        spoken("And one more hour later.", 4000.0),
    ]
)
CALL = join([spoken("Hello, who is it?", 0.5, 1), spoken("It is me.", 1.3, 2)])


def words_of(transcript: Transcript) -> Any:
    return render.verbose_document(transcript)["words"]


def test_the_formats_are_those_that_are_not_json():
    assert set(TEXT_FORMATS) == set(get_args(Format)) - {"json", "verbose_json", "rttm"}


@pytest.mark.parametrize("transcript", [TALK, CALL, Transcript(())], ids=["talk", "call", "none"])
@pytest.mark.parametrize("chosen", TEXT_FORMATS)
def test_words_of_an_answer_are_written_as_the_transcript_is(chosen, transcript):
    written = rewrite({"format": chosen, "words": words_of(transcript)})
    assert written == render.render(transcript, chosen)


def test_confidence_may_be_left_out():
    words = [{"word": "Hello.", "start": 1, "end": 1.5}]
    assert rewrite({"format": "text", "words": words}) == "Hello.\n"


GOOD: dict[str, Any] = {"word": "Hello.", "start": 1.0, "end": 1.5}


@pytest.mark.parametrize(
    ("broken", "field"),
    [
        ([], "body"),
        ({"format": "text", "words": [], "max_lines": 1}, "max_lines"),
        ({"format": "srt", "words": [], "max_lines": 9}, "max_lines"),
        ({"words": []}, "format"),
        ({"format": "srt"}, "words"),
        ({"format": "json", "words": []}, "format"),
        ({"format": "srt", "words": [], "text": "Hello."}, "text"),
        ({"format": "srt", "words": "Hello."}, "words"),
        ({"format": "srt", "words": [7]}, "words.0"),
        ({"format": "srt", "words": [{**GOOD, "word": ""}]}, "words.0.word"),
        ({"format": "srt", "words": [{**GOOD, "word": "a\n\nb"}]}, "words.0.word"),
        ({"format": "srt", "words": [{**GOOD, "start": -1.0}]}, "words.0.start"),
        ({"format": "srt", "words": [{**GOOD, "start": float("nan")}]}, "words.0.start"),
        ({"format": "srt", "words": [{**GOOD, "end": 0.5}]}, "words.0.end"),
        ({"format": "srt", "words": [GOOD, {**GOOD, "start": 0.5}]}, "words.1.start"),
        ({"format": "srt", "words": [{**GOOD, "speaker": 1}]}, "words.0.speaker"),
        ({"format": "srt", "words": [{**GOOD, "channel": 0}]}, "words.0.channel"),
    ],
)
def test_what_is_wrong_is_named(broken, field):
    with pytest.raises(InvalidRequest) as caught:
        rewrite(broken)
    assert caught.value.facts["field"] == field


def test_subtitles_are_written_within_limits():
    words = [{"word": "word", "start": 0.5 * at, "end": 0.5 * at + 0.4} for at in range(12)]
    short = rewrite({"format": "srt", "words": words, "max_cue_seconds": 1, "max_lines": 1})
    assert short.count("-->") == 6


def test_the_transcript_that_is_written_needs_nothing_but_words():
    shortened = replace(TALK, seconds=0.0, frame_seconds=0.01)
    for chosen in TEXT_FORMATS:
        assert render.render(shortened, chosen) == render.render(TALK, chosen)


@pytest.mark.parametrize(
    ("words", "field"),
    [
        ([5] * (MAX_WORDS + 1), "words"),
        ([{"word": "x" * 501, "start": 0, "end": 1}], "words.0.word"),
        ([{"word": "\ud800", "start": 0, "end": 1}], "words.0.word"),
        ([{"word": "a", "start": 0, "end": 1e300}], "words.0.end"),
        ([{"word": "a", "start": 0, "end": 10**400}], "words.0.end"),
        ([{"word": "a", "start": 0, "end": 1, "channel": 65}], "words.0.channel"),
        ([{"word": "a", "start": 0, "end": 1}] * 700 + [5], "words.700"),
        ([{str(index): 1 for index in range(100_000)}], "words.0"),
    ],
)
def test_every_length_count_and_number_has_a_bound(words, field):
    with pytest.raises(InvalidRequest) as raised:
        rewrite({"format": "srt", "words": words})
    assert raised.value.facts["field"] == field


def test_validation_ends_with_the_first_wrong_word():
    with pytest.raises(InvalidRequest) as raised:
        rewrite({"format": "srt", "words": [{"word": 1}] * 500})
    assert isinstance(raised.value.__cause__, ValidationError)
    assert raised.value.__cause__.error_count() == 3


def test_as_many_words_and_channels_as_are_allowed_are_written():
    words = [
        {"word": "a", "start": index, "end": index + 0.5, "channel": index % 64 + 1}
        for index in range(5000)
    ]
    assert rewrite({"format": "tsv", "words": words}).count("\n") > 64
