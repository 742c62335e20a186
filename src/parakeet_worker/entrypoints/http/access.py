"""Request ids and the access log: one line per request."""

import logging
import re
import time
from collections.abc import MutableMapping
from typing import Any
from uuid import uuid4

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from parakeet_worker.entrypoints.http.responses import CLIENT_CLOSED_REQUEST
from parakeet_worker.outcome import Outcome

log = logging.getLogger(__name__)

REQUEST_ID = "X-Request-ID"
_ID = re.compile(r"[\w.:-]{1,128}", re.ASCII)
# Requested every few seconds by load balancers; logged only on failure.
_FREQUENT = frozenset({"/ping", "/health", "/ready", "/metrics"})


class AccessLog:
    """Echo or generate `X-Request-ID`, and log the request when it ends."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        requested_id = Headers(scope=scope).get(REQUEST_ID, "")
        request_id = requested_id if _ID.fullmatch(requested_id) else uuid4().hex
        state = scope.setdefault("state", {})
        started, status = time.monotonic(), CLIENT_CLOSED_REQUEST

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(raw=message["headers"])[REQUEST_ID] = request_id
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        finally:
            _log(scope, state, request_id, status, time.monotonic() - started)


def count(state: MutableMapping[str, Any], outcome: Outcome) -> None:
    """Add a recording to the log line of its request."""
    seconds = outcome.transcript.seconds if outcome.transcript is not None else 0.0
    state["audio_seconds"] = state.get("audio_seconds", 0.0) + seconds


def _log(
    scope: Scope, state: MutableMapping[str, Any], request_id: str, status: int, seconds: float
) -> None:
    if scope["path"] in _FREQUENT and status < 400:
        return
    facts: dict[str, object] = {"status": status, "seconds": round(seconds, 3)}
    audio_seconds = state.get("audio_seconds")
    if audio_seconds:
        facts |= {
            "audio_seconds": round(audio_seconds, 3),
            "rtfx": round(audio_seconds / max(seconds, 1e-6), 1),
        }
    path = scope["path"][:200].encode(errors="backslashreplace").decode()
    log.info("%s %s", scope["method"], path, extra={"job": request_id, "facts": facts})
