"""HTTP to servers that a caller or the operator names: sessions, bodies, and failures as text."""

import re
from typing import BinaryIO

import aiohttp

from parakeet_worker.errors import AudioTooLarge, one_line
from parakeet_worker.settings import Settings

MAX_REASON_CHARACTERS = 200
"""Of a foreign exception's text in an error of ours."""

# aiohttp puts what it could not read as HTTP behind its complaint: the file's bytes, as a rule.
_CONTENT = re.compile(r":?\s*b['\"].*", re.DOTALL)
_HEADER_BYTES = 32 << 10
_CHUNK_BYTES = 1 << 16


def session(settings: Settings, connector: aiohttp.BaseConnector) -> aiohttp.ClientSession:
    """A session with the worker's User-Agent, its stall timeout, and room for large headers."""
    stall = settings.stall_timeout_seconds
    return aiohttp.ClientSession(
        connector=connector,
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=stall, sock_read=stall),
        headers={"User-Agent": settings.user_agent},
        cookie_jar=aiohttp.CookieJar(unsafe=True),  # also of hosts that are given by address
        max_line_size=_HEADER_BYTES,
        max_field_size=_HEADER_BYTES,
        requote_redirect_url=False,
    )


async def save(response: aiohttp.ClientResponse, file: BinaryIO, max_bytes: int) -> None:
    """Write the body to `file`, replacing its content; raises `AudioTooLarge` over the limit."""
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


def untrusted(failure: BaseException) -> str | None:
    """Why the server's certificate was refused; None if the failure is another one.

    aiohttp's class for this is a ValueError too, as one for a malformed URL is.
    """
    if not isinstance(failure, aiohttp.ClientConnectorCertificateError):
        return None
    said = getattr(failure.certificate_error, "verify_message", "") or str(failure)
    return f"its certificate cannot be verified: {one_line(said, MAX_REASON_CHARACTERS)}"


def reason(failure: BaseException, stall_seconds: float) -> str:
    """A failed request in one line of at most 200 characters, without the URL's query."""
    if isinstance(failure, TimeoutError):
        return f"no data received for {stall_seconds:g} s"
    # An error of a response holds the whole URL in its text, and with it what is secret.
    said = failure.message if isinstance(failure, aiohttp.ClientResponseError) else str(failure)
    said = _CONTENT.sub("", said)
    return one_line(said or type(failure).__name__, MAX_REASON_CHARACTERS)
