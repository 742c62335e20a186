"""Answers by PUT to a URL of the request, usually presigned."""

from functools import partial
from io import BytesIO
from urllib.parse import urlsplit

import aiohttp

from parakeet_worker.errors import OutputRefused, OutputUnreachable
from parakeet_worker.outputs.body import Body
from parakeet_worker.remote import http, url_guard
from parakeet_worker.remote.retries import Transient, is_transient, retry, retry_after_seconds
from parakeet_worker.request import UrlOutput
from parakeet_worker.settings import Settings

_WAIT_MAX_SECONDS = 20.0
_SUCCESS = frozenset({200, 201, 202, 204})


def path(output: UrlOutput) -> str:
    """The path of the URL, without the signature."""
    return urlsplit(output.url).path


async def put(body: Body, output: UrlOutput, settings: Settings) -> dict[str, object]:
    """Store the body, with retries on transient failures until the delivery timeout.

    Raises `OutputRefused` or `OutputUnreachable`.
    """
    shown = url_guard.redacted(output.url)
    limit_seconds = settings.delivery_timeout_seconds
    try:
        await retry(
            partial(_attempt, body, output.url, shown, settings),
            limit_seconds=limit_seconds,
            wait_max_seconds=_WAIT_MAX_SECONDS,
        )
    except TimeoutError as failure:
        raise OutputUnreachable(shown, f"not done within {limit_seconds:g} s") from failure
    return {"url": shown}


async def _attempt(body: Body, url: str, shown: str, settings: Settings) -> None:
    connector = url_guard.connector(allow_private=settings.allow_private_addresses)
    typed = {"Content-Type": body.content_type} if body.content_type else {}
    try:
        async with (
            http.session(settings, connector) as session,
            session.put(
                url_guard.to_url(url),
                data=BytesIO(body.content),  # sent in chunks
                headers=typed,
                skip_auto_headers=() if typed else ("Content-Type",),
                allow_redirects=False,
            ) as response,
        ):
            _check_status(response, shown)
    except aiohttp.InvalidURL as failure:
        raise OutputRefused(shown, "not a URL") from failure
    # Before ValueError: the class for a rejected certificate is a subclass of both.
    except (aiohttp.ClientError, TimeoutError, ConnectionError) as failure:
        refused = url_guard.blocked_reason(failure) or http.certificate_error(failure)
        if refused is not None:
            raise OutputRefused(shown, refused) from failure
        reason = http.failure_reason(failure, settings.stall_timeout_seconds)
        raise Transient(OutputUnreachable(shown, reason)) from failure
    except ValueError as failure:
        raise OutputRefused(shown, "not a URL") from failure


def _check_status(response: aiohttp.ClientResponse, shown: str) -> None:
    status, message = response.status, f"the server answered {response.status}"
    if is_transient(status):
        wait_seconds = retry_after_seconds(response.headers.get("Retry-After"))
        raise Transient(OutputUnreachable(shown, message), wait_seconds)
    if status not in _SUCCESS:
        raise OutputRefused(shown, message)
