"""All channels of a recording: blocks of samples to speaker turns."""

from collections.abc import Generator, Iterable

import numpy as np

from parakeet_worker.engine.base import Samples
from parakeet_worker.notices import Notice
from parakeet_worker.options import SpeakerCount
from parakeet_worker.recognition.transcript import SpeakerTurn
from parakeet_worker.speakers.diarization import Diarization, WindowQueue


class RecordingDiarization:
    """Diarizes each channel on its own; speakers are numbered through all channels."""

    def __init__(
        self, networks: WindowQueue, count: SpeakerCount, start_seconds: float = 0.0
    ) -> None:
        """`start_seconds` is the time of the first sample."""
        self._networks = networks
        self._count = count
        self._start_seconds = start_seconds
        self._channels: list[Diarization] = []
        self._separate = False
        self.turns: tuple[SpeakerTurn, ...] = ()
        self.warnings: tuple[Notice, ...] = ()

    def observed(self, blocks: Iterable[Samples]) -> Generator[Samples, None, None]:
        """The same blocks, (N,) or (N, channels), diarized as they pass; at the end all turns."""
        try:
            for block in blocks:
                self._feed(block)
                yield block
            self._finish()
        finally:
            for channel in self._channels:
                channel.close()

    def _feed(self, block: Samples) -> None:
        self._separate = block.ndim > 1
        columns = [block] if block.ndim == 1 else list(block.T)
        while len(self._channels) < len(columns):
            self._channels.append(Diarization(self._networks))
        for channel, column in zip(self._channels, columns, strict=True):
            channel.feed(np.ascontiguousarray(column))

    def _finish(self) -> None:
        turns: list[SpeakerTurn] = []
        warnings: list[Notice] = []
        named = 0
        for number, channel in enumerate(self._channels, start=1):
            activity = channel.finish(self._count, self._start_seconds)
            place = number if self._separate else None
            turns += [
                SpeakerTurn(
                    turn.start_seconds,
                    turn.end_seconds,
                    f"Speaker {named + turn.speaker + 1}",
                    turn.confidence,
                    place,
                )
                for turn in activity.turns()
            ]
            named += activity.speakers
            if activity.speakers < self._count.min and self._count.min > 1:
                warnings.append(_fewer(activity.speakers, self._count.min, place))
        self.turns = tuple(sorted(turns, key=lambda turn: turn.start_seconds))
        self.warnings = tuple(warnings)


def _fewer(speakers: int, least: int, channel: int | None) -> Notice:
    where = "" if channel is None else f" in channel {channel}"
    return Notice("fewer_speakers", f"{speakers} of at least {least} speakers were found{where}")
