"""The Python client, with and without async."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Generator, Mapping
from concurrent.futures import Future
from contextlib import asynccontextmanager, suppress
from os import PathLike
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Event, Lock, Thread
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack

import stamina

from parakeet_worker.client.answer import Answer, Segment, Usage
from parakeet_worker.client.endpoint import RUNPOD, Endpoint
from parakeet_worker.client.http_client import RETRY_SECONDS, HttpClient, checked_key
from parakeet_worker.client.payload import Payload, prepare
from parakeet_worker.client.store import Store
from parakeet_worker.client.transports import (
    Document,
    Fields,
    HttpTransport,
    ProgressCallbacks,
    QueuedJob,
    QueueTransport,
    size_of,
)
from parakeet_worker.errors import (
    AudioTooLarge,
    EndpointRefused,
    EndpointUnreachable,
    EngineLost,
    InvalidRequest,
    JobCancelled,
    JobExpired,
    Overloaded,
    ParakeetError,
    PayloadTooLarge,
    SourceUnreachable,
)
from parakeet_worker.notices import messages
from parakeet_worker.options import (
    ALL_TRACKS,
    Attention,
    Channels,
    CueLimitKeywords,
    Format,
    OnDamage,
    Vad,
)
from parakeet_worker.settings import Settings
from parakeet_worker.wire.known_speakers import Entries, Voices, entries
from parakeet_worker.wire.native import check_options

log = logging.getLogger(__name__)

Value = TypeVar("Value")

ANSWER_SECONDS = 6 * 3600.0
"""How long the client waits for the answer to one recording, with its retries."""

_JOB_ATTEMPTS = 3
_JOB_WAIT_SECONDS = 1.0
_RETRIED = (EngineLost, Overloaded, SourceUnreachable)
_CONCURRENCY = 8
_END_SECONDS = 15.0
_ADDRESSES = ("http://", "https://", "s3://")


class Options(CueLimitKeywords, total=False):
    """Options of a request; see docs/calling.md."""

    format: Format
    timestamp: bool
    debug: bool
    vad: Vad
    attention: Attention
    audio_format: str | None
    channels: Channels
    track: int | str | None
    on_damage: OnDamage
    language: str | None
    speakers: bool | Mapping[str, int] | None
    known_speakers: Voices | Entries | None
    start_seconds: float
    end_seconds: float | None


class AsyncClient:
    """Transcribes recordings at an endpoint, any number concurrently.

    `endpoint` is the id of a RunPod endpoint, the URL of one, or the address of `parakeet serve`.
    `settings` has the bucket for recordings that are too large for a request. Calls that fail are
    repeated for `retry_seconds`, refused connections for `refused_seconds` (None: the same). An
    answer that is not there after `answer_seconds` is `EndpointUnreachable`, and its job is
    cancelled; None waits without a limit. A key is sent over https or on this machine only, unless
    the settings allow otherwise.
    """

    def __init__(
        self,
        endpoint: str | Endpoint,
        api_key: str | None = None,
        *,
        settings: Settings | None = None,
        retry_seconds: float = RETRY_SECONDS,
        refused_seconds: float | None = None,
        answer_seconds: float | None = ANSWER_SECONDS,
    ) -> None:
        base = settings.runpod_endpoint_base_url if settings else RUNPOD
        if isinstance(endpoint, str):
            endpoint = Endpoint.read(endpoint, base)
        self._settings = settings or Settings()
        insecure = self._settings.allow_insecure_keys
        key = checked_key(api_key, endpoint.url, insecure=insecure)
        if endpoint.runpod and not key:
            raise InvalidRequest(
                "api_key", f"{endpoint.url} requires one; create it in the RunPod console"
            )
        self.endpoint = endpoint
        self._answer_seconds = answer_seconds
        self._store = Store.of(self._settings)
        self._client = HttpClient(endpoint.url, key, retry_seconds, refused_seconds)
        self._queue = QueueTransport(self._client, endpoint)
        self._http = HttpTransport(self._client, endpoint, answer_seconds)
        # Encoded recordings and requests are in memory, with their base64.
        self._packing = asyncio.Semaphore(_CONCURRENCY)
        self._sending = asyncio.Semaphore(_CONCURRENCY)
        self._streams: set[asyncio.Task[Answer]] = set()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        failure: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Cancel the jobs of open streams, and close all connections."""
        await _cancelled(*self._streams)
        await self._client.close()

    async def transcribe(
        self,
        audio: str | PathLike[str] | bytes,
        *,
        callbacks: ProgressCallbacks = ProgressCallbacks(),  # noqa: B008  # frozen
        resume: QueuedJob | None = None,
        **options: Unpack[Options],
    ) -> Answer:
        """Transcribe a file, its bytes, or an http, https or s3 URL.

        When this is cancelled, so is the job. `callbacks` report progress; `resume` is a
        job that they reported before, whose answer is fetched if the endpoint still has it.
        Raises `RequestError`, `TransientError`, `EngineError`, or `EndpointDenied`.
        """
        fields = await asyncio.to_thread(_fields, options)
        fields = {**fields, "stream": True} if callbacks.segment is not None else fields
        if resume is not None and self.endpoint.kind == "queue":
            with suppress(EndpointRefused, JobCancelled, JobExpired):
                document, usage = await self._resume(resume, callbacks)
                return _answer(document, usage, resume.warnings, options)
        if isinstance(audio, str) and audio.lower().startswith(_ADDRESSES):
            return await self._send(Payload(url=audio), fields, callbacks, options)
        if not isinstance(audio, bytes):
            return await self._send_file(Path(audio), fields, callbacks, options)
        with TemporaryDirectory(prefix="parakeet-") as folder:
            path = Path(folder) / "audio"
            await asyncio.to_thread(path.write_bytes, audio)
            return await self._send_file(path, fields, callbacks, options)

    async def stream(
        self, audio: str | PathLike[str] | bytes, **options: Unpack[Options]
    ) -> AsyncGenerator[Segment | Answer, None]:
        """Yield each sentence as soon as it and all earlier ones are transcribed, then the answer.

        The same as `transcribe` otherwise. When this is closed or cancelled, so is the job.
        Sentences have no gaps: if one is lost in transit, only the answer follows.
        """
        arrived: asyncio.Queue[Segment | None] = asyncio.Queue()
        callbacks = ProgressCallbacks(segment=arrived.put_nowait)
        work = asyncio.create_task(self.transcribe(audio, callbacks=callbacks, **options))
        work.add_done_callback(lambda _: arrived.put_nowait(None))
        self._streams.add(work)
        try:
            yielded = 0
            while (segment := await arrived.get()) is not None:
                # A retry repeats earlier segments.
                if segment.document["id"] == yielded:
                    yielded += 1
                    yield segment
            yield await work
        finally:
            self._streams.discard(work)
            await _cancelled(work)

    async def _send_file(
        self, path: Path, fields: Fields, callbacks: ProgressCallbacks, options: Options
    ) -> Answer:
        endpoint = self.endpoint.reserving(await asyncio.to_thread(size_of, fields))
        payload = await self._prepared(path, endpoint, options, self._store, callbacks)
        try:
            return await self._send(payload, _fields_of(payload, fields), callbacks, options)
        except AudioTooLarge as refusal:
            # `parakeet serve` has its own limit, which only its answer reveals.
            limit = refusal.facts.get("limit")
            if self.endpoint.kind != "http" or payload.path is None or not isinstance(limit, int):
                raise
            narrow = self.endpoint.narrowed(limit)
            try:
                payload = await self._prepared(path, narrow, options, None, callbacks)
            except PayloadTooLarge:
                raise refusal from None
        return await self._send(payload, _fields_of(payload, fields), callbacks, options)

    async def _prepared(
        self,
        path: Path,
        endpoint: Endpoint,
        options: Options,
        store: Store | None,
        callbacks: ProgressCallbacks,
    ) -> Payload:
        async with self._packing:
            callbacks.stage("preparing")
            ffmpeg = self._settings.ffmpeg
            return await prepare(
                path,
                endpoint,
                audio_format=options.get("audio_format"),
                channels=options.get("channels", "mix"),
                track=options.get("track"),
                on_damage=options.get("on_damage", "warn"),
                store=store,
                ffmpeg=ffmpeg,
            )

    async def _send(
        self, payload: Payload, fields: Fields, callbacks: ProgressCallbacks, options: Options
    ) -> Answer:
        """Send a payload, again if the worker and not the recording failed."""
        try:
            async with self._in_time():
                document, usage = await _with_retries(self._request, payload, fields, callbacks)
        except EndpointUnreachable:
            # The job may still need its audio; resuming it deletes the upload.
            raise
        except BaseException:
            await self._delete_upload(payload.stored.key if payload.stored else None)
            raise
        await self._delete_upload(payload.stored.key if payload.stored else None)
        return _answer(document, usage, payload.warnings, options)

    @asynccontextmanager
    async def _in_time(self) -> AsyncGenerator[None, None]:
        """Raise `EndpointUnreachable` if the answer is late."""
        try:
            async with asyncio.timeout(self._answer_seconds):
                yield
        except TimeoutError as failure:
            reason = f"no answer within {self._answer_seconds:g} s"
            raise EndpointUnreachable(self.endpoint.url, reason) from failure

    async def _request(
        self, payload: Payload, fields: Fields, callbacks: ProgressCallbacks
    ) -> tuple[Document, Usage]:
        if self.endpoint.kind == "http":
            return await self._http.transcribe(payload, fields, callbacks)
        async with self._sending:
            callbacks.stage("uploading")
            job = await self._queue.send(payload, fields, callbacks)
        try:
            callbacks.sent(job)
        except BaseException:
            # No client will fetch its answer.
            with suppress(ParakeetError):
                await self._queue.cancel(job)
            raise
        return await self._poll(job, callbacks)

    async def _poll(self, job: QueuedJob, callbacks: ProgressCallbacks) -> tuple[Document, Usage]:
        try:
            return await self._queue.outcome(job, callbacks)
        except asyncio.CancelledError:
            with suppress(ParakeetError):
                await asyncio.shield(self._queue.cancel(job))
            raise

    async def _resume(self, job: QueuedJob, callbacks: ProgressCallbacks) -> tuple[Document, Usage]:
        """The outcome of a job of an earlier run, whose upload is deleted."""
        try:
            async with self._in_time():
                outcome = await self._poll(job, callbacks)
        except EndpointUnreachable:
            raise
        except BaseException:
            await self._delete_upload(job.stored)
            raise
        await self._delete_upload(job.stored)
        return outcome

    async def _delete_upload(self, stored: str | None) -> None:
        if stored is None or self._store is None:
            return
        try:
            await self._store.remove(stored)
        except ParakeetError as error:
            log.warning("upload not deleted: %s", error)


