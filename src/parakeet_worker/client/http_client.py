"""HTTP calls to an endpoint, with retries of transient failures."""

import json
import socket
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import AbstractContextManager, aclosing, nullcontext
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any, TypeAlias
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import httpx
import stamina

from parakeet_worker import errors
from parakeet_worker.errors import (
    EndpointDenied,
    EndpointRefused,
    EndpointUnreachable,
    EngineLost,
    InvalidRequest,
    InvalidSetting,
    ParakeetError,
    TransientError,
    one_line,
)
from parakeet_worker.remote.retries import retry_after_seconds

RETRY_SECONDS = 300.0
"""How long transient failures are retried."""

_WAIT_INITIAL_SECONDS = 0.5
_WAIT_MAX_SECONDS = 20.0
_CONNECT_SECONDS = 15.0
_STALL_SECONDS = 60.0
_REASON_CHARACTERS = 200
_PASSING = frozenset({408, 425, 429})
# A load-balancing endpoint's answer, with status 400, while it has no worker.
_NO_WORKER = "timed out waiting for worker"
# Errors about the endpoint, not about the recording.
_OF_THE_ENDPOINT = frozenset({"invalid_api_key", "unknown_route", "method_not_allowed"})


@dataclass(frozen=True, slots=True)
class Retry:
    """A failed call that is about to be retried."""

    url: str
    reason: str
    seconds_left: float
    """Until the failure is final."""


OnRetry: TypeAlias = Callable[[Retry], None]

OnEvent: TypeAlias = Callable[[str, Any], None]
"""Called with the name and the JSON of a server-sent event."""

Body: TypeAlias = Callable[[], AbstractContextManager[Mapping[str, Any]]]
"""Opens the body as arguments for httpx, once per attempt."""


def nothing() -> AbstractContextManager[Mapping[str, Any]]:
    """No body."""
    return nullcontext({})


def json_body(content: bytes) -> AbstractContextManager[Mapping[str, Any]]:
    """JSON that is already encoded."""
    return nullcontext({"content": content, "headers": {"Content-Type": "application/json"}})


class HttpClient:
    """A connection pool with the caller's key."""

    def __init__(
        self,
        url: str,
        api_key: str | None,
        retry_seconds: float = RETRY_SECONDS,
        refused_seconds: float | None = None,
    ) -> None:
        """To the endpoint at `url`; `refused_seconds` limits retries of refused connections.

        Raises `InvalidSetting` for proxies or certificates.
        """
        self._retry_seconds = retry_seconds
        self._refused_seconds = retry_seconds if refused_seconds is None else refused_seconds
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._http = httpx.AsyncClient(
            headers=headers,
            timeout=httpx.Timeout(_STALL_SECONDS, connect=_CONNECT_SECONDS, pool=None),
            transport=_transport(url),
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
        on_retry: OnRetry = lambda _: None,
        on_event: OnEvent = lambda _name, _document: None,
    ) -> Any:
        """The answer's JSON. Retries 408, 425, 429, 5xx and connection errors.

        Of a stream of events, `result` is the answer, and `on_event` is called with those before.

        Raises `EndpointDenied`, `EndpointRefused`, `EndpointUnreachable`, or the error that the
        answer carries.
        """
        limit = self._retry_seconds if retry_seconds is None else retry_seconds
        policy = _RetryPolicy(url, limit, min(limit, self._refused_seconds), on_retry)
        try:
            async for attempt in stamina.retry_context(
                on=policy,
                attempts=None,
                timeout=limit,
                wait_initial=_WAIT_INITIAL_SECONDS,
                wait_max=_WAIT_MAX_SECONDS,
            ):
                with attempt, body() as opened:
                    return await self._attempt(method, url, opened, answer_seconds, on_event)
        except _Transient as passing:
            raise passing.error from passing
        raise AssertionError

    async def _attempt(
        self,
        method: str,
        url: str,
        body: Mapping[str, Any],
        answer_seconds: float | None,
        on_event: OnEvent,
    ) -> Any:
        timeout = httpx.Timeout(
            _STALL_SECONDS, connect=_CONNECT_SECONDS, read=answer_seconds, pool=None
        )
        try:
            async with self._http.stream(method, url, timeout=timeout, **body) as response:
                if response.headers.get("content-type", "").startswith("text/event-stream"):
                    return await _result(response, url, on_event)
                await response.aread()
        except httpx.TimeoutException as failure:
            raise _Transient(
                EndpointUnreachable(url, "no answer within the time limit")
            ) from failure
        except httpx.LocalProtocolError as failure:
            # Its text is omitted: it contains the rejected header.
            raise EndpointRefused(url, 0, "the request cannot be sent as HTTP") from failure
        except httpx.TransportError as failure:
            reason = one_line(str(failure), _REASON_CHARACTERS) or type(failure).__name__
            refused = isinstance(failure, httpx.ConnectError)
            raise _Transient(EndpointUnreachable(url, reason), refused=refused) from failure
        except (httpx.InvalidURL, httpx.DecodingError) as failure:
            raise EndpointRefused(url, 0, one_line(str(failure))) from failure
        return _judged(response, url)


