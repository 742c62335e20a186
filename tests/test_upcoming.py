"""The next value of an iterator and other futures are awaited together; no value is lost."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing

import pytest

from parakeet_worker.upcoming import Upcoming


class Source:
    """Values as they are put; an exception is raised, None ends."""

    def __init__(self) -> None:
        self.queue: asyncio.Queue[int | Exception | None] = asyncio.Queue()
        self.cancelled = False

    async def values(self) -> AsyncIterator[int]:
        try:
            while (value := await self.queue.get()) is not None:
                if isinstance(value, Exception):
                    raise value
                yield value
        except asyncio.CancelledError:
            self.cancelled = True
            raise


async def test_values_are_taken_in_order_until_the_end() -> None:
    source = Source()
    upcoming = Upcoming(source.values())
    for value in (1, 2, None):
        source.queue.put_nowait(value)
        assert await upcoming.wait([])
        assert upcoming.take() == value


async def test_other_futures_end_the_wait_and_the_value_is_taken_later() -> None:
    source = Source()
    upcoming = Upcoming(source.values())
    first, second = (asyncio.get_running_loop().create_future() for _ in range(2))
    waiting = asyncio.create_task(upcoming.wait([first, second]))
    first.set_result(None)
    await asyncio.sleep(0.02)
    assert not waiting.done(), "all others are awaited"
    second.set_exception(ValueError)
    assert await waiting is False
    assert await upcoming.wait([first, second]) is False, "they are done"
    source.queue.put_nowait(7)
    assert await upcoming.wait([]) is True
    assert upcoming.take() == 7
    assert isinstance(second.exception(), ValueError)


async def test_a_value_ends_the_wait_for_other_futures() -> None:
    source = Source()
    upcoming = Upcoming(source.values())
    other = asyncio.get_running_loop().create_future()
    source.queue.put_nowait(7)
    assert await upcoming.wait([other])
    assert upcoming.take() == 7
    assert not other.done()


async def test_an_exception_of_the_iterator_is_raised() -> None:
    source = Source()
    upcoming = Upcoming(source.values())
    source.queue.put_nowait(ValueError("no more"))
    assert await upcoming.wait([])
    with pytest.raises(ValueError, match="no more"):
        upcoming.take()


async def test_closing_cancels_the_iterator_that_is_awaited() -> None:
    source = Source()
    values = source.values()
    async with aclosing(Upcoming(values)) as upcoming:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(upcoming.wait([]), 0.02)
        assert not source.cancelled
    assert source.cancelled
    await upcoming.aclose()  # a second time, and
    await Upcoming(source.values()).aclose()  # without a wait
    with pytest.raises(StopAsyncIteration):
        await anext(values)


async def test_an_exception_that_is_not_taken_is_retrieved_at_close(
    caplog: pytest.LogCaptureFixture,
) -> None:
    source = Source()
    source.queue.put_nowait(ValueError())
    async with aclosing(Upcoming(source.values())) as upcoming:
        await upcoming.wait([])
    del upcoming
    assert not caplog.records
