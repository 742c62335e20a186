"""The flow on one screen: a request in, stretches of its transcript out."""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from parakeet_worker import audio, render, segments, sources, transcript
from parakeet_worker.batcher import Batcher
from parakeet_worker.engine.base import Hypothesis
from parakeet_worker.errors import ParakeetError
from parakeet_worker.render import Document
from parakeet_worker.request import Job, Request, parse
from parakeet_worker.segments import Segment
from parakeet_worker.settings import Settings
from parakeet_worker.stopwatch import Stopwatch
from parakeet_worker.transcript import Transcript

# Segments that one request keeps at the engine: enough to fill a batch, few enough for memory.
_SEGMENTS_AHEAD = 16


@dataclass(frozen=True, slots=True, eq=False)
class Pipeline:
    """What every request needs; made once by `worker`, shared by all requests."""

    settings: Settings
    batcher: Batcher
    ffmpeg: Path

    async def stretches(
        self, request: Request, watch: Stopwatch
    ) -> AsyncGenerator[Transcript, None]:
        """The transcript, stretch by stretch, each as soon as it and those before it are done."""
        with TemporaryDirectory(prefix="parakeet-", dir=self.settings.scratch) as scratch:
            fetching = sources.fetch(request, Path(scratch), self.settings)
            path = await watch.timed("fetch", fetching)
            decoding = audio.Decoding(
                path,
                ffmpeg=self.ffmpeg,
                max_seconds=self.settings.max_audio_seconds,
                timeout_seconds=self.settings.decode_timeout_seconds,
                clip=request.clip,
            )
            async with aclosing(decoding.samples()) as samples:
                pieces = segments.split(
                    samples,
                    max_seconds=self.settings.segment_seconds,
                    start_seconds=request.clip.start_seconds,
                )
                pending = _Pending(watch)
                try:
                    while segment := await watch.timed("decode", anext(pieces, None)):
                        (answer,) = self.batcher.submit([segment.samples])
                        pending.add(segment, asyncio.wrap_future(answer))
                        while pending.ready:
                            yield await pending.stitch_first()
                    while len(pending) > 1:
                        yield await pending.stitch_first()
                    yield replace(await pending.stitch_first(), warnings=decoding.warnings)
                finally:
                    pending.drop()

    async def transcribe(self, request: Request, watch: Stopwatch | None = None) -> Transcript:
        """The whole transcript; raises `RequestError`, `TransientError` or `EngineError`."""
        async with aclosing(self.stretches(request, watch or Stopwatch())) as stretches:
            return transcript.join([stretch async for stretch in stretches])

    async def answer(self, payload: object) -> Document | list[Document]:
        """A job's `input` to its answer; a list is answered in order, each with its own error."""
        job = parse(payload)
        if not job.listed:
            (request,) = job.requests
            return await self._document(request)
        return await self._documents(job)

    async def _documents(self, job: Job) -> list[Document]:
        turns = asyncio.Semaphore(self.settings.concurrency)

        async def one(request: Request | ParakeetError) -> Document:
            async with turns:
                try:
                    return await self._document(request)
                except ParakeetError as error:
                    return error.document()

        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one(request)) for request in job.requests]
        return [task.result() for task in tasks]

    async def _document(self, request: Request | ParakeetError) -> Document:
        if isinstance(request, ParakeetError):
            raise request
        watch = Stopwatch()
        heard = await self.transcribe(request, watch)
        answer = render.document(heard, request.format, timestamp=request.timestamp)
        if request.debug:
            answer["debug"] = {"audio_seconds": round(heard.seconds, 3), "seconds": watch.seconds}
        return answer


class _Pending:
    """The segments of one request that are at the engine, in order."""

    def __init__(self, watch: Stopwatch) -> None:
        self._watch = watch
        self._queue: deque[tuple[Segment, asyncio.Future[Hypothesis]]] = deque()

    def __len__(self) -> int:
        return len(self._queue)

    def add(self, segment: Segment, answer: "asyncio.Future[Hypothesis]") -> None:
        self._queue.append((segment, answer))

    @property
    def ready(self) -> bool:
        """Whether to take the first now: it is done, or too many are out."""
        return bool(self._queue) and (
            self._queue[0][1].done() or len(self._queue) >= _SEGMENTS_AHEAD
        )

    async def stitch_first(self) -> Transcript:
        segment, answer = self._queue[0]
        hypothesis = await self._watch.timed("hear", answer)
        self._queue.popleft()
        return transcript.stitch(segment, hypothesis)

    def drop(self) -> None:
        """Take back what is still out, so that it never reaches the GPU."""
        for _, answer in self._queue:
            if not answer.cancel() and not answer.cancelled():
                answer.exception()  # it failed together with the one that was raised
