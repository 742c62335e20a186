"""The whole flow: a request to partial transcripts."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import (
    AsyncExitStack,
    aclosing,
    asynccontextmanager,
    closing,
    contextmanager,
)
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from parakeet_worker import sources, threads
from parakeet_worker.audio.decoding import SAMPLE_RATE
from parakeet_worker.batcher import Batcher
from parakeet_worker.errors import InvalidRequest, OutOfMemory, SetupError
from parakeet_worker.ingest.cutting import Cutting, Ingest, InThread
from parakeet_worker.ingest.processes import InProcess, Processes
from parakeet_worker.options import Vad
from parakeet_worker.recognition import speaker_labels, transcript
from parakeet_worker.recognition.audio_budget import AudioBudget, AudioShare
from parakeet_worker.recognition.chunks import Chunk
from parakeet_worker.recognition.recognizer import Recognizer
from parakeet_worker.recognition.transcript import LastPartial, Transcript
from parakeet_worker.request import Request
from parakeet_worker.scratch import Scratch, scratch_of
from parakeet_worker.settings import Settings
from parakeet_worker.stopwatch import Stopwatch
from parakeet_worker.upcoming import Upcoming
from parakeet_worker.vad.base import Detector

if TYPE_CHECKING:
    from parakeet_worker.speakers.diarization import WindowQueue
    from parakeet_worker.speakers.known import Voice
    from parakeet_worker.speakers.recording import RecordingDiarization

MAX_FULL_ATTENTION_SECONDS = 24 * 60.0
"""Longest recording for full attention, according to the model's authors."""

_MIN_CHUNKS_AHEAD = 16
"""Chunks of one recording at the engine, at least: enough to fill its batches."""


