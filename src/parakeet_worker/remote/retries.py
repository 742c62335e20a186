"""Retries of requests to other servers: which failures are transient, and how long to wait."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TypeVar

import stamina
from stamina.instrumentation import RetryDetails, set_on_retry_hooks

from parakeet_worker.errors import ParakeetError, one_line

log = logging.getLogger(__name__)

Value = TypeVar("Value")

_WAIT_INITIAL_SECONDS = 0.2
_TRANSIENT = frozenset({408, 425, 429})
_MESSAGE_CHARACTERS = 300
ENDS: ContextVar[float | None] = ContextVar("ENDS", default=None)
"""When the retries of this task are given up, on the monotonic clock."""


def log_retries() -> None:
    """From now on a retry is a line with its cause, and no line of the library's own."""
    set_on_retry_hooks([_log_retry])


def _log_retry(details: RetryDetails) -> None:
    ends = ENDS.get()
    left = "" if ends is None else f", {max(0.0, ends - time.monotonic()):.0f} s are left"
    log.warning(
        "attempt %d failed, the next one in %.1f s%s: %s",
        details.retry_num, details.wait_for, left,
        one_line(str(details.caused_by), _MESSAGE_CHARACTERS),
    )  # fmt: skip


class Transient(Exception):
    """A failure that the next attempt may not have, and how long the server asks to wait."""

    def __init__(self, error: ParakeetError, wait_seconds: float | None = None) -> None:
        super().__init__(str(error))
        self.error = error
        self.wait_seconds = wait_seconds


def is_transient(status: int) -> bool:
    """Whether the same request may succeed later: every 5xx, whoever invented it, and three 4xx."""
    return status >= 500 or status in _TRANSIENT


def retry_after_seconds(value: str | None) -> float | None:
    """What a `Retry-After` header asks for: seconds, or a date; None without a readable one."""
    text = (value or "").strip()
    if text.isdecimal() and text.isascii():
        return float(text[:9])
    try:
        moment = parsedate_to_datetime(text)
    except ValueError:
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return max(0.0, (moment - datetime.now(UTC)).total_seconds())


async def retried(
    attempt: Callable[[], Awaitable[Value]],
    *,
    limit_seconds: float,
    attempts: int | None = None,
    wait_max_seconds: float = 5.0,
) -> Value:
    """What `attempt` returns; repeated while it raises `Transient`.

    Raises the error of the last `Transient`, also at once where the server asks for a longer wait
    than the limit leaves, and TimeoutError where an attempt is still running at the limit.
    """
    ends = time.monotonic() + limit_seconds
    ENDS.set(ends)

    def wait(failure: Exception) -> bool | float:
        if not isinstance(failure, Transient):
            return False
        asked = failure.wait_seconds
        if asked is None:
            return True
        return asked if time.monotonic() + asked < ends else False

    try:
        async with asyncio.timeout(limit_seconds):
            async for each in stamina.retry_context(
                on=wait,
                attempts=attempts,
                timeout=limit_seconds,
                wait_initial=_WAIT_INITIAL_SECONDS,
                wait_max=wait_max_seconds,
            ):
                with each:
                    return await attempt()
    except Transient as failure:
        raise failure.error from failure
    raise AssertionError  # the last attempt returns or raises
