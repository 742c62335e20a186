"""Connection limits: close idle and slow clients, answer 503 beyond the maximum."""

import asyncio
import errno
import inspect
import logging
import signal
import socket
from types import FrameType
from typing import Any

import uvicorn
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from parakeet_worker.settings import Settings

log = logging.getLogger(__name__)

_TOO_MANY = (
    b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 5\r\nConnection: close\r\n"
    b"Content-Length: 21\r\nContent-Type: text/plain\r\n\r\ntoo many connections\n"
)
_DRAIN_SECONDS = 5.0
_ACCEPT_LOG_SECONDS = 10.0
_NO_DESCRIPTORS = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
_QUIET_SECONDS = 1.0


class _AcceptErrors:
    """Event-loop exception handler that logs a lack of descriptors once per 10 s.

    asyncio reports it with a traceback for every slot of the listening socket's backlog.
    """

    def __init__(self) -> None:
        self._logged = float("-inf")

    def __call__(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        failure = context.get("exception")
        if not isinstance(failure, OSError) or failure.errno not in _NO_DESCRIPTORS:
            loop.default_exception_handler(context)
        elif loop.time() - self._logged >= _ACCEPT_LOG_SECONDS:
            self._logged = loop.time()
            log.warning("a connection was not accepted: %s", failure.strerror)


class _Server(uvicorn.Server):
    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        asyncio.get_running_loop().set_exception_handler(_AcceptErrors())
        await super().serve(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002
        """Drain and exit with status 0; uvicorn would re-raise the signal afterwards."""
        if self.should_exit and sig == signal.SIGINT:
            self.force_exit = True
        self.should_exit = True


def server(app: ASGIApp, settings: Settings) -> uvicorn.Server:
    """A uvicorn server for `app`; `should_exit` may be set from any thread."""
    config = uvicorn.Config(
        DrainRequestBody(app),
        http=_protocol(settings),
        # uvloop has its own child watcher, which conflicts with the ffmpeg processes.
        loop="asyncio",
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=settings.idle_timeout_seconds,  # type: ignore[arg-type]
        timeout_graceful_shutdown=settings.stop_timeout_seconds,  # type: ignore[arg-type]
    )
    return _Server(config)


def _protocol(settings: Settings) -> type[asyncio.Protocol]:
    """The limited protocol, or uvicorn's own if its private attributes have changed."""
    try:
        check_protocol(H11Protocol)
    except ProtocolChanged as change:
        log.warning("unsupported uvicorn version, connections are not limited: %s", change)
        return H11Protocol
    return protocol(settings.max_connections)


class ProtocolChanged(Exception):
    """uvicorn's protocol differs from the supported versions."""


_METHODS = (
    "connection_made", "data_received", "pause_writing", "resume_writing",
    "timeout_keep_alive_handler",
)  # fmt: skip
_ATTRIBUTES = ("connections", "cycle", "loop", "timeout_keep_alive", "timeout_keep_alive_task")


def check_protocol(candidate: type[asyncio.Protocol]) -> None:
    """Check the private names that `protocol` uses; raises `ProtocolChanged`.

    Attributes are looked up in the code of `__init__`, which assigns them.
    """
    assigned = inspect.unwrap(candidate.__init__).__code__.co_names
    missing = [name for name in _METHODS if not callable(getattr(candidate, name, None))]
    missing += [name for name in _ATTRIBUTES if name not in assigned]
    if missing:
        raise ProtocolChanged(f"{candidate.__qualname__} has no {', '.join(missing)}")


def protocol(max_connections: int) -> type[H11Protocol]:
    """uvicorn's h11 protocol with a maximum number of connections and stricter idle timeouts.

    `timeout_keep_alive` also applies before the first request, until a request's headers are
    complete, and to a client that does not read its response. h11 instead of httptools because
    it limits the size of headers.
    """

    class Connection(H11Protocol):
        _unread: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            if len(self.connections) > max_connections:
                transport.write(_TOO_MANY)
                transport.close()
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )

        def data_received(self, data: bytes) -> None:
            if self.transport.is_closing():
                return
            timeout = self.timeout_keep_alive_task
            super().data_received(data)
            between = self.cycle is None or self.cycle.response_complete
            if timeout is not None and between and self.timeout_keep_alive_task is None:
                # Incomplete headers do not restart the timeout.
                self.timeout_keep_alive_task = self.loop.call_at(
                    timeout.when(), self.timeout_keep_alive_handler
                )

        def timeout_keep_alive_handler(self) -> None:
            super().timeout_keep_alive_handler()
            self.loop.call_later(self.timeout_keep_alive, self.transport.abort)

        def pause_writing(self) -> None:
            super().pause_writing()
            self._unread = self.loop.call_later(self.timeout_keep_alive, self.transport.abort)

        def resume_writing(self) -> None:
            super().resume_writing()
            if self._unread is not None:
                self._unread.cancel()

    return Connection


class DrainRequestBody:
    """Read and discard the rest of an upload after an early response.

    Closing a connection with unread bytes resets it, and the client may lose the response.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        unread = any(
            name in (b"content-length", b"transfer-encoding") for name, _ in scope["headers"]
        )

        async def receive_observed() -> Message:
            nonlocal unread
            message = await receive()
            unread = unread and message["type"] == "http.request" and message["more_body"]
            return message

        async def send_and_drain(message: Message) -> None:
            ends = message["type"] == "http.response.body" and not message.get("more_body", False)
            if ends and unread:
                await send({**message, "more_body": True})
                await self._drain(receive_observed, lambda: unread)
                message = {"type": "http.response.body", "body": b"", "more_body": False}
            await send(message)

        await self._app(scope, receive_observed, send_and_drain)

    @staticmethod
    async def _drain(receive: Receive, unread: Any) -> None:
        try:
            async with asyncio.timeout(_DRAIN_SECONDS):
                while unread():
                    async with asyncio.timeout(_QUIET_SECONDS):
                        await receive()
        except TimeoutError:
            return