def checked_key(api_key: str | None, url: str, *, insecure: bool) -> str | None:
    """The stripped key, if it may be sent to `url`.

    Raises `InvalidRequest`, which never repeats it, where it cannot be a header, or where it would
    travel over plain http to another machine and `insecure` does not allow that.
    """
    key = (api_key or "").strip()
    if not key:
        return None
    if not key.isascii() or not key.isprintable():
        raise InvalidRequest("api_key", "must be printable ASCII on one line")
    parts = urlsplit(url)
    if parts.scheme != "https" and not is_loopback(url) and not insecure:
        reason = (
            f"{parts.scheme}://{parts.netloc.rpartition('@')[2]} is plain http, over which a key "
            "can be read in transit; use https, leave the key out, or set "
            "PARAKEET_ALLOW_INSECURE_KEYS=true"
        )
        raise InvalidRequest("endpoint", reason)
    return key


def is_loopback(url: str) -> bool:
    """Whether the address is on this machine, by its name alone."""
    host = urlsplit(url).hostname or ""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def _transport(url: str) -> httpx.AsyncHTTPTransport:
    """Connections to one endpoint, through the proxy of the environment if it names one.

    Given to httpx and not left to it, which takes no socket options together with proxies.
    """
    parts = urlsplit(url)
    proxy = None
    if not is_loopback(url) and not proxy_bypass(parts.netloc):
        proxy = getproxies().get(parts.scheme) or getproxies().get("all")
    try:
        return httpx.AsyncHTTPTransport(
            proxy=proxy,
            # No certificate is looked at without TLS, and so none is read.
            verify=parts.scheme == "https" or proxy is not None,
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=64),
            socket_options=_keepalive(),
        )
    except OSError as failure:
        reason = f"certificates cannot be read: {failure.strerror}"
        raise InvalidSetting("SSL_CERT_FILE or SSL_CERT_DIR", reason) from failure
    except (ImportError, ValueError, httpx.InvalidURL) as failure:
        variables = f"{parts.scheme.upper()}_PROXY or ALL_PROXY"
        raise InvalidSetting(variables, one_line(str(failure), _REASON_CHARACTERS)) from failure


def _keepalive() -> list[tuple[int, int, int]]:
    """Detect a dead peer after two minutes."""
    options = [(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)]
    for name, value in (("TCP_KEEPIDLE", 60), ("TCP_KEEPINTVL", 15), ("TCP_KEEPCNT", 4)):
        if hasattr(socket, name):  # macOS names the first one otherwise
            options.append((socket.IPPROTO_TCP, getattr(socket, name), value))
    return options


class _Transient(Exception):
    """A transient failure, and when to retry."""

    def __init__(
        self, error: ParakeetError, wait_seconds: float | None = None, *, refused: bool = False
    ) -> None:
        super().__init__(str(error))
        self.error = error
        self.wait_seconds = wait_seconds
        self.refused = refused
        """The connection was refused: a wrong address, or a server that is not up yet."""