class Client:
    """The synchronous client, safe to call from many threads concurrently."""

    def __init__(
        self,
        endpoint: str | Endpoint,
        api_key: str | None = None,
        *,
        settings: Settings | None = None,
        retry_seconds: float = RETRY_SECONDS,
        refused_seconds: float | None = None,
        answer_seconds: float | None = ANSWER_SECONDS,
    ) -> None:
        self._client = AsyncClient(
            endpoint,
            api_key,
            settings=settings,
            retry_seconds=retry_seconds,
            refused_seconds=refused_seconds,
            answer_seconds=answer_seconds,
        )
        self._calls: set[asyncio.Task[Any]] = set()
        self._closed = False
        self._closing = Lock()
        self._loop = asyncio.new_event_loop()
        self._thread = Thread(target=self._loop.run_forever, name="parakeet-client", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        failure: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Cancel the jobs of other threads, and close all connections.

        These threads get a `CancelledError`. The client cannot be used afterwards.
        """
        with self._closing:
            if self._closed:
                return
            self._closed = True
            end = self._submitted(self._end())
        _result(*end)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def transcribe(self, audio: str | PathLike[str] | bytes, **options: Unpack[Options]) -> Answer:
        """Transcribe a file, its bytes, or an http, https or s3 URL.

        When this is interrupted, the job is cancelled.
        Raises `RequestError`, `TransientError`, `EngineError`, or `EndpointDenied`.
        """
        return self._run(self._client.transcribe(audio, **options))

    def stream(
        self, audio: str | PathLike[str] | bytes, **options: Unpack[Options]
    ) -> Generator[Segment | Answer, None, None]:
        """Yield each sentence as soon as it and all earlier ones are transcribed, then the answer.

        The same as `transcribe` otherwise. When this is closed, the job is cancelled.
        Sentences have no gaps: if one is lost in transit, only the answer follows.
        """
        parts = self._client.stream(audio, **options)
        try:
            while (part := self._run(_next(parts))) is not None:
                yield part
        finally:
            if not self._closed:
                self._run(parts.aclose())

    async def _end(self) -> None:
        # With the loop stopped, their threads would wait forever. The tasks that a call has
        # started, to post its job or to cancel it, must complete.
        await _cancelled(*(self._calls - {asyncio.current_task()}))
        await self._client.close()

    def _run(self, work: Coroutine[Any, Any, Value]) -> Value:
        with self._closing:
            if self._closed:
                work.close()
                raise RuntimeError("the client is closed")
            call = self._submitted(work)
        return _result(*call)

    def _submitted(self, work: Coroutine[Any, Any, Value]) -> tuple[Future[Value], Event]:
        """The call's future, which is done when cancelled, and an event when it has ended."""
        ended = Event()

        async def run() -> Value:
            call = asyncio.current_task()
            assert call is not None
            self._calls.add(call)
            try:
                return await work
            finally:
                self._calls.discard(call)
                ended.set()

        return asyncio.run_coroutine_threadsafe(run(), self._loop), ended


def _result(future: Future[Value], ended: Event) -> Value:
    try:
        return future.result()
    except BaseException:
        # After Ctrl-C the loop still has to cancel the job.
        if not future.done():
            future.cancel()
            ended.wait(_END_SECONDS)
        raise


async def _next(parts: AsyncGenerator[Value, None]) -> Value | None:
    return await anext(parts, None)


async def _cancelled(*tasks: asyncio.Task[Any]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def _with_retries(
    call: Callable[[Payload, Fields, ProgressCallbacks], Awaitable[tuple[Document, Usage]]],
    payload: Payload,
    fields: Fields,
    callbacks: ProgressCallbacks,
) -> tuple[Document, Usage]:
    async for attempt in stamina.retry_context(
        on=_RETRIED, attempts=_JOB_ATTEMPTS, timeout=None, wait_initial=_JOB_WAIT_SECONDS
    ):
        with attempt:
            return await call(payload, fields, callbacks)
    raise AssertionError


def _fields(options: Options) -> Fields:
    """The options as wire fields; raises as the worker would."""
    fields = {name: value for name, value in options.items() if value is not None}
    clip = {
        name: fields.pop(f"{name}_seconds")
        for name in ("start", "end")
        if f"{name}_seconds" in fields
    }
    fields |= {"clip": clip} if clip else {}
    known = options.get("known_speakers")
    fields |= {"known_speakers": entries(known)} if known is not None else {}
    check_options(fields)
    # Always: `debug` has the seconds of audio.
    return {**fields, "debug": True}


def _fields_of(payload: Payload, fields: Fields) -> Fields:
    """The fields to send with it: a re-encoded one has a header and only the selected track."""
    if payload.recoded is None:
        return fields
    separate = {"channels": "separate"} if fields.get("track") == ALL_TRACKS else {}
    applied = ("audio_format", "track")
    return {**{name: value for name, value in fields.items() if name not in applied}, **separate}


def _answer(
    document: Document, usage: Usage, warnings: tuple[str, ...], options: Options
) -> Answer:
    kept = dict(document)
    if not options.get("debug"):
        kept.pop("debug", None)
    own = messages(kept.get("warnings"))
    return Answer(kept, options.get("format", "json"), (*warnings, *own), usage)
