"""All channels of a recording: blocks of samples to speaker turns."""

import itertools
from collections.abc import Sequence
from concurrent.futures import CancelledError
from dataclasses import dataclass, replace
from threading import Event

import numpy as np

from parakeet_worker import threads
from parakeet_worker.engine.base import Samples
from parakeet_worker.notices import Notice
from parakeet_worker.options import SpeakerCount
from parakeet_worker.recognition.similarities import SpeakerSimilarities
from parakeet_worker.recognition.transcript import SpeakerTurn
from parakeet_worker.speakers import known as known_voices
from parakeet_worker.speakers.diarization import Activity, Diarization, WindowQueue
from parakeet_worker.speakers.known import Voice


@dataclass(frozen=True, slots=True)
class Diarized:
    """The speakers of all channels."""

    turns: tuple[SpeakerTurn, ...]
    """Ordered by start."""
    similarities: tuple[SpeakerSimilarities, ...]
    """One per channel."""


class RecordingDiarization:
    """Diarizes each channel on its own; speakers are numbered through all channels."""

    def __init__(
        self,
        networks: WindowQueue,
        count: SpeakerCount,
        start_seconds: float = 0.0,
        *,
        deferred: bool = False,
    ) -> None:
        """`start_seconds` is the time of the first sample; `deferred` computes after `start`."""
        self._closed = False
        self._started = Event()
        if not deferred:
            self._started.set()
        self._networks = networks
        self._count = count
        self._start_seconds = start_seconds
        self._channels: list[Diarization] = []
        self._separate = False
        self._activities: list[Activity] = []
        self.warnings: tuple[Notice, ...] = ()

    def start(self) -> None:
        """Compute from now on; callable from any thread."""
        self._started.set()

    def feed(self, block: Samples) -> None:
        """The next samples, (N,) or (N, channels); blocks while too many windows are queued."""
        self._check()
        self._separate = block.ndim > 1
        columns = [block] if block.ndim == 1 else list(block.T)
        while len(self._channels) < len(columns):
            self._channels.append(Diarization(self._networks, self._started))
        # The networks run in a thread of their own.
        with threads.SLOTS.released():
            for channel, column in zip(self._channels, columns, strict=True):
                channel.feed(np.ascontiguousarray(column))

    def finish(self) -> None:
        """Wait for the networks, and cluster each channel, which may take seconds."""
        self._check()
        warnings: list[Notice] = []
        for number, channel in enumerate(self._channels, start=1):
            with threads.SLOTS.released():
                activity = channel.finish(self._count, self._start_seconds)
            self._activities.append(activity)
            if activity.speakers < self._count.min and self._count.min > 1:
                place = number if self._separate else None
                warnings.append(_fewer(activity.speakers, self._count.min, place))
        self.warnings = tuple(warnings)

    def _check(self) -> None:
        if self._closed:
            raise CancelledError

    def close(self) -> None:
        """Cancel windows that are queued; callable from any thread, ends `feed` and `finish`."""
        self._closed = True
        for channel in tuple(self._channels):
            channel.close()
        self._started.set()

    def identified(self, voices: Sequence[Voice] = ()) -> Diarized:
        """At the end of the recording, with the names of known speakers; others are numbered."""
        turns: list[SpeakerTurn] = []
        similarities: list[SpeakerSimilarities] = []
        unknown = itertools.count(1)
        for number, activity in enumerate(self._activities, start=1):
            known = known_voices.identified(activity.centroids, voices)
            labels = [each.name if each else f"Speaker {next(unknown)}" for each in known]
            certain = [each.confidence if each else 1.0 for each in known]
            channel = number if self._separate else None
            similarities.append(
                replace(
                    activity.similarities,
                    speakers=tuple(labels),
                    confidences=tuple(certain),
                    channel=channel,
                )
            )
            turns += [
                SpeakerTurn(
                    turn.start_seconds,
                    turn.end_seconds,
                    labels[turn.speaker],
                    round(turn.confidence * certain[turn.speaker], 4),
                    channel,
                )
                for turn in activity.turns()
            ]
        turns.sort(key=lambda turn: turn.start_seconds)
        return Diarized(tuple(turns), tuple(similarities))


def _fewer(speakers: int, least: int, channel: int | None) -> Notice:
    where = "" if channel is None else f" in channel {channel}"
    return Notice("fewer_speakers", f"{speakers} of at least {least} speakers were found{where}")
