"""The process of `parakeet wyoming`: a model of its own, or an endpoint, behind the protocol."""

import asyncio
import logging
import signal
import sys
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias
from urllib.parse import urlsplit

from wyoming.error import Error
from wyoming.event import async_write_event
from wyoming.info import AsrModel, AsrProgram, Attribution, Info

from parakeet_worker.client.clients import AsyncClient
from parakeet_worker.client.endpoint import Endpoint
from parakeet_worker.entrypoints.wyoming.session import Limits, Recognize, Session
from parakeet_worker.errors import Busy, InvalidRequest, InvalidSetting
from parakeet_worker.extras import required
from parakeet_worker.language import LANGUAGES
from parakeet_worker.logs import NonBlockingHandler, PlainLines
from parakeet_worker.remote import retries
from parakeet_worker.request import FileSource
from parakeet_worker.scratch import scratch_of
from parakeet_worker.settings import Settings
from parakeet_worker.version import __version__
from parakeet_worker.wire.native import request_options

if TYPE_CHECKING:
    from parakeet_worker.pipeline import Pipeline  # requires the extra `engine`

log = logging.getLogger(__name__)

OnLost: TypeAlias = Callable[[], None]
Open: TypeAlias = Callable[[Settings, OnLost], AbstractAsyncContextManager[Recognize]]
"""`OnLost` is called when the engine has failed permanently."""


@asynccontextmanager
async def local(settings: Settings, on_lost: OnLost) -> AsyncGenerator[Recognize]:
    """Recognize in this process. Raises `SetupError`."""
    with required("engine"):
        from parakeet_worker.worker import open_pipeline

    # Opened in this thread: there are no clients yet.
    with open_pipeline(settings) as pipeline:
        yield recognizing(pipeline, on_lost)


def recognizing(pipeline: "Pipeline", on_lost: OnLost) -> Recognize:
    """Recognize with an open pipeline."""

    async def recognize(path: Path, language: str | None) -> str:
        request = request_options({"language": language})(FileSource(path))
        try:
            return (await pipeline.transcribe(request)).text
        finally:
            if pipeline.batcher.lost:
                on_lost()

    return recognize


@asynccontextmanager
async def remote(endpoint: Endpoint, settings: Settings, _: OnLost) -> AsyncGenerator[Recognize]:
    """Recognize at a RunPod endpoint or a `parakeet serve`."""
    key = settings.runpod_api_key if endpoint.runpod else settings.api_key
    async with AsyncClient(endpoint, key, settings=settings) as client:

        async def recognize(path: Path, language: str | None) -> str:
            return (await client.transcribe(path, format="text", language=language)).text

        yield recognize


@dataclass(frozen=True, slots=True)
class Address:
    """Where clients connect: a host and a port, or a path."""

    host: str | None
    port: int | None
    path: str | None

    @classmethod
    def read(cls, uri: str) -> "Address":
        """Parse `tcp://HOST:PORT` or `unix://PATH`. Raises `InvalidRequest`."""
        parts = urlsplit(uri)
        try:
            port = parts.port
        except ValueError:
            port = None
        if parts.scheme == "tcp" and parts.hostname and port is not None:
            return cls(parts.hostname, port, None)
        if parts.scheme == "unix" and parts.netloc + parts.path:
            return cls(None, None, parts.netloc + parts.path)
        raise InvalidRequest("uri", "must be tcp://HOST:PORT or unix://PATH")

    def __str__(self) -> str:
        return f"unix://{self.path}" if self.path else f"tcp://{self.host}:{self.port}"


