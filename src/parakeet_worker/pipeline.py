"""The flow on one screen: a request in, stretches of its transcript out."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Generator, Iterator
from contextlib import aclosing, closing, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from parakeet_worker import sources, threads
from parakeet_worker.audio.all_tracks import Audio, decoding
from parakeet_worker.audio.decoding import SAMPLE_RATE
from parakeet_worker.batcher import Batcher
from parakeet_worker.errors import InvalidRequest, OutOfMemory
from parakeet_worker.options import Vad
from parakeet_worker.recognition import chunks, transcript
from parakeet_worker.recognition.chunks import Segment
from parakeet_worker.recognition.recognizer import Hearing
from parakeet_worker.recognition.room import AudioMemory, Room
from parakeet_worker.recognition.transcript import Transcript
from parakeet_worker.request import Request
from parakeet_worker.scratch import Scratch, scratch_of
from parakeet_worker.settings import Settings
from parakeet_worker.stopwatch import Stopwatch
from parakeet_worker.vad.base import Detector

MAX_FULL_ATTENTION_SECONDS = 24 * 60.0
"""What the model's authors give as the longest recording that it hears in one piece."""

_PIECES_AHEAD = 16
"""Of one recording, at the least, where the engine is slow: enough to fill its batches."""


@dataclass(frozen=True, slots=True, eq=False)
class Pipeline:
    """What every request needs; made once by `worker`, shared by all requests."""

    settings: Settings
    batcher: Batcher
    ffmpeg: Path
    detector: Callable[[Vad], Detector]
    """A new listener for a recording."""
    memory: AudioMemory = field(init=False)
    """Of all recordings' samples at the engine."""
    scratch: Scratch = field(init=False)
    """Of all recordings' files."""
    decoders: asyncio.Semaphore = field(init=False)
    """One place for each recording that is decoded."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "decoders", asyncio.Semaphore(self.settings.decoders))
        object.__setattr__(self, "scratch", scratch_of(self.settings))
        object.__setattr__(self, "memory", AudioMemory(self.settings.audio_memory_bytes))

    async def stretches(
        self, request: Request, watch: Stopwatch
    ) -> AsyncGenerator[Transcript, None]:
        """The transcript, stretch by stretch, each as soon as it and those before it are done.

        Raises `RequestError`, `TransientError` or `EngineError`.
        """
        async with self.scratch.made() as folder:
            path = await watch.timed("fetch", self._fetched(request, folder))
            with _room_for(request):
                async with aclosing(self._heard(path, request, watch)) as heard:
                    async for stretch in heard:
                        yield stretch

    async def _heard(
        self, path: Path, request: Request, watch: Stopwatch
    ) -> AsyncGenerator[Transcript, None]:
        """The stretches of a file."""
        decoded = self._decoding(path, request)
        async with aclosing(self._pieces(decoded, request)) as pieces:
            hearing = Hearing(self.batcher, watch, request.language, room=self._room())
            with closing(hearing):
                while segment := await watch.timed("decode", anext(pieces, None)):
                    hearing.submit(segment)
                    await hearing.advance()
                    while hearing.ready:
                        yield await hearing.next_stretch()
                while hearing:
                    yield await hearing.next_stretch()
            yield Transcript(
                (),
                seconds=decoded.heard_seconds,
                warnings=decoded.warnings,
                origin=decoded.origin,
            )

    async def _fetched(self, request: Request, folder: Path) -> Path:
        """Into the folder, once there is room for the most that it may be."""
        size = sources.max_bytes(request, self.settings.max_audio_bytes)
        async with self.scratch.reserved(size):
            return await sources.fetch(request, folder, self.settings)

    async def _pieces(self, decoded: Audio, request: Request) -> AsyncGenerator[Segment, None]:
        """Cut in a thread, once there is a place for another decoder, until the last is there."""
        async with self.decoders:
            produced = threads.produced(self._cut(decoded, request), decoded.stop)
            async with aclosing(produced) as pieces:
                async for piece in pieces:
                    yield piece

    def _cut(self, decoded: Audio, request: Request) -> Generator[Segment, None, None]:
        """Decoded, listened to and cut: what a thread of the recording's own does."""
        with closing(decoded.stretches()) as samples:
            yield from chunks.split(
                samples,
                partial(self.detector, request.vad),
                max_seconds=self.settings.segment_seconds,
                start_seconds=request.clip.start_seconds,
                whole=request.attention == "full",
            )

    def _room(self) -> Room:
        """How much of one recording may be at the engine: enough for two of its batches."""
        least_seconds = _PIECES_AHEAD * self.settings.segment_seconds
        batches_seconds = 2 * self.batcher.load.budget_seconds
        return Room(self.memory, samples=round(SAMPLE_RATE * max(least_seconds, batches_seconds)))

    def _decoding(self, path: Path, request: Request) -> Audio:
        longest = self.settings.max_audio_seconds
        if request.attention == "full":
            longest = min(longest, MAX_FULL_ATTENTION_SECONDS)
        return decoding(
            path,
            ffmpeg=self.ffmpeg,
            max_seconds=longest,
            timeout_seconds=self.settings.decode_timeout_seconds,
            clip=request.clip,
            channels=request.channels,
            track=request.track,
            on_damage=request.on_damage,
            memory_bytes=self.settings.decoder_memory_bytes,
            headerless=request.headerless,
        )

    async def transcribe(self, request: Request, watch: Stopwatch | None = None) -> Transcript:
        """The whole transcript; raises what `stretches` does."""
        async with aclosing(self.stretches(request, watch or Stopwatch())) as stretches:
            found = [stretch async for stretch in stretches]
        return await threads.computed(transcript.join, found)


@contextmanager
def _room_for(request: Request) -> Iterator[None]:
    """Who asks for a recording in one piece may ask for more than there is room for."""
    try:
        yield
    except OutOfMemory as failure:
        if request.attention != "full":
            raise
        reason = f"{failure.sentence} in one pass; leave it out to have it cut at pauses"
        raise InvalidRequest("attention", reason) from failure
