"""The values of a blocking iterator on the event loop, produced in a thread."""

import asyncio
import contextvars
import threading
from collections import deque
from collections.abc import AsyncGenerator, Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Generic, ParamSpec, TypeVar

from parakeet_worker.container import Container

Value = TypeVar("Value")
Params = ParamSpec("Params")

_MOST_THREADS = 1024
EARLY_VALUES = 2
"""The end of a recording with one chunk is as early as the chunk."""

# Early values that get a slot before a later one that waits: more short recordings than the
# processors can decode must not stop the long ones.
_MOST_IN_A_ROW = 4

# Threads are kept: torch sets up each of them when it first computes there.
_pool = ThreadPoolExecutor(_MOST_THREADS, thread_name_prefix="ingest")


class Slots:
    """Limits how many threads run concurrently; early values have priority over later ones."""

    def __init__(self, count: int) -> None:
        self.free = count
        self._changing = threading.Lock()
        self._early: deque[threading.Lock] = deque()
        self._later: deque[threading.Lock] = deque()
        self._in_a_row = 0
        self._held = threading.local()

    @property
    def waiting(self) -> int:
        """Number of threads that wait for a slot."""
        return len(self._early) + len(self._later)

    @contextmanager
    def held(self, *, early: bool = False) -> Iterator[None]:
        """Hold a slot in this thread; waits until one is free."""
        self._acquire(early=early)
        self._held.by_thread = True
        try:
            yield
        finally:
            self._held.by_thread = False
            self._release()

    @contextmanager
    def released(self) -> Iterator[None]:
        """Release this thread's slot, if it holds one, while it waits for something else."""
        if not getattr(self._held, "by_thread", False):
            yield
            return
        self._held.by_thread = False
        self._release()
        try:
            yield
        finally:
            self._acquire(early=False)
            self._held.by_thread = True

    def _acquire(self, *, early: bool) -> None:
        with self._changing:
            if self.free > 0:
                self.free -= 1
                return
            turn = threading.Lock()
            turn.acquire()
            (self._early if early else self._later).append(turn)
        turn.acquire()

    def _release(self) -> None:
        """Pass the slot on: to an early value, but after four of them to a later one."""
        with self._changing:
            if not self.waiting:
                self.free += 1
                return
            later = self._later and (not self._early or self._in_a_row >= _MOST_IN_A_ROW)
            self._in_a_row = 0 if later else self._in_a_row + 1
            (self._later if later else self._early).popleft().release()


SLOTS = Slots(Container.read().threads + 1)
"""Of all recordings: one more than processors, since a thread waits for its decoder's output.

With more threads and decoders than processors, one of them that holds the interpreter's lock waits
for a processor behind all others, and the event loop waits with it.
"""

COMPUTING = Slots(1)
"""For sequences of short numpy calls.

Each call releases the interpreter's lock and acquires it again. With several threads these context
switches take more time than a second thread saves.
"""


@dataclass(frozen=True, slots=True)
class _Ended:
    failure: BaseException | None


async def computed(
    function: Callable[Params, Value], *args: Params.args, **named: Params.kwargs
) -> Value:
    """What the function returns, computed in a thread.

    `asyncio.to_thread` has so few threads that what they wait for (S3, disks) would delay it.
    """
    call = partial(contextvars.copy_context().run, function, *args, **named)
    return await asyncio.get_running_loop().run_in_executor(_pool, call)


async def produced(
    values: Generator[Value, None, None], stop: Callable[[], None], *, ahead: int = 1
) -> AsyncGenerator[Value, None]:
    """Each of `values`, which are produced in a thread, at most `ahead` of them in advance.

    Each is computed in one of the `SLOTS`, which `values` releases while it waits.

    `stop` is called from the loop when the iteration ends early; it must make a blocked `values`
    return or raise soon. When this generator is closed, `values` is closed and its thread is free.
    """
    producer = _Producer(values, ahead)
    try:
        while True:
            value = await producer.next()
            if isinstance(value, _Ended):
                if value.failure is not None:
                    raise value.failure
                return
            yield value
    finally:
        producer.stop()
        stop()
        await asyncio.shield(producer.ended)


class _Producer(Generic[Value]):
    """Runs the iterator in a thread of the pool."""

    def __init__(self, values: Generator[Value, None, None], ahead: int) -> None:
        self._values = values
        self._loop = asyncio.get_running_loop()
        self._queue: asyncio.Queue[Value | _Ended] = asyncio.Queue()
        self._room = threading.Semaphore(ahead)
        self._stopped = False
        self.ended: asyncio.Future[None] = self._loop.create_future()
        """Done when the thread has no more to do with the iterator."""
        _pool.submit(contextvars.copy_context().run, self._run)

    async def next(self) -> Value | _Ended:
        value = await self._queue.get()
        self._room.release()
        return value

    def stop(self) -> None:
        """Produce no more."""
        self._stopped = True
        self._room.release()

    def _run(self) -> None:
        failure: BaseException | None = None
        count = 0
        try:
            while self._room.acquire() and not self._stopped:
                with SLOTS.held(early=count < EARLY_VALUES):
                    value = next(self._values)
                count += 1
                self._notify(self._queue.put_nowait, value)
                del value  # or it would be held while the next one is waited for
        except StopIteration:
            pass
        except BaseException as error:  # noqa: BLE001  # raised where the values are awaited
            failure = error
        try:
            self._values.close()
        except BaseException as error:  # noqa: BLE001  # the same
            failure = failure or error
        self._notify(self._end, failure)

    def _end(self, failure: BaseException | None) -> None:
        self._queue.put_nowait(_Ended(failure))
        if not self.ended.done():
            self.ended.set_result(None)

    def _notify(self, function: Callable[..., object], *args: object) -> None:
        """Call it on the loop; a loop that was closed needs no values."""
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(function, *args)


def started(function: Callable[[], Value]) -> "Future[Value]":
    """Begin it in a thread; for what is in a thread itself, where no loop is."""
    return _pool.submit(function)
