"""Speakers of words, from turns and from similarities of voices."""

import numpy as np
import pytest

from parakeet_worker.formats import render
from parakeet_worker.recognition.similarities import SpeakerSimilarities
from parakeet_worker.recognition.speaker_labels import labelled
from parakeet_worker.recognition.transcript import SpeakerTurn, TimedToken, Transcript, Word


def word(text, start, end, channel=None):
    return Word(text, (TimedToken(text, start, end, 0.0),), channel)


def turn(speaker, start, end, confidence=0.9, channel=None):
    return SpeakerTurn(start, end, f"Speaker {speaker}", confidence, channel)


def diarized(words, turns, *similarities):
    return labelled(Transcript(tuple(words), seconds=10.0, turns=tuple(turns)), similarities)


def voice(*rows, confidences=(1.0, 1.0), channel=None):
    """Similarities to two speakers, one row each half second."""
    values = np.array(rows, dtype=np.float32)
    names = ("Speaker 1", "Speaker 2")
    return SpeakerSimilarities(values, 0.25, 0.5, names, confidences, channel)


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
    assert speakers(diarized([word("one", 0.0, 1.0)], [], voice([0.5, 0.5]))) == [None]


WORDS = [word("one", 0.0, 0.5), word("two", 0.5, 1.0), word("three", 1.0, 1.5)]


def test_in_overlapped_speech_a_word_has_the_speaker_of_its_voice():
    both = [turn(1, 0.0, 1.5), turn(2, 0.0, 1.5)]
    transcript = diarized(WORDS, both, voice([0.6, 0.4], [0.4, 0.6], [0.5, 0.4]))
    assert speakers(transcript) == ["Speaker 1", "Speaker 2", "Speaker 1"]
    assert all(each.speaker.overlap for each in transcript.words)


def test_a_voice_that_is_clearly_of_another_speaker_counts_more_than_the_turn():
    turns = [turn(1, 0.0, 1.5), turn(2, 3.0, 4.0)]
    transcript = diarized(WORDS, turns, voice([0.6, 0.2], [0.2, 0.6], [0.5, 0.55]))
    assert speakers(transcript) == ["Speaker 1", "Speaker 2", "Speaker 1"]
    assert not any(each.speaker.overlap for each in transcript.words)


def test_where_no_voice_was_compared_the_turn_counts():
    unknown = voice([0.2, 0.6], *[[float("nan")] * 2] * 5)
    transcript = diarized([word("one", 0.0, 0.5), word("two", 2.0, 2.5)], [turn(1, 0, 3)], unknown)
    assert speakers(transcript) == ["Speaker 2", "Speaker 1"]
    assert transcript.words[1].speaker.confidence == 0.9


def test_confidence_is_of_the_similarity_to_the_speaker_to_others_and_to_the_known_person():
    turns = [turn(1, 0.0, 1.5)]

    def confidences(*rows, **known):
        transcript = diarized(WORDS, turns, voice(*rows, **known))
        return [each.speaker.confidence for each in transcript.words]

    clear, close, low = confidences([0.6, 0.1], [0.6, 0.55], [0.25, 0.1])
    assert 1 > clear > 0.99
    assert 0.95 > close > 0.8 > low > 0.5
    known = confidences([0.6, 0.1], [0.6, 0.55], [0.25, 0.1], confidences=(0.5, 1.0))
    assert known == pytest.approx([clear / 2, close / 2, low / 2], abs=1e-4)


def test_each_channel_has_its_own_voices():
    words = [word("left", 0.0, 0.5, 1), word("right", 0.0, 0.5, 2)]
    turns = [turn(1, 0.0, 1.0, channel=1), turn(1, 0.0, 1.0, channel=2)]
    transcript = diarized(words, turns, voice([0.1, 0.6], channel=2), voice([0.6, 0.1], channel=1))
    assert speakers(transcript) == ["Speaker 1", "Speaker 2"]


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
