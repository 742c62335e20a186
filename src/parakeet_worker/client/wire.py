"""One call to an endpoint, tried again for as long as that may help."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeAlias

import httpx
import stamina

from parakeet_worker import errors
from parakeet_worker.errors import (
    EndpointDenied,
    EndpointRefused,
    EndpointUnreachable,
    EngineLost,
    ParakeetError,
    TransientError,
)

RETRY_SECONDS = 300.0
"""How long a call that fails in passing is tried again."""

_WAIT_INITIAL_SECONDS = 0.5
_WAIT_MAX_SECONDS = 20.0
_CONNECT_SECONDS = 15.0
_STALL_SECONDS = 60.0
_REASON_CHARACTERS = 200
_PASSING = frozenset({408, 425, 429})
# What a load-balancing endpoint says, with status 400, while it has no worker yet.
_NO_WORKER = "timed out waiting for worker"
# What the endpoint says of itself, and not of the recording.
_OF_THE_ENDPOINT = frozenset({"invalid_api_key", "unknown_route", "method_not_allowed"})

Body: TypeAlias = Callable[[], AbstractContextManager[Mapping[str, Any]]]
"""Opens the body, as arguments for httpx, anew for every attempt."""


def nothing() -> AbstractContextManager[Mapping[str, Any]]:
    """No body."""
    return nullcontext({})


def json_body(content: bytes) -> AbstractContextManager[Mapping[str, Any]]:
    """JSON that is written already."""
    return nullcontext({"content": content, "headers": {"Content-Type": "application/json"}})


class Wire:
    """An open connection pool with the caller's key."""

    def __init__(self, api_key: str | None, retry_seconds: float = RETRY_SECONDS) -> None:
        self._retry_seconds = retry_seconds
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._http = httpx.AsyncClient(
            headers=headers,
            timeout=httpx.Timeout(_STALL_SECONDS, connect=_CONNECT_SECONDS, pool=None),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=64),
        )

    async def close(self) -> None:
        """Close all connections."""
        await self._http.aclose()

    async def call(
        self,
        method: str,
        url: str,
        body: Body = nothing,
        *,
        retry_seconds: float | None = None,
        answer_seconds: float | None = _STALL_SECONDS,
    ) -> Any:
        """The JSON that is answered; a 4xx is not tried again, but for 408, 425 and 429.

        Raises `EndpointDenied`, `EndpointRefused`, `EndpointUnreachable`, or the error that the
        answer tells of.
        """
        limit = self._retry_seconds if retry_seconds is None else retry_seconds
        try:
            async for attempt in stamina.retry_context(
                on=_wait,
                attempts=None,
                timeout=limit,
                wait_initial=_WAIT_INITIAL_SECONDS,
                wait_max=_WAIT_MAX_SECONDS,
            ):
                with attempt, body() as opened:
                    return await self._attempt(method, url, opened, answer_seconds)
        except _Passing as passing:
            raise passing.error from passing
        raise AssertionError

    async def _attempt(
        self, method: str, url: str, body: Mapping[str, Any], answer_seconds: float | None
    ) -> Any:
        timeout = httpx.Timeout(
            _STALL_SECONDS, connect=_CONNECT_SECONDS, read=answer_seconds, pool=None
        )
        try:
            response = await self._http.request(method, url, timeout=timeout, **body)
        except httpx.TimeoutException as failure:
            raise _Passing(EndpointUnreachable(url, "it stood still for too long")) from failure
        except httpx.TransportError as failure:
            reason = str(failure) or type(failure).__name__
            raise _Passing(EndpointUnreachable(url, reason)) from failure
        except (httpx.InvalidURL, httpx.DecodingError) as failure:
            raise EndpointRefused(url, 0, str(failure)) from failure
        return _judged(response, url)


class _Passing(Exception):
    """A failure that may be over at the next attempt, and when that should be."""

    def __init__(self, error: ParakeetError, wait_seconds: float | None = None) -> None:
        super().__init__(str(error))
        self.error = error
        self.wait_seconds = wait_seconds


def _wait(failure: Exception) -> bool | float:
    if not isinstance(failure, _Passing):
        return False
    return True if failure.wait_seconds is None else failure.wait_seconds


def _judged(response: httpx.Response, url: str) -> Any:
    """The answer, or the error that it tells of."""
    status = response.status_code
    answer = _document(response)
    if 200 <= status < 300 and answer is not None:
        return answer
    told = errors.read(answer) if isinstance(answer, dict) else None
    if told is not None and told.code not in _OF_THE_ENDPOINT:
        if isinstance(told, TransientError | EngineLost):
            raise _Passing(told, _retry_after(response))
        raise told
    reason = _reason(response, answer)
    if status in (401, 403):
        raise EndpointDenied(url, status)
    if status >= 500 or status in _PASSING or _NO_WORKER in reason:
        said = f"it answered {status}" + (f": {reason}" if reason else "")
        raise _Passing(EndpointUnreachable(url, said), _retry_after(response))
    raise EndpointRefused(url, status, reason)


def _document(response: httpx.Response) -> Any:
    try:
        return response.json()
    except ValueError:
        return None


def _reason(response: httpx.Response, answer: Any) -> str:
    said = answer.get("error", answer.get("detail")) if isinstance(answer, dict) else None
    text = said if isinstance(said, str) else response.text
    return " ".join(text.split())[:_REASON_CHARACTERS]


def _retry_after(response: httpx.Response) -> float | None:
    """What the server asks for, in seconds; a date counts as not said."""
    said = response.headers.get("Retry-After", "")
    return min(float(said), 10 * _WAIT_MAX_SECONDS) if said.isdecimal() else None
