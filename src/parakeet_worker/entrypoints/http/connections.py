"""Manners towards connections that stand still, do not listen, or are too many."""

import asyncio
import errno
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
_LINGER_SECONDS = 5.0
_ACCEPT_LOG_SECONDS = 10.0
_NO_DESCRIPTORS = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
_QUIET_SECONDS = 1.0


class _AcceptErrors:
    """The loop's exception handler: a lack of descriptors is a warning every 10 s.

    asyncio reports it once for each place in the listening socket's backlog, with a traceback.
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
        """Finish what runs and end well; uvicorn itself would die of the signal after it."""
        if self.should_exit and sig == signal.SIGINT:
            self.force_exit = True
        self.should_exit = True


def server(app: ASGIApp, settings: Settings) -> uvicorn.Server:
    """uvicorn around `app`; whether it should exit can be said from any thread."""
    config = uvicorn.Config(
        Lingering(app),
        http=protocol(settings.max_connections),
        # uvloop has child processes of its own, and ffmpeg is one.
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


def protocol(max_connections: int) -> type[H11Protocol]:
    """uvicorn's connection with a limit of them, and of the time for what it leaves open.

    Its `timeout_keep_alive` holds from the first moment and until a request's headers are whole,
    and for a caller who does not read his answer. h11, and not httptools: it has a limit on
    headers.
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
            waiting = self.timeout_keep_alive_task
            super().data_received(data)
            between = self.cycle is None or self.cycle.response_complete
            if waiting is not None and between and self.timeout_keep_alive_task is None:
                # Half of the headers buys no time.
                self.timeout_keep_alive_task = self.loop.call_at(
                    waiting.when(), self.timeout_keep_alive_handler
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


class Lingering:
    """Lets a caller read an answer that is there before all of his upload is.

    A connection that is closed with bytes unread is reset, and the answer is lost with it: what
    still comes is read and thrown away for some seconds first.
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

        async def receive_noted() -> Message:
            nonlocal unread
            message = await receive()
            unread = unread and message["type"] == "http.request" and message["more_body"]
            return message

        async def send_and_linger(message: Message) -> None:
            ends = message["type"] == "http.response.body" and not message.get("more_body", False)
            if ends and unread:
                await send({**message, "more_body": True})
                await self._drain(receive_noted, lambda: unread)
                message = {"type": "http.response.body", "body": b"", "more_body": False}
            await send(message)

        await self._app(scope, receive_noted, send_and_linger)

    @staticmethod
    async def _drain(receive: Receive, unread: Any) -> None:
        try:
            async with asyncio.timeout(_LINGER_SECONDS):
                while unread():
                    async with asyncio.timeout(_QUIET_SECONDS):
                        await receive()
        except TimeoutError:
            return
