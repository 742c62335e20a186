"""HTTP sessions, response bodies, and failures as one-line messages."""

import re
from typing import BinaryIO

import aiohttp

from parakeet_worker.errors import AudioTooLarge, one_line
from parakeet_worker.settings import Settings

MAX_REASON_CHARACTERS = 200
"""Limit for a third-party exception's text in an error message."""

# aiohttp appends the bytes that it could not parse as HTTP, usually the file's content.
_CONTENT = re.compile(r":?\s*b['\"].*", re.DOTALL)
_HEADER_BYTES = 32 << 10
_CHUNK_BYTES = 1 << 16


def session(settings: Settings, connector: aiohttp.BaseConnector) -> aiohttp.ClientSession:
    """A session with the worker's User-Agent and stall timeout, and room for large headers."""
    stall = settings.stall_timeout_seconds
    return aiohttp.ClientSession(
        connector=connector,
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=stall, sock_read=stall),
        headers={"User-Agent": settings.user_agent},
        cookie_jar=aiohttp.CookieJar(unsafe=True),  # also for hosts given by IP address
        max_line_size=_HEADER_BYTES,
        max_field_size=_HEADER_BYTES,
        requote_redirect_url=False,
    )


async def save(response: aiohttp.ClientResponse, file: BinaryIO, max_bytes: int) -> None:
    """Write the body to `file`, replacing its content; raises `AudioTooLarge`."""
    if (response.content_length or 0) > max_bytes:
        raise AudioTooLarge(max_bytes, response.content_length)
    file.seek(0)
    file.truncate()
    size = 0
    async for chunk in response.content.iter_chunked(_CHUNK_BYTES):
        size += len(chunk)
        if size > max_bytes:
            raise AudioTooLarge(max_bytes)
        file.write(chunk)


def certificate_error(failure: BaseException) -> str | None:
    """Why the server's certificate was rejected; None for any other failure.

    aiohttp's class for this is also a ValueError, as is its class for a malformed URL.
    """
    if not isinstance(failure, aiohttp.ClientConnectorCertificateError):
        return None
    message = getattr(failure.certificate_error, "verify_message", "") or str(failure)
    return f"its certificate cannot be verified: {one_line(message, MAX_REASON_CHARACTERS)}"


def failure_reason(failure: BaseException, stall_seconds: float) -> str:
    """One line of at most 200 characters about a failed request, without the URL's query."""
    if isinstance(failure, TimeoutError):
        return f"no data received for {stall_seconds:g} s"
    # The text of a ClientResponseError contains the whole URL, including secrets.
    message = failure.message if isinstance(failure, aiohttp.ClientResponseError) else str(failure)
    message = _CONTENT.sub("", message)
    return one_line(message or type(failure).__name__, MAX_REASON_CHARACTERS)
