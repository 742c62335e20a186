"""Words and speaker turns to words with speakers."""

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import replace

from parakeet_worker.recognition.transcript import SpeakerLabel, SpeakerTurn, Transcript, Word

_NEIGHBOURS = 64
"""Turns that are searched around a word: more than can overlap it."""

# A word outside all turns has the speaker of the nearest one; its confidence is halved per second
# between them.
_HALVED_SECONDS = 1.0


def labelled(transcript: Transcript) -> Transcript:
    """The transcript with a speaker for each word, if it has turns."""
    if not transcript.turns:
        return transcript
    by_channel = {
        channel: _Turns([turn for turn in transcript.turns if turn.channel == channel])
        for channel in {turn.channel for turn in transcript.turns}
    }
    words = tuple(
        by_channel[word.channel].labelled(word) if word.channel in by_channel else word
        for word in transcript.words
    )
    return replace(transcript, words=words)


class _Turns:
    """The turns of one channel, ordered by start."""

    def __init__(self, turns: Sequence[SpeakerTurn]) -> None:
        self._turns = sorted(turns, key=lambda turn: turn.start_seconds)
        self._starts = [turn.start_seconds for turn in self._turns]

    def labelled(self, word: Word) -> Word:
        """The word, labelled with the speaker who is active in most of it."""
        after = bisect_left(self._starts, word.end_seconds)
        near = self._turns[max(0, after - _NEIGHBOURS) : after + 1]
        seconds: dict[str, float] = {}
        confidence: dict[str, float] = {}
        for turn in near:
            shared = _shared(word, turn)
            if shared > 0:
                seconds[turn.speaker] = seconds.get(turn.speaker, 0.0) + shared
                sure = confidence.get(turn.speaker, 0.0)
                confidence[turn.speaker] = max(sure, turn.confidence)
        if not seconds:
            return replace(word, speaker=_nearest(word, near))
        name = max(seconds, key=lambda speaker: seconds[speaker])
        share = seconds[name] / sum(seconds.values())
        length = word.end_seconds - word.start_seconds
        overlap = _overlapping(seconds.values()) > length / 2
        return replace(
            word, speaker=SpeakerLabel(name, round(confidence[name] * share, 4), overlap)
        )


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
