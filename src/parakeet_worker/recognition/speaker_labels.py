"""Words, speaker turns and similarities of voices to words with speakers."""

import math
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np

from parakeet_worker.recognition.similarities import SpeakerSimilarities, probabilities
from parakeet_worker.recognition.transcript import SpeakerLabel, SpeakerTurn, Transcript, Word

_NEIGHBOURS = 64
"""Turns that are searched around a word: more than can overlap it."""

# A word outside all turns has the speaker of the nearest one; its confidence is halved per second
# between them.
_HALVED_SECONDS = 1.0
# Added to the similarity of a speaker who is active in all of a word. With 0.05 to 0.1, of 16,522
# words of the tuning set between 225 and 239 have the wrong speaker; 396 by the turns alone, which
# are chance where speech overlaps: the recognised words are those of the louder voice.
# Where the number of speakers is right, 98.6 % are right, with a mean confidence of 98.6 %.
_ACTIVE_SIMILARITY = 0.075


def labelled(
    transcript: Transcript, similarities: Sequence[SpeakerSimilarities] = ()
) -> Transcript:
    """The transcript with a speaker for each word, if it has turns.

    A word has the speaker to whom its voice is most similar; without similarities in its channel
    or near it, the one who is active in most of it.
    """
    of_channels = {each.channel: each for each in similarities}
    words = list(transcript.words)
    for channel in {turn.channel for turn in transcript.turns}:
        indices = [index for index, word in enumerate(words) if word.channel == channel]
        turns = _Turns([turn for turn in transcript.turns if turn.channel == channel])
        labels = [turns.label(words[index]) for index in indices]
        if channel in of_channels and indices:
            of_channel = [words[index] for index in indices]
            labels = _by_voice(of_channel, labels, turns, of_channels[channel])
        for index, label in zip(indices, labels, strict=True):
            words[index] = replace(words[index], speaker=label)
    return replace(transcript, words=tuple(words))


def _by_voice(
    words: Sequence[Word],
    labels: Sequence[SpeakerLabel],
    turns: "_Turns",
    similarities: SpeakerSimilarities,
) -> list[SpeakerLabel]:
    """The labels with the speakers of the voices in the middle of the words."""
    middles = np.array([(word.start_seconds + word.end_seconds) / 2 for word in words])
    active = np.array([turns.shares(word, similarities.speakers) for word in words])
    scores = similarities.at(middles) + _ACTIVE_SIMILARITY * active
    chosen = scores.argmax(axis=1)
    own = probabilities(scores)[np.arange(len(words)), chosen]
    confidences = own * np.array(similarities.confidences)[chosen]
    return [
        label
        if math.isnan(confidence)
        else replace(label, name=similarities.speakers[number], confidence=round(confidence, 4))
        for label, number, confidence in zip(
            labels, chosen.tolist(), confidences.tolist(), strict=True
        )
    ]


class _Turns:
    """The turns of one channel, ordered by start."""

    def __init__(self, turns: Sequence[SpeakerTurn]) -> None:
        self._turns = sorted(turns, key=lambda turn: turn.start_seconds)
        self._starts = [turn.start_seconds for turn in self._turns]

    def label(self, word: Word) -> SpeakerLabel:
        """The speaker who is active in most of the word."""
        near = self._near(word)
        seconds = _seconds(word, near)
        if not seconds:
            return _nearest(word, near)
        name = max(seconds, key=lambda speaker: seconds[speaker])
        sure = max(
            turn.confidence for turn in near if turn.speaker == name and _shared(word, turn) > 0
        )
        share = seconds[name] / sum(seconds.values())
        overlap = _overlapping(seconds.values()) > (word.end_seconds - word.start_seconds) / 2
        return SpeakerLabel(name, round(sure * share, 4), overlap)

    def shares(self, word: Word, speakers: Sequence[str]) -> list[float]:
        """How much of the word's speech is of each speaker."""
        seconds = _seconds(word, self._near(word))
        total = sum(seconds.values()) or 1.0
        return [seconds.get(speaker, 0.0) / total for speaker in speakers]

    def _near(self, word: Word) -> Sequence[SpeakerTurn]:
        after = bisect_left(self._starts, word.end_seconds)
        return self._turns[max(0, after - _NEIGHBOURS) : after + 1]


def _seconds(word: Word, turns: Iterable[SpeakerTurn]) -> dict[str, float]:
    """How long each speaker is active in the word."""
    seconds: dict[str, float] = {}
    for turn in turns:
        shared = _shared(word, turn)
        if shared > 0:
            seconds[turn.speaker] = seconds.get(turn.speaker, 0.0) + shared
    return seconds


def _overlapping(seconds: Iterable[float]) -> float:
    """How long the second most active speaker is active."""
    return ([0.0, *sorted(seconds)])[-2] if seconds else 0.0


def _shared(word: Word, turn: SpeakerTurn) -> float:
    end = min(word.end_seconds, turn.end_seconds)
    return end - max(word.start_seconds, turn.start_seconds)


def _nearest(word: Word, turns: Sequence[SpeakerTurn]) -> SpeakerLabel:
    turn = min(turns, key=lambda turn: -_shared(word, turn))
    away = -_shared(word, turn)
    confidence = turn.confidence * 0.5 ** (1.0 + away / _HALVED_SECONDS)
    return SpeakerLabel(turn.speaker, round(confidence, 4))
