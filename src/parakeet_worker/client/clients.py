"""The Python client, with and without async."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from os import PathLike
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Event, Thread
from types import TracebackType
from typing import Any, Self, TypedDict, TypeVar, Unpack

import stamina

from parakeet_worker.client.answer import Answer, Figures
from parakeet_worker.client.doors import Document, Fields, HttpDoor, Job, Listener, QueueDoor
from parakeet_worker.client.endpoint import RUNPOD, Endpoint
from parakeet_worker.client.parcel import Parcel, pack
from parakeet_worker.client.store import Store
from parakeet_worker.client.wire import RETRY_SECONDS, Wire, checked_key
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
from parakeet_worker.options import ALL_TRACKS, Attention, Channels, Format, OnDamage, Vad
from parakeet_worker.request import parse
from parakeet_worker.settings import Settings

log = logging.getLogger(__name__)

Value = TypeVar("Value")

ANSWER_SECONDS = 6 * 3600.0
"""How long the client waits for the answer to one recording, with its retries."""

_JOB_ATTEMPTS = 3
_JOB_WAIT_SECONDS = 1.0
_WORTH_ANOTHER = (EngineLost, Overloaded, SourceUnreachable)
_AT_ONCE = 8
_END_SECONDS = 15.0
_ADDRESSES = ("http://", "https://", "s3://")


class Options(TypedDict, total=False):
    """How to answer; see docs/calling.md."""

    format: Format
    timestamp: bool
    debug: bool
    vad: Vad
    attention: Attention
    channels: Channels
    track: int | str | None
    on_damage: OnDamage
    language: str | None
    start_seconds: float
    end_seconds: float | None


class AsyncClient:
    """Has recordings transcribed by an endpoint; any number at once.

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
            raise InvalidRequest("api_key", f"{endpoint.url} wants one; RunPod's console has it")
        self.endpoint = endpoint
        self._answer_seconds = answer_seconds
        self._store = Store.of(self._settings)
        self._wire = Wire(endpoint.url, key, retry_seconds, refused_seconds)
        self._queue = QueueDoor(self._wire, endpoint)
        self._http = HttpDoor(self._wire, endpoint, answer_seconds)
        # What is packed or sent lies in memory, with its base64.
        self._packing = asyncio.Semaphore(_AT_ONCE)
        self._sending = asyncio.Semaphore(_AT_ONCE)

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
        """Close all connections."""
        await self._wire.close()

    async def transcribe(
        self,
        audio: str | PathLike[str] | bytes,
        *,
        listener: Listener = Listener(),  # noqa: B008  # frozen
        resume: Job | None = None,
        **options: Unpack[Options],
    ) -> Answer:
        """Transcribe a file, the bytes of one, or what is behind an http, https or s3 address.

        When this is cancelled, so is the job. `listener` is told how far it is; `resume` is a job
        that it was told of before, whose answer is fetched if the endpoint still has it.
        Raises `RequestError`, `TransientError`, `EngineError`, or `EndpointDenied`.
        """
        fields = _fields(options)
        if resume is not None and self.endpoint.kind == "queue":
            with suppress(EndpointRefused, JobCancelled, JobExpired):
                document, figures = await self._fetched(resume, listener)
                return _answer(document, figures, resume.warnings, options)
        if isinstance(audio, str) and audio.lower().startswith(_ADDRESSES):
            return await self._delivered(Parcel(url=audio), fields, listener, options)
        if not isinstance(audio, bytes):
            return await self._packed(Path(audio), fields, listener, options)
        with TemporaryDirectory(prefix="parakeet-") as folder:
            path = Path(folder) / "audio"
            await asyncio.to_thread(path.write_bytes, audio)
            return await self._packed(path, fields, listener, options)

    async def _packed(
        self, path: Path, fields: Fields, listener: Listener, options: Options
    ) -> Answer:
        parcel = await self._parcel(path, self.endpoint, options, self._store, listener)
        try:
            return await self._delivered(parcel, _packed_fields(parcel, fields), listener, options)
        except AudioTooLarge as refusal:
            # A `parakeet serve` has a limit of its own, and tells it only then.
            limit = refusal.facts.get("limit")
            if self.endpoint.kind != "http" or parcel.path is None or not isinstance(limit, int):
                raise
            narrow = self.endpoint.narrowed(limit)
            try:
                parcel = await self._parcel(path, narrow, options, None, listener)
            except PayloadTooLarge:
                raise refusal from None
        return await self._delivered(parcel, _packed_fields(parcel, fields), listener, options)

    async def _parcel(
        self,
        path: Path,
        endpoint: Endpoint,
        options: Options,
        store: Store | None,
        listener: Listener,
    ) -> Parcel:
        async with self._packing:
            listener.stage("packing")
            ffmpeg = self._settings.ffmpeg
            return await pack(
                path,
                endpoint,
                channels=options.get("channels", "mix"),
                track=options.get("track"),
                on_damage=options.get("on_damage", "warn"),
                store=store,
                ffmpeg=ffmpeg,
            )

    async def _delivered(
        self, parcel: Parcel, fields: Fields, listener: Listener, options: Options
    ) -> Answer:
        """The answer to a parcel, sent again where the worker, and not the recording, failed."""
        try:
            async with self._in_time():
                document, figures = await _asked_again(self._asked, parcel, fields, listener)
        except EndpointUnreachable:
            # The job may still be worked on, and its audio be needed; who resumes it tidies up.
            raise
        except BaseException:
            await self._tidied(parcel.stored.key if parcel.stored else None)
            raise
        await self._tidied(parcel.stored.key if parcel.stored else None)
        return _answer(document, figures, parcel.warnings, options)

    @asynccontextmanager
    async def _in_time(self) -> AsyncGenerator[None, None]:
        """Raise `EndpointUnreachable` where the answer is not there in time."""
        try:
            async with asyncio.timeout(self._answer_seconds):
                yield
        except TimeoutError as failure:
            reason = f"no answer within {self._answer_seconds:g} s"
            raise EndpointUnreachable(self.endpoint.url, reason) from failure

    async def _asked(
        self, parcel: Parcel, fields: Fields, listener: Listener
    ) -> tuple[Document, Figures]:
        if self.endpoint.kind == "http":
            return await self._http.ask(parcel, fields, listener)
        async with self._sending:
            listener.stage("sending")
            job = await self._queue.send(parcel, fields, listener)
        try:
            listener.sent(job)
        except BaseException:
            # Nothing will ask for its answer.
            with suppress(ParakeetError):
                await self._queue.cancel(job)
            raise
        return await self._looked_after(job, listener)

    async def _looked_after(self, job: Job, listener: Listener) -> tuple[Document, Figures]:
        try:
            return await self._queue.outcome(job, listener)
        except asyncio.CancelledError:
            with suppress(ParakeetError):
                await asyncio.shield(self._queue.cancel(job))
            raise

    async def _fetched(self, job: Job, listener: Listener) -> tuple[Document, Figures]:
        """The outcome of a job from an earlier run, whose audio is removed from the bucket."""
        try:
            async with self._in_time():
                outcome = await self._looked_after(job, listener)
        except EndpointUnreachable:
            raise
        except BaseException:
            await self._tidied(job.stored)
            raise
        await self._tidied(job.stored)
        return outcome

    async def _tidied(self, stored: str | None) -> None:
        if stored is None or self._store is None:
            return
        try:
            await self._store.remove(stored)
        except ParakeetError as error:
            log.warning("left in the bucket: %s", error)


