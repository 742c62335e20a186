"""An answer by PUT, to an address that the request names: a pre-signed URL, as a rule."""

import asyncio
from io import BytesIO
from urllib.parse import urlsplit

import aiohttp
import stamina

from parakeet_worker import addresses
from parakeet_worker.errors import OutputRefused, OutputUnreachable
from parakeet_worker.outputs.written import Written
from parakeet_worker.request import UrlOutput
from parakeet_worker.settings import Settings

_ATTEMPTS = 5
_PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})


def path(output: UrlOutput) -> str:
    """What is named in the address, without the signature."""
    return urlsplit(output.url).path


async def put(written: Written, output: UrlOutput, settings: Settings) -> dict[str, object]:
    """Write it, with retries on passing faults; raises `OutputRefused` or `OutputUnreachable`."""
    shown = addresses.shown(output.url)
    try:
        async with asyncio.timeout(settings.download_timeout_seconds):
            async for attempt in stamina.retry_context(
                on=OutputUnreachable,
                attempts=_ATTEMPTS,
                timeout=None,
                wait_initial=0.2,
                wait_max=5.0,
            ):
                with attempt:
                    await _attempt(written, output.url, shown, settings)
    except TimeoutError as failure:
        limit = settings.download_timeout_seconds
        raise OutputUnreachable(shown, f"not done within {limit:g} s") from failure
    return {"url": shown}


async def _attempt(written: Written, url: str, shown: str, settings: Settings) -> None:
    stall = settings.stall_timeout_seconds
    try:
        async with (
            aiohttp.ClientSession(
                connector=addresses.connector(allow_private=settings.allow_private_addresses),
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=stall, sock_read=stall),
            ) as session,
            session.put(
                addresses.exact(url),
                data=BytesIO(written.body),  # which is written in parts
                headers={"Content-Type": written.content_type},
                allow_redirects=False,
            ) as response,
        ):
            status = response.status
    except ValueError as failure:
        raise OutputRefused(shown, "it is not a URL") from failure
    except (aiohttp.ClientError, TimeoutError, ConnectionError) as failure:
        forbidden = addresses.forbidden(failure)
        if forbidden is not None:
            raise OutputRefused(shown, forbidden) from failure
        # Their own text holds the whole URL, and with it the signature.
        raise OutputUnreachable(shown, type(failure).__name__) from failure
    if status in _PASSING:
        raise OutputUnreachable(shown, f"the server answered {status}")
    if status not in (200, 201, 204):
        raise OutputRefused(shown, f"the server answered {status}")
