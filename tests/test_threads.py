import asyncio
import threading
from collections.abc import Generator
from contextlib import aclosing

import pytest

from parakeet_worker import threads

PATIENCE_SECONDS = 20.0


def nothing() -> None:
    """There is nothing to stop."""


async def test_values_come_in_order_from_another_thread() -> None:
    def counted() -> Generator[tuple[int, int], None, None]:
        for number in range(5):
            yield number, threading.get_ident()

    result = [value async for value in threads.produced(counted(), nothing)]
    assert [number for number, _ in result] == [0, 1, 2, 3, 4]
    assert threading.get_ident() not in {thread for _, thread in result}


@pytest.mark.parametrize("ahead", [1, 3])
async def test_production_ahead_is_bounded(ahead: int) -> None:
    made: list[int] = []

    def counted() -> Generator[int, None, None]:
        for number in range(20):
            made.append(number)
            yield number

    values = threads.produced(counted(), nothing, ahead=ahead)
    async with aclosing(values):
        assert await anext(values) == 0
        await asyncio.sleep(0.1)
        assert len(made) == 1 + ahead
        assert await anext(values) == 1
        await asyncio.sleep(0.1)
        assert len(made) == 2 + ahead


async def test_what_it_raises_is_raised_after_the_values_before() -> None:
    def failing() -> Generator[int, None, None]:
        yield 1
        raise ValueError("broken")

    values = threads.produced(failing(), nothing)
    assert await anext(values) == 1
    with pytest.raises(ValueError, match="broken"):
        await anext(values)


@pytest.mark.parametrize("how", ["closed", "cancelled"])
async def test_an_end_before_the_last_value_stops_a_blocked_iterator_and_waits_for_it(
    how: str,
) -> None:
    blocked, closed = threading.Event(), threading.Event()

    def blocking() -> Generator[int, None, None]:
        try:
            yield 1
            assert blocked.wait(PATIENCE_SECONDS)
        finally:
            closed.set()

    async def taken() -> None:
        async with aclosing(threads.produced(blocking(), blocked.set)) as values:
            await anext(values)
            if how == "cancelled":
                await anext(values)

    task = asyncio.create_task(taken())
    if how == "cancelled":
        await asyncio.sleep(0.1)
        task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert closed.is_set()


async def test_a_function_is_computed_in_another_thread_and_raises_here() -> None:
    assert await threads.computed(threading.get_ident) != threading.get_ident()
    with pytest.raises(ZeroDivisionError):
        await threads.computed(lambda: 1 // 0)
