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
DEADLINE: ContextVar[float | None] = ContextVar("DEADLINE", default=None)
"""Deadline of this task's retries, on the monotonic clock."""


def log_retries() -> None:
    """Log each retry with its cause, in place of the library's own log line."""
    set_on_retry_hooks([_log_retry])


def _log_retry(details: RetryDetails) -> None:
    deadline = DEADLINE.get()
    left = "" if deadline is None else f", {max(0.0, deadline - time.monotonic()):.0f} s left"
    log.warning(
        "attempt %d failed, next attempt in %.1f s%s: %s",
        details.retry_num, details.wait_for, left,
        one_line(str(details.caused_by), _MESSAGE_CHARACTERS),
    )  # fmt: skip


class Transient(Exception):
    """A transient failure and the server's `Retry-After`, if any."""

    def __init__(self, error: ParakeetError, wait_seconds: float | None = None) -> None:
        super().__init__(str(error))
        self.error = error
        self.wait_seconds = wait_seconds


def is_transient(status: int) -> bool:
    """Whether the same request may succeed later: every 5xx, 408, 425 and 429."""
    return status >= 500 or status in _TRANSIENT


def retry_after_seconds(value: str | None) -> float | None:
    """Parse `Retry-After`, given as seconds or as a date; None if missing or invalid."""
    text = (value or "").strip()
    if text.isdecimal() and text.isascii():
        return float(text[:9])
    try:
        moment = parsedate_to_datetime(text)
    except (ValueError, OverflowError):  # also a day of 30 digits
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return max(0.0, (moment - datetime.now(UTC)).total_seconds())


async def retry(
    attempt: Callable[[], Awaitable[Value]],
    *,
    limit_seconds: float,
    attempts: int | None = None,
    wait_max_seconds: float = 5.0,
) -> Value:
    """Call `attempt` until it does not raise `Transient`, and return its result.

    Raises the error of the last `Transient`, immediately if `Retry-After` exceeds the remaining
    time, and TimeoutError if an attempt is still running at the limit.
    """
    deadline = time.monotonic() + limit_seconds
    DEADLINE.set(deadline)

    def wait(failure: Exception) -> bool | float:
        if not isinstance(failure, Transient):
            return False
        wait_seconds = failure.wait_seconds
        if wait_seconds is None:
            return True
        return wait_seconds if time.monotonic() + wait_seconds < deadline else False

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
