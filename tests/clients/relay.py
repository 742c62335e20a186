"""A relay on loopback in front of a server: it records each request and its response."""

import json
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
import uvicorn
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

PATIENCE_SECONDS = 120.0
_HOP_BY_HOP = ("connection", "keep-alive", "transfer-encoding", "content-length", "host", "upgrade")


@dataclass(frozen=True, slots=True)
class Exchange:
    """One request of a client, and the server's response to it."""

    path: str
    fields: tuple[tuple[str, str], ...]
    """Fields of the form and of the query, without the file."""
    status: int
    headers: httpx.Headers
    body: bytearray

    @property
    def hints(self) -> list[str]:
        """The options without an effect, as the server's warnings name them."""
        listed = [each["message"] for each in self._document().get("warnings", ())]
        in_header = self.headers.get("x-warnings", "").split("; ")
        return [
            *(each for each in listed if "has no effect" in each),
            *(each.removeprefix("hint_ignored: ") for each in in_header if "has no effect" in each),
        ]

    @property
    def refusal(self) -> str:
        """The message of the error, empty if there is none."""
        return str(self._document().get("error", {}).get("message", ""))

    def _document(self) -> dict[str, Any]:
        text = bytes(self.body).decode()
        if "event-stream" in self.headers.get("content-type", ""):
            text = text.split("data: ")[-2]  # the last one is [DONE]
        try:
            parsed = json.loads(text)
        except ValueError:
            return {}
        return parsed if isinstance(parsed, dict) else {}


@dataclass(slots=True)
class Relay:
    """Requests to `url/CASE/...` go to the server without the name of their case."""

    url: str
    exchanges: dict[str, list[Exchange]] = field(default_factory=dict)


@contextmanager
def relaying(server: str) -> Iterator[Relay]:
    """A relay in front of the server at this address."""
    with socket.create_server(("127.0.0.1", 0)) as bound:
        relay = Relay(f"http://127.0.0.1:{bound.getsockname()[1]}")
        forward = _forwarding(server, relay)
        app = Starlette(routes=[Route("/{case}/{path:path}", forward, methods=["GET", "POST"])])
        config = uvicorn.Config(app, log_level="error", lifespan="off", ws="none")
        running = uvicorn.Server(config)
        thread = threading.Thread(target=running.run, args=([bound],))
        thread.start()
        try:
            yield relay
        finally:
            running.should_exit = True
            thread.join(PATIENCE_SECONDS)


def _forwarding(server: str, relay: Relay) -> Any:
    async def forward(request: Request) -> Response:
        content = await request.body()
        headers = {k: v for k, v in request.headers.items() if k not in _HOP_BY_HOP}
        path = f"/{request.path_params['path']}"
        client = httpx.AsyncClient(base_url=server, timeout=PATIENCE_SECONDS)
        forwarded = client.build_request(
            request.method, path, params=request.query_params.multi_items(), content=content,
            headers=headers,
        )  # fmt: skip
        answer = await client.send(forwarded, stream=True)
        received = bytearray()
        fields = [*request.query_params.multi_items()]
        if headers.get("content-type", "").startswith("multipart/"):
            async with request.form() as form:
                fields += [(k, v) for k, v in form.multi_items() if isinstance(v, str)]
        exchange = Exchange(path, tuple(fields), answer.status_code, answer.headers, received)
        relay.exchanges.setdefault(request.path_params["case"], []).append(exchange)

        async def parts() -> AsyncIterator[bytes]:
            async for part in answer.aiter_bytes():
                received.extend(part)
                yield part

        kept = {
            k: v for k, v in answer.headers.items() if k not in (*_HOP_BY_HOP, "content-encoding")
        }
        return StreamingResponse(
            parts(), answer.status_code, kept, background=BackgroundTask(client.aclose)
        )

    return forward
