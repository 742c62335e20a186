import asyncio
import threading
import time
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, aclosing

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


class Line:
    """Threads that hold a slot until released, and the order in which they got it."""

    def __init__(self, slots: threads.Slots) -> None:
        self.slots = slots
        self.entered: list[str] = []
        self.leave = {name: threading.Event() for name in "abcdefg"}
        self.threads: list[threading.Thread] = []

    def start(self, name: str, *, early: bool = False) -> None:
        """Start a thread, and wait until it holds a slot or waits for one."""

        def run() -> None:
            with self.slots.held(early=early):
                self.entered.append(name)
                self.leave[name].wait(PATIENCE_SECONDS)

        before = self.arrived
        thread = threading.Thread(target=run)
        self.threads.append(thread)
        thread.start()
        self.until(lambda: self.arrived > before)

    @property
    def arrived(self) -> int:
        return len(self.entered) + self.slots.waiting

    def until(self, condition: Callable[[], bool]) -> None:
        ends = time.monotonic() + PATIENCE_SECONDS
        while not condition():
            assert time.monotonic() < ends
            time.sleep(0.001)

    def end(self, name: str, then: list[str]) -> None:
        """Release one; `then` are all that have got a slot afterwards."""
        self.leave[name].set()
        self.until(lambda: len(self.entered) >= len(then))
        assert self.entered == then


@pytest.fixture
def line() -> Iterator[Line]:
    line = Line(threads.Slots(1))
    yield line
    for event in line.leave.values():
        event.set()
    for thread in line.threads:
        thread.join(PATIENCE_SECONDS)
        assert not thread.is_alive()


def test_a_slot_is_passed_on_in_order_of_arrival_to_early_values_first(line: Line) -> None:
    line.start("a")
    line.start("b")
    line.start("c")
    line.start("d", early=True)
    assert line.entered == ["a"]
    line.end("a", ["a", "d"])
    line.end("d", ["a", "d", "b"])
    line.end("b", ["a", "d", "b", "c"])


def test_early_values_do_not_stop_later_ones(line: Line) -> None:
    line.start("a")
    line.start("b")
    for name in "cdefg":
        line.start(name, early=True)
    order = list("acdefbg")
    for number, name in enumerate(order[:-1], start=2):
        line.end(name, order[:number])


def test_a_slot_is_released_during_a_wait_and_taken_again_after_it() -> None:
    slots = threads.Slots(1)
    with slots.held():
        with slots.released(), slots.held():
            pass
        with ThreadPoolExecutor(1) as pool:
            later = pool.submit(holding, slots)
            with pytest.raises(TimeoutError):
                later.result(0.1)
            with slots.released():
                assert later.result(PATIENCE_SECONDS)


def holding(slots: threads.Slots) -> bool:
    with slots.held():
        return True


def test_a_thread_without_a_slot_releases_none() -> None:
    slots = threads.Slots(1)

    def free_inside() -> int:
        with slots.released():
            return slots.free

    with ThreadPoolExecutor(1) as pool, slots.held():
        assert pool.submit(free_inside).result(PATIENCE_SECONDS) == 0


async def test_a_value_is_produced_in_a_slot_and_a_finished_one_is_kept_without() -> None:
    """As many iterators as there are slots wait for the reader; another one still runs."""
    count = threads.SLOTS.free
    entered: list[int] = []

    def waiting(number: int) -> Generator[int, None, None]:
        entered.append(threads.SLOTS.free)
        yield number

    async with AsyncExitStack() as stack:
        for number in range(count + 1):
            values = threads.produced(waiting(number), nothing)
            await stack.enter_async_context(aclosing(values))
            assert await anext(values) == number
    assert set(entered) == {count - 1}
    assert threads.SLOTS.free == count


async def test_a_failing_iterator_releases_its_slot() -> None:
    def failing() -> Generator[int, None, None]:
        raise ValueError("broken")
        yield 1

    for _ in range(threads.SLOTS.free + 1):
        with pytest.raises(ValueError, match="broken"):
            await anext(threads.produced(failing(), nothing))