class _Server:
    """Accepts connections up to a limit, and ends them in order."""

    def __init__(self, make: Callable[..., Session], max_sessions: int) -> None:
        self._make = make
        self._max_sessions = max_sessions
        self._sessions: dict[asyncio.Task[None], Session] = {}

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection."""
        if len(self._sessions) >= self._max_sessions:
            error = Busy(self._max_sessions)
            with suppress(OSError):  # the client may have disconnected
                await async_write_event(Error(text=error.sentence, code=error.code).event(), writer)
            writer.close()
            return
        session = self._make(reader, writer)
        task = asyncio.create_task(session.run())
        self._sessions[task] = session
        task.add_done_callback(self._sessions.pop)

    async def drain(self, timeout_seconds: float) -> None:
        """Close idle connections, and wait for answers to recordings in progress."""
        for task, session in self._sessions.items():
            session.drain()
            if not session.busy:
                task.cancel()
        if self._sessions:
            _, unfinished = await asyncio.wait(list(self._sessions), timeout=timeout_seconds)
            for task in unfinished:
                task.cancel()


async def serve(address: Address, settings: Settings, opening: Open) -> bool:
    """Serve until SIGTERM or SIGINT, or until the engine is lost, which returns False.

    Raises `SetupError`.
    """
    stopping, lost = asyncio.Event(), asyncio.Event()

    def on_lost() -> None:
        lost.set()
        stopping.set()

    limits = Limits(
        max_audio_seconds=settings.max_audio_seconds,
        max_audio_bytes=settings.max_audio_bytes,
        idle_seconds=settings.idle_timeout_seconds,
    )
    scratch = scratch_of(settings)
    scratch.prepare()
    async with opening(settings, on_lost) as recognize:
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stopping.set)
        make = partial(
            Session, recognize=recognize, info=_info(settings.model), limits=limits, scratch=scratch
        )
        server = _Server(make, settings.max_requests)
        listener = await _listen(address, server)
        log.info("listening on %s", _bound(address, listener))
        await stopping.wait()
        listener.close()
        await server.drain(settings.stop_timeout_seconds)
    return not lost.is_set()


async def _listen(address: Address, server: _Server) -> asyncio.Server:
    try:
        if address.path:
            return await asyncio.start_unix_server(server.accept, address.path)
        return await asyncio.start_server(server.accept, address.host, address.port)
    except OSError as failure:
        reason = f"cannot listen on {address}: {failure.strerror or failure}"
        raise InvalidSetting("--uri", reason) from failure


def _bound(address: Address, listener: asyncio.Server) -> Address:
    """The address with the port that the system chose for port 0."""
    if address.path:
        return address
    return Address(address.host, listener.sockets[0].getsockname()[1], None)


def _info(model: str) -> Info:
    nvidia = Attribution("NVIDIA", "https://huggingface.co/nvidia/parakeet-tdt-0.6b-v3")
    described = AsrModel(
        name=model,
        attribution=nvidia,
        installed=True,
        description="Parakeet TDT",
        version=None,
        languages=sorted(LANGUAGES),
    )
    program = AsrProgram(
        name="parakeet",
        attribution=nvidia,
        installed=True,
        description="Parakeet Worker",
        version=__version__,
        models=[described],
    )
    return Info(asr=[program])


def main(uri: str, settings: Settings, endpoint: str | None) -> None:
    """Run until a signal. Raises `InvalidRequest` for wrong arguments, and `SetupError`."""
    # While the model loads, which occupies the loop.
    for each in (signal.SIGTERM, signal.SIGINT):
        signal.signal(each, lambda number, _: sys.exit(128 + number))
    retries.log_retries()
    lines = NonBlockingHandler(2)
    lines.setFormatter(PlainLines())
    logging.basicConfig(level=logging.INFO, handlers=[lines])
    try:
        _run(uri, settings, endpoint)
    finally:
        lines.close()  # before the exit message is printed


def _run(uri: str, settings: Settings, endpoint: str | None) -> None:
    address = Address.read(uri)
    opening: Open = local
    if endpoint is not None:
        opening = partial(remote, Endpoint.read(endpoint, settings.runpod_endpoint_base_url))
    if not asyncio.run(serve(address, settings, opening)):
        sys.exit("parakeet: the engine is lost; exiting so that the process is replaced")
