"""Audio behind http or https, fetched so that no request reaches where it may not."""

import asyncio
import socket
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import stamina
from yarl import URL

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
# IPv6 forms that carry an IPv4 address, which is then the one that must be public.
_NAT64 = ip_network("64:ff9b::/96")
# Private once, and taken for public by `ipaddress` since that use was given up.
_SITE_LOCAL = ip_network("fec0::/10")


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
        raise SourceTimeout(_shown(source.url), limit_seconds) from failure


async def _attempt(url: str, target: Path, settings: Settings) -> None:
    shown = _shown(url)
    stall = settings.stall_timeout_seconds
    try:
        async with (
            aiohttp.ClientSession(
                connector=_connector(settings.allow_private_addresses),
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=stall, sock_read=stall),
            ) as session,
            session.get(_address(url), max_redirects=_MAX_REDIRECTS) as response,
        ):
            _check_status(response.status, shown)
            await _save(response, target, settings.max_audio_bytes)
    except (aiohttp.RedirectClientError, aiohttp.TooManyRedirects) as failure:
        raise SourceForbidden(shown, "it redirects too often or away from http") from failure
    except ValueError as failure:
        raise InvalidRequest("audio_url", f"{shown} is not a URL") from failure
    except (aiohttp.ClientError, TimeoutError, ConnectionError) as failure:
        raise _unreachable(failure, shown) from failure


def _address(url: str) -> URL:
    """The URL to the letter where it is encoded already: a signature may cover every one."""
    encoded = url.isascii() and url.isprintable() and " " not in url
    return URL(url, encoded=encoded)


def _connector(allow_private: bool) -> aiohttp.TCPConnector:
    """A connector that opens sockets to public addresses only.

    The check sits where the socket is made, on the very address that it will connect to: names
    are resolved once, every redirect passes here, and nothing is looked up again after.
    """

    def open_socket(address: tuple[Any, ...]) -> socket.socket:
        family, kind, protocol, _, (host, *_) = address
        if not allow_private and not _is_public(host):
            raise _ForbiddenAddress("it has no public address")
        opened = socket.socket(family, kind, protocol)
        opened.setblocking(False)
        return opened

    return aiohttp.TCPConnector(socket_factory=open_socket, force_close=True)


class _ForbiddenAddress(OSError):
    """Raised inside the connector, where only an OSError passes through as it is.

    It says the same of every address: where a name has several, only one word passes through.
    """


def _is_public(host: str) -> bool:
    address: IPv4Address | IPv6Address = ip_address(host.partition("%")[0])
    if isinstance(address, IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour
        if inner is None and address in _NAT64:
            inner = IPv4Address(int(address) & 0xFFFFFFFF)
        if inner is not None:
            address = inner
    odd = address.is_multicast or address.is_reserved or address in _SITE_LOCAL
    return address.is_global and not odd


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
    cause: BaseException | None = failure
    while cause is not None:
        if isinstance(cause, _ForbiddenAddress):
            return SourceForbidden(shown, str(cause))
        cause = getattr(cause, "os_error", None) or cause.__cause__
    if isinstance(failure, TimeoutError):
        return SourceUnreachable(shown, "the server stood still for too long")
    # Its own text holds the whole URL, and with it what `shown` leaves out.
    reason = failure.message if isinstance(failure, aiohttp.ClientResponseError) else str(failure)
    return SourceUnreachable(shown, reason or type(failure).__name__)


def _shown(url: str) -> str:
    """The address without its query and credentials, which may be secret."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
