"""Audio behind http or https, fetched so that no request reaches where it may not."""

import asyncio
from pathlib import Path

import aiohttp
import stamina

from parakeet_worker import addresses
from parakeet_worker.errors import (
    AudioTooLarge,
    InvalidRequest,
    SourceForbidden,
    SourceNotFound,
    SourceRefused,
    SourceTimeout,
    SourceUnreachable,
)
from parakeet_worker.request import UrlSource
from parakeet_worker.settings import Settings

_ATTEMPTS = 3
_MAX_REDIRECTS = 5
_CHUNK_BYTES = 1 << 16
_PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})
_GONE = frozenset({404, 410})


async def download(source: UrlSource, target: Path, settings: Settings) -> None:
    """Fetch into `target`, with retries on passing faults.

    Raises `SourceForbidden`, `SourceNotFound`, `SourceRefused`, `SourceUnreachable`,
    `SourceTimeout` or `AudioTooLarge`.
    """
    limit_seconds = settings.download_timeout_seconds
    try:
        async with asyncio.timeout(limit_seconds):
            async for attempt in stamina.retry_context(
                on=SourceUnreachable,
                attempts=_ATTEMPTS,
                timeout=None,
                wait_initial=0.2,
                wait_max=5.0,
            ):
                with attempt:
                    await _attempt(source.url, target, settings)
    except TimeoutError as failure:
        raise SourceTimeout(addresses.shown(source.url), limit_seconds) from failure


async def _attempt(url: str, target: Path, settings: Settings) -> None:
    shown = addresses.shown(url)
    stall = settings.stall_timeout_seconds
    try:
        async with (
            aiohttp.ClientSession(
                connector=addresses.connector(allow_private=settings.allow_private_addresses),
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=stall, sock_read=stall),
            ) as session,
            session.get(addresses.exact(url), max_redirects=_MAX_REDIRECTS) as response,
        ):
            _check_status(response.status, shown)
            await _save(response, target, settings.max_audio_bytes)
    except (aiohttp.RedirectClientError, aiohttp.TooManyRedirects) as failure:
        raise SourceForbidden(shown, "it redirects too often or away from http") from failure
    except ValueError as failure:
        raise InvalidRequest("audio_url", f"{shown} is not a URL") from failure
    except (aiohttp.ClientError, TimeoutError, ConnectionError) as failure:
        raise _unreachable(failure, shown) from failure


def _check_status(status: int, shown: str) -> None:
    if status in _GONE:
        raise SourceNotFound(shown)
    if status in _PASSING:
        raise SourceUnreachable(shown, f"the server answered {status}")
    if status != 200:
        raise SourceRefused(shown, status)


async def _save(response: aiohttp.ClientResponse, target: Path, max_bytes: int) -> None:
    if (response.content_length or 0) > max_bytes:
        raise AudioTooLarge(max_bytes, response.content_length)
    size = 0
    with target.open("wb") as file:
        async for chunk in response.content.iter_chunked(_CHUNK_BYTES):
            size += len(chunk)
            if size > max_bytes:
                raise AudioTooLarge(max_bytes)
            file.write(chunk)


def _unreachable(failure: Exception, shown: str) -> SourceForbidden | SourceUnreachable:
    forbidden = addresses.forbidden(failure)
    if forbidden is not None:
        return SourceForbidden(shown, forbidden)
    if isinstance(failure, TimeoutError):
        return SourceUnreachable(shown, "the server stood still for too long")
    # Its own text holds the whole URL, and with it what `shown` leaves out.
    reason = failure.message if isinstance(failure, aiohttp.ClientResponseError) else str(failure)
    return SourceUnreachable(shown, reason or type(failure).__name__)
