"""Every audio track of a recording side by side, as if each was a channel."""

from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from parakeet_worker.audio.decoding import SAMPLE_RATE, BlockSource, Decoding, Origin
from parakeet_worker.audio.plain_samples import PlainDecoding, PlainSamples
from parakeet_worker.audio.tracks import MAX_TRACKS, AudioTrack, Track, skipped
from parakeet_worker.engine.base import Samples
from parakeet_worker.errors import (
    AudioEmpty,
    AudioTooShort,
    AudioUndecodable,
    ClipOutside,
    InvalidRequest,
    RequestError,
)
from parakeet_worker.notices import Notice
from parakeet_worker.options import ALL_TRACKS

# What may be wrong with one track, while there are others.
_OF_ONE_TRACK = (AudioEmpty, AudioTooShort, AudioUndecodable, ClipOutside)


class AllTracks(BlockSource):
    """All tracks of one recording as samples in columns, each decoded by an ffmpeg of its own.

    It is used like a `Decoding`; a track that ends before the others is followed by silence, and
    one that cannot be decoded is silent, with a warning.
    """

    def __init__(self, make: Callable[[int | None], Decoding]) -> None:
        """`make` gives the decoding of a track."""
        self._make = make
        self._decodings = [make(None)]
        self._numbers: list[int] = []
        self._tracks: tuple[AudioTrack, ...] = ()
        self._failures: dict[int, RequestError] = {}
        self._stopped = False
        self._yielded = 0

    @property
    def yielded_seconds(self) -> float:
        """How much was yielded."""
        return self._yielded / SAMPLE_RATE

    @property
    def warnings(self) -> tuple[Notice, ...]:
        """Warnings of all tracks with their numbers, and tracks that could not be decoded."""
        warnings = [
            replace(notice, message=f"track {number}: {notice.message}")
            for number, decoding in zip(self._numbers, self._decodings, strict=False)
            for notice in decoding.warnings
        ]
        failed = [
            Notice("track_skipped", f"track {number}: {error}", damage=True)
            for number, error in self._failures.items()
        ]
        return (*skipped(self._tracks), *warnings, *failed)

    @property
    def origin(self) -> Origin:
        """How the samples were made."""
        gaps = [decoding.origin.gap_seconds for decoding in self._decodings]
        count = len(self._tracks)
        return Origin(track=0, tracks=count, channels=count, gap_seconds=max(gaps))

    def stop(self) -> None:
        """End `blocks` without an error; callable from any thread."""
        self._stopped = True
        for decoding in self._decodings:
            decoding.stop()

    def blocks(self) -> Generator[Samples, None, None]:
        """Yield (N, tracks); raises as `Decoding.blocks` does if every track fails."""
        self._find()
        with ExitStack() as stack:
            running = {
                number - 1: stack.enter_context(closing(self._of(number, decoding)))
                for number, decoding in zip(self._numbers, self._decodings, strict=True)
            }
            for block in _side_by_side(running, len(self._tracks)):
                self._yielded += len(block)
                yield block
        if self._failures and len(self._failures) == len(self._numbers):
            raise next(iter(self._failures.values()))

    def _find(self) -> None:
        """List the tracks, using the decoding of the default one."""
        (usual,) = self._decodings
        try:
            with closing(usual.blocks()) as blocks:
                next(blocks, None)
        except _OF_ONE_TRACK:
            # It may end before the clip or be empty, while another track is not.
            if not any(track.decodable for track in usual.tracks):
                raise
        count = len(usual.tracks)
        if count > MAX_TRACKS:
            reason = f"the recording has {count} tracks, at most {MAX_TRACKS} allowed"
            raise InvalidRequest("track", reason)
        self._tracks = usual.tracks
        self._numbers = [track.number for track in usual.tracks if track.decodable]
        self._decodings = [self._make(number) for number in self._numbers]
        if self._stopped:
            self.stop()

    def _of(self, number: int, decoding: Decoding) -> Generator[Samples, None, None]:
        try:
            yield from decoding.blocks()
        except _OF_ONE_TRACK as error:
            self._failures[number] = error


def _side_by_side(
    running: dict[int, Generator[Samples, None, None]], columns_count: int
) -> Iterator[Samples]:
    """Blocks of tracks in their columns, of equal length; those that have ended are silent."""
    waiting: dict[int, Samples] = {}
    while True:
        for index, track in list(running.items()):
            if index not in waiting:
                block = next(track, None)
                if block is None:
                    del running[index]
                else:
                    waiting[index] = block
        if not waiting:
            return
        count = min(len(samples) for samples in waiting.values())
        columns = np.zeros((count, columns_count), dtype=np.float32)
        for index, samples in list(waiting.items()):
            columns[:, index] = samples[:count]
            if len(samples) > count:
                waiting[index] = samples[count:]
            else:
                del waiting[index]
        yield columns


Audio: TypeAlias = Decoding | AllTracks | PlainDecoding


def decoding(path: Path, *, track: Track = None, **options: Any) -> Audio:
    """The decoding of the requested track, or of all; without ffmpeg where none is required."""
    if track in (None, 1):
        plain = PlainSamples.of(path, options.get("headerless"))
        if plain is not None:
            known = {name: options[name] for name in PlainDecoding.OPTIONS if name in options}
            return PlainDecoding(plain, **known)
    if track != ALL_TRACKS:
        return Decoding(path, track=track, **options)

    def make(number: int | None) -> Decoding:
        return Decoding(path, track=number, **options)

    return AllTracks(make)
