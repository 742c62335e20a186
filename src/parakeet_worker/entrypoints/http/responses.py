"""Answers as HTTP: documents, errors in the shape of their door, and events while they come."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Mapping
from contextlib import AsyncExitStack, aclosing
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from parakeet_worker import json_text
from parakeet_worker.errors import ParakeetError, TransientError
from parakeet_worker.wire import openai

Value = TypeVar("Value")
Event = tuple[str | None, Mapping[str, object]]
"""A name, if the event has one, and a document."""

RETRY_AFTER_SECONDS = 5
KEEP_ALIVE_SECONDS = 15.0
GONE = 499
"""What is noted where nobody is left to read an answer."""


def is_openai(path: str) -> bool:
    """Whether a path belongs to the door that speaks as OpenAI's."""
    return path.startswith("/v1/")


def error_document(error: ParakeetError, path: str) -> dict[str, Any]:
    """The error as the door behind `path` says it."""
    return openai.error(error) if is_openai(path) else error.document()


def refusal(error: ParakeetError, path: str) -> Response:
    """The error as a whole answer."""
    headers = {}
    if isinstance(error, TransientError):
        headers["Retry-After"] = str(RETRY_AFTER_SECONDS)
    if error.http_status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return JSONResponse(error_document(error, path), error.http_status, headers)


async def while_connected(receive: Receive, work: Coroutine[Any, Any, Value]) -> Value:
    """Await `work`; cancel it, and raise `ClientDisconnect`, when the caller goes."""
    working = asyncio.create_task(work)
    leaving = asyncio.create_task(_left(receive))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise ClientDisconnect
    finally:
        working.cancel()
        leaving.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def kept_alive(
    events: AsyncGenerator[Event, None], quiet_seconds: float
) -> AsyncGenerator[Event | None, None]:
    """The events, and None wherever there has been none for so long.

    One task runs them from beginning to end, whoever asks for the next.
    """
    arrived: asyncio.Queue[Event | None] = asyncio.Queue()

    async def run() -> None:
        async with aclosing(events):
            async for event in events:
                arrived.put_nowait(event)

    running = asyncio.create_task(run())
    running.add_done_callback(lambda _: arrived.put_nowait(None))
    try:
        while True:
            try:
                async with asyncio.timeout(quiet_seconds):
                    event = await arrived.get()
            except TimeoutError:
                yield None
                continue
            if event is None:
                await running
                return
            yield event
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def begun(
    request: Request, events: AsyncGenerator[Event, None]
) -> tuple[Event | None, AsyncGenerator[Event | None, None]]:
    """The first event, once it is there or has been long enough in coming, and the rest.

    So what fails at once is an error of HTTP and not an event. Raises what the events raise.
    """
    rest = kept_alive(events, KEEP_ALIVE_SECONDS)
    try:
        return await while_connected(request.receive, _next(rest)), rest
    except BaseException:
        await rest.aclose()
        raise


async def answered(document: object) -> Response:
    """An answer as JSON, written in a thread."""
    content = (await json_text.written_aside(document)).encode(errors="backslashreplace")
    return Response(content, media_type="application/json")


class EventStream(Response):
    """Server-sent events; whoever goes has his work cancelled."""

    media_type = "text/event-stream"

    def __init__(
        self,
        first: Event | None,
        rest: AsyncGenerator[Event | None, None],
        *,
        inside: AsyncExitStack,
        failed: Callable[[ParakeetError], Event],
        last: bytes = b"",
    ) -> None:
        """`inside` is closed when all is sent, or nobody reads any more."""
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._first, self._rest, self._inside = first, rest, inside
        self._failed, self._last = failed, last

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002
        try:
            await while_connected(receive, self._send(send))
        except ClientDisconnect:
            return
        finally:
            await self._rest.aclose()
            await self._inside.aclose()

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        async for content in self._written():
            await send({"type": "http.response.body", "body": content, "more_body": True})
        await send({"type": "http.response.body", "body": self._last, "more_body": False})

    async def _written(self) -> AsyncIterator[bytes]:
        yield await _written(self._first)
        try:
            async for event in self._rest:
                yield await _written(event)
        except ParakeetError as error:
            yield await _written(self._failed(error))


async def _next(events: AsyncGenerator[Event | None, None]) -> Event | None:
    return await anext(events)


async def _written(event: Event | None) -> bytes:
    if event is None:
        return b": still here\n\n"
    name, document = event
    aside = json_text.holds_many(document)  # the whole does, which comes last; no sentence
    data = await json_text.written_aside(document) if aside else json_text.written(document)
    head = f"event: {name}\n" if name else ""
    return f"{head}data: {data}\n\n".encode(errors="backslashreplace")