class _RetryPolicy:
    """Retry condition for stamina."""

    def __init__(
        self, url: str, limit_seconds: float, refused_seconds: float, on_retry: OnRetry
    ) -> None:
        self._url = url
        self._limit_seconds = limit_seconds
        self._refused_seconds = refused_seconds
        self._on_retry = on_retry
        self._started = time.monotonic()

    def __call__(self, failure: Exception) -> bool | float:
        """Whether to retry after `failure`, or after how many seconds."""
        if not isinstance(failure, _Transient):
            return False
        limit = self._refused_seconds if failure.refused else self._limit_seconds
        left = limit - (time.monotonic() - self._started)
        if left <= 0:
            return False
        reason = str(failure.error.facts.get("reason") or failure.error.sentence)
        self._on_retry(Retry(self._url, reason, left))
        return True if failure.wait_seconds is None else failure.wait_seconds


def _judged(response: httpx.Response, url: str) -> Any:
    """The answer, or the error that it carries."""
    status = response.status_code
    answer = _document(response)
    if 200 <= status < 300 and answer is not None:
        return answer
    _raise_error(answer, _retry_after(response))
    reason = _reason(response, answer)
    if status in (401, 403):
        raise EndpointDenied(url, status)
    if status >= 500 or status in _PASSING or _NO_WORKER in reason:
        message = f"status {status}" + (f": {reason}" if reason else "")
        raise _Transient(EndpointUnreachable(url, message), _retry_after(response))
    raise EndpointRefused(url, status, reason)


def _raise_error(answer: Any, wait_seconds: float | None = None) -> None:
    """Raise the error of a recording or a worker that an answer carries."""
    error = errors.read(answer) if isinstance(answer, dict) else None
    if error is None or error.code in _OF_THE_ENDPOINT:
        return
    if isinstance(error, TransientError | EngineLost):
        raise _Transient(error, wait_seconds)
    raise error


async def _result(response: httpx.Response, url: str, on_event: OnEvent) -> Any:
    """The last event of a stream, or the error that it carries."""
    async with aclosing(_events(response, url)) as events:
        async for name, document in events:
            if name == "result":
                return document
            if name == "error":
                _raise_error(document)
                raise EndpointRefused(url, response.status_code, one_line(str(document)))
            on_event(name, document)
    raise _Transient(EndpointUnreachable(url, "the stream ended without a result"))


async def _events(response: httpx.Response, url: str) -> AsyncGenerator[tuple[str, Any], None]:
    name = ""
    async with aclosing(_lines(response)) as lines:
        async for line in lines:
            field, _, value = line.partition(b": ")
            if field == b"event":
                name = value.decode(errors="replace")
            elif field == b"data":
                try:
                    document = json.loads(value)
                except (ValueError, RecursionError) as failure:
                    raise EndpointRefused(
                        url, response.status_code, "an event is not JSON"
                    ) from failure
                yield name, document


async def _lines(response: httpx.Response) -> AsyncGenerator[bytes, None]:
    """Lines that end with a line feed; httpx's also end within JSON, such as at U+2028."""
    parts: list[bytes] = []
    async for content in response.aiter_bytes():
        *ended, rest = content.split(b"\n")
        for line in ended:
            yield b"".join([*parts, line])
            parts = []
        parts.append(rest)


def _document(response: httpx.Response) -> Any:
    try:
        return response.json()
    except (ValueError, RecursionError):
        return None


def _reason(response: httpx.Response, answer: Any) -> str:
    message = answer.get("error", answer.get("detail")) if isinstance(answer, dict) else None
    text = message if isinstance(message, str) else response.text
    return one_line(text, _REASON_CHARACTERS)


def _retry_after(response: httpx.Response) -> float | None:
    """The server's `Retry-After`, in seconds."""
    wait_seconds = retry_after_seconds(response.headers.get("Retry-After"))
    return None if wait_seconds is None else min(wait_seconds, 10 * _WAIT_MAX_SECONDS)