@dataclass(frozen=True, slots=True, eq=False)
class Pipeline:
    """The parts that all requests share; built once by `worker`."""

    settings: Settings
    batcher: Batcher
    ffmpeg: Path
    detector: Callable[[Vad], Detector]
    """Creates a detector for one channel of a recording."""
    speaker_networks: Callable[[], "WindowQueue"] | None = None
    """Returns the networks of speaker diarization, which are loaded when they are first needed."""
    processes: Processes | None = None
    """Processes that decode and cut; without, threads do."""
    audio_budget: AudioBudget = field(init=False)
    """Limit of all recordings' samples at the engine."""
    scratch: Scratch = field(init=False)
    """Disk space for all recordings' files."""
    decoders: asyncio.Semaphore = field(init=False)
    """Limits the recordings that are decoded concurrently."""
    reference_decoders: asyncio.Semaphore = field(init=False)
    """Limits the references of known speakers that are decoded concurrently."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "decoders", asyncio.Semaphore(self.settings.decoders))
        limit = asyncio.Semaphore(self.settings.decoders)
        object.__setattr__(self, "reference_decoders", limit)
        object.__setattr__(self, "scratch", scratch_of(self.settings))
        object.__setattr__(self, "audio_budget", AudioBudget(self.settings.audio_memory_bytes))

    async def partials(
        self, request: Request, watch: Stopwatch
    ) -> AsyncGenerator[Transcript, None]:
        """Yield partial transcripts in order, each as soon as it is complete.

        Raises `RequestError`, `TransientError` or `EngineError`.
        """
        async with self.scratch.made() as folder:
            path = await watch.timed("fetch", self._fetched(request, folder))
            with _memory_errors_translated(request):
                async with aclosing(self._transcribed(path, request, watch)) as partials:
                    async for partial in partials:
                        yield partial

    async def _transcribed(
        self, path: Path, request: Request, watch: Stopwatch
    ) -> AsyncGenerator[Transcript, None]:
        """The partials of a file; the last one has no words, but the facts of the recording."""
        networks = await self._networks(request)
        diarization = _diarization(networks, request)
        ingest = self._ingest(path, request, diarization)
        async with AsyncExitStack() as stack:
            voices = await stack.enter_async_context(self._voices(networks, request))
            chunks = await stack.enter_async_context(aclosing(self._chunks(ingest)))
            share = self._audio_share()
            recognizer = Recognizer(self.batcher, watch, request.language, share=share)
            stack.enter_context(closing(recognizer))
            upcoming = await stack.enter_async_context(aclosing(Upcoming(chunks)))
            while True:
                awaited = recognizer.awaited
                if diarization is not None and recognizer and not awaited:
                    diarization.start()  # the words require another chunk or the end
                if await watch.timed("decode", upcoming.wait(awaited)):
                    chunk = upcoming.take()
                    if chunk is None:
                        break
                    if voices.done():
                        voices.result()  # raises, for an unusable reference
                    recognizer.submit(chunk)
                await recognizer.advance()
                while recognizer.ready:
                    partial = await recognizer.next_partial()
                    if diarization is not None:
                        diarization.start()  # the first words are known
                    yield partial
            while recognizer:
                yield await recognizer.next_partial()
            decoded = ingest.decoded
            diarized = diarization.identified(await voices) if diarization else None
            yield LastPartial(
                (),
                seconds=decoded.seconds,
                warnings=(*decoded.warnings, *(diarization.warnings if diarization else ())),
                origin=decoded.origin,
                turns=diarized.turns if diarized else (),
                similarities=diarized.similarities if diarized else (),
            )

    async def _fetched(self, request: Request, folder: Path) -> Path:
        """Fetch the audio into `folder`, once its maximum size is reserved."""
        size = sources.max_bytes(request, self.settings.max_audio_bytes)
        async with self.scratch.reserved(size):
            return await sources.fetch(request, folder, self.settings)

    async def _networks(self, request: Request) -> "WindowQueue | None":
        """The networks if the request requests speakers. Raises `InvalidRequest`."""
        if request.speakers is None:
            return None
        if self.speaker_networks is None:
            raise InvalidRequest("speakers", "this worker does not label speakers")
        try:
            return await threads.computed(self.speaker_networks)
        except SetupError as failure:
            reason = f"this worker cannot label speakers: {failure.sentence}"
            raise InvalidRequest("speakers", reason) from failure

    @asynccontextmanager
    async def _voices(
        self, networks: "WindowQueue | None", request: Request
    ) -> "AsyncGenerator[asyncio.Task[tuple[Voice, ...]], None]":
        """The known speakers' voices, computed while the recording is transcribed."""

        async def compute() -> "tuple[Voice, ...]":
            if networks is None or not request.known_speakers:
                return ()
            from parakeet_worker.speakers.references import References

            references = References(networks, self.ffmpeg, self.settings)
            return await references.voices(
                request.known_speakers, self.scratch, self.reference_decoders
            )

        task = asyncio.create_task(compute())
        try:
            yield task
        finally:
            task.cancel()
            await asyncio.wait([task])
            if not task.cancelled():
                task.exception()  # marks it as seen

    async def _chunks(self, ingest: Ingest) -> AsyncGenerator[Chunk, None]:
        """Decode and cut, limited to `decoders` recordings."""
        produced = threads.produced(ingest.chunks(), ingest.stop)
        async with self.decoders, aclosing(produced) as chunks:
            async for chunk in chunks:
                yield chunk

    def _ingest(
        self, path: Path, request: Request, diarization: "RecordingDiarization | None"
    ) -> Ingest:
        """In a process, unless the samples are observed here too."""
        cutting = self._cutting(path, request)
        if diarization is not None:
            return InThread(cutting, self.detector, diarization)
        if self.processes is not None:
            return InProcess(self.processes, cutting)
        return InThread(cutting, self.detector)

    def _audio_share(self) -> AudioShare:
        """Limit of one recording's samples at the engine: two batches."""
        min_seconds = _MIN_CHUNKS_AHEAD * self.settings.segment_seconds
        batches_seconds = 2 * self.batcher.load.budget_seconds
        samples = round(SAMPLE_RATE * max(min_seconds, batches_seconds))
        return AudioShare(self.audio_budget, samples=samples)

    def _cutting(self, path: Path, request: Request) -> Cutting:
        longest, whole = self.settings.max_audio_seconds, request.attention == "full"
        return Cutting(
            path,
            self.ffmpeg,
            max_audio_seconds=min(longest, MAX_FULL_ATTENTION_SECONDS) if whole else longest,
            timeout_seconds=self.settings.decode_timeout_seconds,
            clip=request.clip,
            channels=request.channels,
            track=request.track,
            on_damage=request.on_damage,
            decoder_memory_bytes=self.settings.decoder_memory_bytes,
            precision=self.settings.resampling_precision,
            headerless=request.headerless,
            vad=request.vad,
            chunk_seconds=self.settings.segment_seconds,
            whole=whole,
        )

    async def transcribe(self, request: Request, watch: Stopwatch | None = None) -> Transcript:
        """The whole transcript; raises what `partials` raises."""
        async with aclosing(self.partials(request, watch or Stopwatch())) as partials:
            collected = [partial async for partial in partials]
        return await threads.computed(joined, collected)


def _diarization(networks: "WindowQueue | None", request: Request) -> "RecordingDiarization | None":
    if networks is None or request.speakers is None:
        return None
    from parakeet_worker.speakers.recording import RecordingDiarization

    start_seconds = request.clip.start_seconds
    return RecordingDiarization(networks, request.speakers, start_seconds, deferred=True)


def joined(partials: Sequence[Transcript]) -> Transcript:
    """The transcript of all partials, with speakers if the recording was diarized."""
    last = partials[-1]
    similarities = last.similarities if isinstance(last, LastPartial) else ()
    return speaker_labels.labelled(transcript.join(partials), similarities)


@contextmanager
def _memory_errors_translated(request: Request) -> Iterator[None]:
    """With full attention, `OutOfMemory` is the request's error: it may choose another mode."""
    try:
        yield
    except OutOfMemory as failure:
        if request.attention != "full":
            raise
        reason = f"{failure.sentence} in one pass; omit it to have the recording cut at pauses"
        raise InvalidRequest("attention", reason) from failure
