"""Audio behind http or https, fetched so that no request reaches where it may not."""

from base64 import b64encode
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from urllib.parse import quote, urljoin, urlsplit

import aiohttp
from yarl import URL

from parakeet_worker.errors import (
    InvalidRequest,
    ParakeetError,
    SourceForbidden,
    SourceNotFound,
    SourceRefused,
    SourceTimeout,
    SourceUnreachable,
)
from parakeet_worker.remote import http, url_guard
from parakeet_worker.remote.retries import Transient, is_transient, retry, retry_after_seconds
from parakeet_worker.request import UrlSource
from parakeet_worker.settings import Settings

_ATTEMPTS = 5
_MAX_REDIRECTS = 10
_MAX_DIGITS = 20
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_MISSING = frozenset({404, 410})
# All printable ASCII: a `Location` is requested exactly as the server wrote it.
_LITERAL = "".join(map(chr, range(0x21, 0x7F)))


async def download(source: UrlSource, target: Path, settings: Settings) -> None:
    """Download to `target`, with retries on transient failures.

    Raises `SourceForbidden`, `SourceNotFound`, `SourceRefused`, `SourceUnreachable`,
    `SourceTimeout` or `AudioTooLarge`.
    """
    limit_seconds = settings.download_timeout_seconds
    try:
        await retry(
            partial(_attempt, source.url, target, settings),
            attempts=_ATTEMPTS,
            limit_seconds=limit_seconds,
        )
    except TimeoutError as failure:
        raise SourceTimeout(url_guard.redacted(source.url), limit_seconds) from failure


async def _attempt(url: str, target: Path, settings: Settings) -> None:
    shown = url_guard.redacted(url)
    connector = url_guard.connector(allow_private=settings.allow_private_addresses)
    try:
        async with (
            http.session(settings, connector) as session,
            _followed(session, url, shown) as response,
        ):
            _check_status(response, shown)
            with target.open("wb") as file:
                await http.save(response, file, settings.max_audio_bytes)
    except aiohttp.InvalidURL as failure:
        raise InvalidRequest("audio_url", f"{shown} is not a URL") from failure
    # Before ValueError: the class for a rejected certificate is a subclass of both.
    except (aiohttp.ClientError, TimeoutError, ConnectionError) as failure:
        raise _failed(failure, shown, settings) from failure
    except ValueError as failure:
        raise InvalidRequest("audio_url", f"{shown} is not a URL") from failure


@asynccontextmanager
async def _followed(
    session: aiohttp.ClientSession, url: str, shown: str
) -> AsyncGenerator[aiohttp.ClientResponse, None]:
    """Follow redirects and yield the last response.

    aiohttp's own redirects re-encode `%2F` and `%7E`, which breaks signatures over the URL.
    Every hop uses the guarded connector.
    """
    headers: dict[str, str] = {}
    for _ in range(_MAX_REDIRECTS + 1):
        address = url_guard.to_url(url)
        if address.user is not None:
            headers = {"Authorization": _basic(address.user, address.password or "")}
            address = address.with_user(None)
        async with session.get(address, allow_redirects=False, headers=headers) as response:
            location = response.headers.get("Location")
            if response.status not in _REDIRECTS or not location:
                yield response
                return
        try:
            url = _next(url, location)
            same_origin = _same_origin(address, url, shown)
        except ValueError as failure:
            raise SourceForbidden(shown, "it redirects to an invalid URL") from failure
        if not same_origin:
            headers = {}
    raise SourceForbidden(shown, f"it redirects more than {_MAX_REDIRECTS} times")


def _basic(user: str, password: str) -> str:
    return "Basic " + b64encode(f"{user}:{password}".encode()).decode()


def _next(url: str, location: str) -> str:
    """Resolve a `Location`; bytes that are invalid in a URL are percent-encoded."""
    parts = urlsplit(location)

    def encoded(text: str) -> str:
        return quote(text.encode(errors="surrogateescape"), safe=_LITERAL)

    target = parts._replace(path=encoded(parts.path), query=encoded(parts.query)).geturl()
    # urljoin treats `http:` without a host as a relative reference.
    return target if parts.scheme else urljoin(url, target)


def _same_origin(before: URL, url: str, shown: str) -> bool:
    """Whether a redirect has the same origin; raises `SourceForbidden` if it is not http(s).

    Raises ValueError for an invalid URL.
    """
    after = url_guard.to_url(url)
    if after.scheme in ("http", "https") and after.host:
        return after.origin() == before.origin()
    raise SourceForbidden(shown, "it redirects to another scheme than http(s)")


def _check_status(response: aiohttp.ClientResponse, shown: str) -> None:
    status = response.status
    if status in _MISSING:
        raise SourceNotFound(shown)
    if is_transient(status):
        unreachable = SourceUnreachable(shown, f"the server answered {status}")
        raise Transient(unreachable, retry_after_seconds(response.headers.get("Retry-After")))
    # 203: modified by a proxy. An unrequested 206 may contain the whole file.
    if status not in (200, 203) and not (status == 206 and _is_whole(response)):
        raise SourceRefused(shown, status)


def _is_whole(response: aiohttp.ClientResponse) -> bool:
    """Whether the range of a 206 is the whole file."""
    unit, _, content_range = response.headers.get("Content-Range", "").partition(" ")
    part, _, total = content_range.partition("/")
    size = int(total) if total.isdecimal() and len(total) < _MAX_DIGITS else 0
    return unit == "bytes" and part == f"0-{size - 1}"


def _failed(failure: Exception, shown: str, settings: Settings) -> ParakeetError | Transient:
    blocked, certificate = url_guard.blocked_reason(failure), http.certificate_error(failure)
    if blocked is not None:
        return SourceForbidden(shown, blocked)
    if certificate is not None:
        return SourceRefused(shown, None, certificate)
    reason = http.failure_reason(failure, settings.stall_timeout_seconds)
    return Transient(SourceUnreachable(shown, reason))
