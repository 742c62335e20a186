"""HTTP responses: JSON documents, errors in the format of their route, and event streams."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Mapping
from contextlib import AsyncExitStack, aclosing
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from parakeet_worker.errors import ParakeetError, TransientError
from parakeet_worker.json_encoding import encoded, encoded_in_thread, has_long_list
from parakeet_worker.wire import openai

Value = TypeVar("Value")
Event = tuple[str | None, Mapping[str, object]]
"""An optional event name and a document."""

RETRY_AFTER_SECONDS = 5
KEEP_ALIVE_SECONDS = 15.0
CLIENT_CLOSED_REQUEST = 499
"""Status in the access log for a request whose client disconnected."""


def is_openai(path: str) -> bool:
    """Whether a path belongs to the OpenAI-compatible API."""
    return path.startswith("/v1/")


def error_document(error: ParakeetError, path: str) -> dict[str, Any]:
    """The error in the format of the API that `path` belongs to."""
    return openai.error(error) if is_openai(path) else error.document()


def error_response(error: ParakeetError, path: str) -> Response:
    """The error as an HTTP response."""
    headers = {}
    if isinstance(error, TransientError):
        headers["Retry-After"] = str(RETRY_AFTER_SECONDS)
    if error.http_status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return JSONResponse(error_document(error, path), error.http_status, headers)


async def while_connected(receive: Receive, work: Coroutine[Any, Any, Value]) -> Value:
    """Await `work`; cancel it and raise `ClientDisconnect` if the client disconnects."""
    working = asyncio.create_task(work)
    disconnect = asyncio.create_task(_disconnected(receive))
    try:
        await asyncio.wait({working, disconnect}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise ClientDisconnect
    finally:
        working.cancel()
        disconnect.cancel()
        await asyncio.gather(working, disconnect, return_exceptions=True)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def with_keepalive(
    events: AsyncGenerator[Event, None], quiet_seconds: float
) -> AsyncGenerator[Event | None, None]:
    """Yield the events, and None after each `quiet_seconds` without one.

    One task runs the generator from start to end, because a timeout around its `anext` would
    cancel it.
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


async def first_event(
    request: Request, events: AsyncGenerator[Event, None]
) -> tuple[Event | None, AsyncGenerator[Event | None, None]]:
    """Wait for the first event or the keep-alive interval; return it and the remaining events.

    An immediate failure thus becomes an HTTP error instead of an event. Raises what the events
    raise.
    """
    rest = with_keepalive(events, KEEP_ALIVE_SECONDS)
    try:
        return await while_connected(request.receive, _next(rest)), rest
    except BaseException:
        await rest.aclose()
        raise


async def json_response(document: object) -> Response:
    """A JSON response, serialised in a thread."""
    content = (await encoded_in_thread(document)).encode(errors="backslashreplace")
    return Response(content, media_type="application/json")


class EventStream(Response):
    """Server-sent events; a disconnected client cancels the work."""

    media_type = "text/event-stream"

    def __init__(
        self,
        first: Event | None,
        rest: AsyncGenerator[Event | None, None],
        *,
        resources: AsyncExitStack,
        failed: Callable[[ParakeetError], Event],
        last: bytes = b"",
    ) -> None:
        """`resources` is closed when the stream ends or the client disconnects."""
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._first, self._rest, self._resources = first, rest, resources
        self._failed, self._last = failed, last

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002
        try:
            await while_connected(receive, self._send(send))
        except ClientDisconnect:
            return
        finally:
            await self._rest.aclose()
            await self._resources.aclose()

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        async for content in self._encoded():
            await send({"type": "http.response.body", "body": content, "more_body": True})
        await send({"type": "http.response.body", "body": self._last, "more_body": False})

    async def _encoded(self) -> AsyncIterator[bytes]:
        yield await _encoded(self._first)
        try:
            async for event in self._rest:
                yield await _encoded(event)
        except ParakeetError as error:
            yield await _encoded(self._failed(error))


async def _next(events: AsyncGenerator[Event | None, None]) -> Event | None:
    return await anext(events)


async def _encoded(event: Event | None) -> bytes:
    if event is None:
        return b": keep-alive\n\n"
    name, document = event
    in_thread = has_long_list(document)  # true for the final result, not for a segment
    data = await encoded_in_thread(document) if in_thread else encoded(document)
    head = f"event: {name}\n" if name else ""
    return f"{head}data: {data}\n\n".encode(errors="backslashreplace")
