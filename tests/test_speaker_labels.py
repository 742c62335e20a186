"""Speakers of words, from turns alone."""

import pytest

from parakeet_worker.formats import render
from parakeet_worker.recognition.speaker_labels import labelled
from parakeet_worker.recognition.transcript import SpeakerTurn, TimedToken, Transcript, Word


def word(text, start, end, channel=None):
    return Word(text, (TimedToken(text, start, end, 0.0),), channel)


def turn(speaker, start, end, confidence=0.9, channel=None):
    return SpeakerTurn(start, end, f"Speaker {speaker}", confidence, channel)


def diarized(words, turns):
    return labelled(Transcript(tuple(words), seconds=10.0, turns=tuple(turns)))


TWO = diarized(
    [
        word("One", 0.0, 0.5),
        word("two.", 0.6, 1.0),
        word("Three", 1.1, 1.6),
        word("four.", 1.7, 2.0),
    ],
    [turn(1, 0.0, 1.3), turn(2, 1.3, 2.5)],
)


def speakers(transcript):
    return [each.speaker and each.speaker.name for each in transcript.words]


def test_a_word_has_the_speaker_of_most_of_it():
    assert speakers(TWO) == ["Speaker 1", "Speaker 1", "Speaker 2", "Speaker 2"]


def test_confidence_is_that_of_the_turn_times_its_share_of_the_word():
    labels = [each.speaker.confidence for each in TWO.words]
    assert labels == pytest.approx([0.9, 0.9, 0.9 * 0.6, 0.9])


def test_a_word_outside_all_turns_has_the_nearest_speaker_and_less_confidence():
    transcript = diarized(
        [word("near", 2.0, 2.2), word("far", 8.0, 8.4)], [turn(1, 0.0, 1.0), turn(2, 2.4, 3.0)]
    )
    assert speakers(transcript) == ["Speaker 2", "Speaker 2"]
    near, far = (each.speaker.confidence for each in transcript.words)
    assert 0.5 > near > far > 0


def test_overlap_is_marked_where_it_covers_most_of_a_word():
    transcript = diarized(
        [word("both", 0.0, 1.0), word("one", 1.0, 2.0)], [turn(1, 0.0, 3.0), turn(2, 0.2, 1.2)]
    )
    assert [each.speaker.overlap for each in transcript.words] == [True, False]


def test_without_turns_words_have_no_speaker():
    assert speakers(diarized([word("one", 0.0, 1.0)], [])) == [None]


def test_each_channel_has_its_own_turns():
    transcript = diarized(
        [word("left", 0.0, 1.0, 1), word("right", 0.0, 1.0, 2), word("none", 0.0, 1.0, 3)],
        [turn(1, 0.0, 1.0, channel=1), turn(2, 0.0, 1.0, channel=2)],
    )
    assert speakers(transcript) == ["Speaker 1", "Speaker 2", None]


def test_sentences_and_text_break_at_turns():
    transcript = diarized(
        [word("one", 0.0, 0.5), word("two", 0.5, 1.0), word("three.", 1.0, 1.5)],
        [turn(1, 0.0, 0.5), turn(2, 0.5, 1.5)],
    )
    assert [sentence.text for sentence in transcript.sentences] == ["one", "two three."]
    assert transcript.text == "Speaker 1: one\nSpeaker 2: two three."


def test_words_segments_and_times_carry_the_speaker():
    document = render.verbose_document(TWO)
    assert document["words"][2]["speaker"] == "Speaker 2"
    assert document["words"][2]["speaker_confidence"] == pytest.approx(0.54)
    assert [segment["speaker"] for segment in document["segments"]] == ["Speaker 1", "Speaker 2"]
    timed = render.json_document(TWO, timestamp=True)["timestamps"]
    assert timed["word"][0]["speaker"] == timed["segment"][0]["speaker"] == "Speaker 1"


def test_subtitles_and_tables_name_the_speaker():
    assert "[Speaker 1] One two.\n\n" in render.srt(TWO)
    assert "<v Speaker 2>Three four.\n\n" in render.vtt(TWO)
    assert render.tsv(TWO).splitlines() == [
        "start\tend\tspeaker\ttext",
        "0\t1000\tSpeaker 1\tOne two.",
        "1100\t2000\tSpeaker 2\tThree four.",
    ]


def test_rttm_has_a_line_for_each_turn():
    assert render.rttm(TWO).splitlines() == [
        "SPEAKER recording 1 0.000 1.300 <NA> <NA> Speaker_1 0.9000 <NA>",
        "SPEAKER recording 1 1.300 1.200 <NA> <NA> Speaker_2 0.9000 <NA>",
    ]
