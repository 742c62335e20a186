"""The next value of an asynchronous iterator, awaited together with other futures."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any, Generic, TypeVar

Value = TypeVar("Value")


class Upcoming(Generic[Value]):
    """Awaits the values of an iterator in a task; close it before the iterator."""

    def __init__(self, values: AsyncIterator[Value]) -> None:
        self._values = values
        self._task: asyncio.Task[Value | None] | None = None

    async def wait(self, others: Sequence[asyncio.Future[Any]]) -> bool:
        """Wait for the next value or until all of `others` are done, if there are any.

        Returns whether there is a value for `take`.
        """
        if self._task is None:
            self._task = asyncio.create_task(self._next())
        pending = {other for other in others if not other.done()}
        while not self._task.done() and (pending or not others):
            done, _ = await asyncio.wait(
                (self._task, *pending), return_when=asyncio.FIRST_COMPLETED
            )
            pending -= done
        return self._task.done()

    async def _next(self) -> Value | None:
        return await anext(self._values, None)

    def take(self) -> Value | None:
        """The value that `wait` has waited for, None after the last one; raises its exception."""
        assert self._task is not None
        task, self._task = self._task, None
        return task.result()

    async def aclose(self) -> None:
        """Cancel the task, and wait for its end."""
        if self._task is None:
            return
        self._task.cancel()
        await asyncio.wait([self._task])
        if not self._task.cancelled():
            self._task.exception()  # marks it as retrieved