class Client:
    """The same for programs without async; safe to call from many threads at once."""

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
        """Close all connections; the client cannot be used afterwards."""
        if self._loop.is_closed():
            return
        self._run(self._client.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def transcribe(self, audio: str | PathLike[str] | bytes, **options: Unpack[Options]) -> Answer:
        """Transcribe a file, the bytes of one, or what is behind an http, https or s3 address.

        When this is interrupted, the job is cancelled.
        Raises `RequestError`, `TransientError`, `EngineError`, or `EndpointDenied`.
        """
        return self._run(self._client.transcribe(audio, **options))

    def _run(self, work: Coroutine[Any, Any, Value]) -> Value:
        ended = Event()

        async def run() -> Value:
            try:
                return await work
            finally:
                ended.set()

        future = asyncio.run_coroutine_threadsafe(run(), self._loop)
        try:
            return future.result()
        except BaseException:
            # After Ctrl-C the job is still to be cancelled, which is the loop's work.
            if not future.done():
                future.cancel()
                ended.wait(_END_SECONDS)
            raise


async def _asked_again(
    ask: Callable[[Parcel, Fields, Listener], Awaitable[tuple[Document, Figures]]],
    parcel: Parcel,
    fields: Fields,
    listener: Listener,
) -> tuple[Document, Figures]:
    async for attempt in stamina.retry_context(
        on=_WORTH_ANOTHER, attempts=_JOB_ATTEMPTS, timeout=None, wait_initial=_JOB_WAIT_SECONDS
    ):
        with attempt:
            return await ask(parcel, fields, listener)
    raise AssertionError


def _fields(options: Options) -> Fields:
    """The options as the wire has them; raises what the worker would raise for them."""
    given = {name: value for name, value in options.items() if value is not None}
    clip = {
        name: given.pop(f"{name}_seconds")
        for name in ("start", "end")
        if f"{name}_seconds" in given
    }
    fields = {**given, **({"clip": clip} if clip else {})}
    parse({"audio_base64": "", **fields})
    # Always: `debug` tells how many seconds of audio were heard.
    return {**fields, "debug": True}


def _packed_fields(parcel: Parcel, fields: Fields) -> Fields:
    """Those that are sent with it: what was encoded again has the wanted track alone."""
    if parcel.recoded is None or fields.get("track") is None:
        return fields
    apart = {"channels": "separate"} if fields["track"] == ALL_TRACKS else {}
    return {**{name: value for name, value in fields.items() if name != "track"}, **apart}


def _answer(
    document: Document, figures: Figures, warnings: tuple[str, ...], options: Options
) -> Answer:
    kept = dict(document)
    if not options.get("debug"):
        kept.pop("debug", None)
    beside = messages(kept.get("warnings"))
    return Answer(kept, options.get("format", "json"), (*warnings, *beside), figures)
