"""Seconds per stage of one request."""

import time
from collections.abc import Awaitable
from typing import TypeVar

Value = TypeVar("Value")


class Stopwatch:
    """Sums the seconds that one request waits for each stage."""

    def __init__(self) -> None:
        self._started = time.monotonic()
        self._seconds: dict[str, float] = {}

    async def timed(self, stage: str, work: Awaitable[Value]) -> Value:
        """Await `work` and add its duration to `stage`."""
        started = time.monotonic()
        try:
            return await work
        finally:
            elapsed = time.monotonic() - started
            self._seconds[stage] = self._seconds.get(stage, 0.0) + elapsed

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds per stage, in order of first use, and the `total` since construction."""
        total = time.monotonic() - self._started
        return {
            stage: round(spent, 4) for stage, spent in (*self._seconds.items(), ("total", total))
        }
