"""An answer by PUT, to an address that the request names: a pre-signed URL, as a rule."""

from functools import partial
from io import BytesIO
from urllib.parse import urlsplit

import aiohttp

from parakeet_worker.errors import OutputRefused, OutputUnreachable
from parakeet_worker.outputs.written import Written
from parakeet_worker.remote import http, url_guard
from parakeet_worker.remote.retries import Transient, is_transient, retried, retry_after_seconds
from parakeet_worker.request import UrlOutput
from parakeet_worker.settings import Settings

_WAIT_MAX_SECONDS = 20.0
_WRITTEN = frozenset({200, 201, 202, 204})


def path(output: UrlOutput) -> str:
    """What is named in the address, without the signature."""
    return urlsplit(output.url).path


async def put(written: Written, output: UrlOutput, settings: Settings) -> dict[str, object]:
    """Write it, with retries on transient failures until the delivery timeout.

    Raises `OutputRefused` or `OutputUnreachable`.
    """
    shown = url_guard.shown(output.url)
    limit_seconds = settings.delivery_timeout_seconds
    try:
        await retried(
            partial(_attempt, written, output.url, shown, settings),
            limit_seconds=limit_seconds,
            wait_max_seconds=_WAIT_MAX_SECONDS,
        )
    except TimeoutError as failure:
        raise OutputUnreachable(shown, f"not done within {limit_seconds:g} s") from failure
    return {"url": shown}


async def _attempt(written: Written, url: str, shown: str, settings: Settings) -> None:
    connector = url_guard.connector(allow_private=settings.allow_private_addresses)
    typed = {"Content-Type": written.content_type} if written.content_type else {}
    try:
        async with (
            http.session(settings, connector) as session,
            session.put(
                url_guard.exact(url),
                data=BytesIO(written.body),  # which is written in parts
                headers=typed,
                skip_auto_headers=() if typed else ("Content-Type",),
                allow_redirects=False,
            ) as response,
        ):
            _check_status(response, shown)
    except aiohttp.InvalidURL as failure:
        raise OutputRefused(shown, "it is not a URL") from failure
    # Before ValueError, which the class of a refused certificate is too.
    except (aiohttp.ClientError, TimeoutError, ConnectionError) as failure:
        refused = url_guard.forbidden(failure) or http.untrusted(failure)
        if refused is not None:
            raise OutputRefused(shown, refused) from failure
        reason = http.reason(failure, settings.stall_timeout_seconds)
        raise Transient(OutputUnreachable(shown, reason)) from failure
    except ValueError as failure:
        raise OutputRefused(shown, "it is not a URL") from failure


def _check_status(response: aiohttp.ClientResponse, shown: str) -> None:
    status, said = response.status, f"the server answered {response.status}"
    if is_transient(status):
        wait_seconds = retry_after_seconds(response.headers.get("Retry-After"))
        raise Transient(OutputUnreachable(shown, said), wait_seconds)
    if status not in _WRITTEN:
        raise OutputRefused(shown, said)
