"""Many callers' chunks to batches for one engine; every chunk is answered exactly once."""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self, TypeVar
from weakref import WeakKeyDictionary

from parakeet_worker.engine import failures
from parakeet_worker.engine.base import (
    SAMPLE_RATE,
    Capacity,
    Engine,
    Hypothesis,
    Outcome,
    Pending,
    Waveform,
)
from parakeet_worker.errors import ContractBroken, EngineLost, OutOfMemory, Overloaded
from parakeet_worker.language import Script

log = logging.getLogger(__name__)

Value = TypeVar("Value")


def plan(waiting_seconds: Sequence[float], capacity: Capacity) -> list[int]:
    """Which of the waiting chunks go into the next batch, as indices, longest first.

    The one whose turn it is (index 0) always goes, so that none starves. Beside it go as many as
    the engine has room for: where it pads, those nearest to it in length; where it packs, those
    whose turn is next. A chunk longer than `alone_seconds` goes alone.
    """
    if not waiting_seconds:
        return []
    first = waiting_seconds[0]
    if first > capacity.alone_seconds:
        return [0]
    others = [
        index
        for index, seconds in enumerate(waiting_seconds)
        if index and seconds <= capacity.alone_seconds
    ]
    if not capacity.packed:
        others.sort(key=lambda index: abs(waiting_seconds[index] - first))
    chosen, longest, total = [0], first, first
    for index in others:
        if len(chosen) >= capacity.chunks:
            break
        seconds = waiting_seconds[index]
        widened = max(longest, seconds)
        computed = total + seconds if capacity.packed else widened * (len(chosen) + 1)
        if computed <= capacity.seconds:
            chosen.append(index)
            longest, total = widened, total + seconds
    return sorted(chosen, key=lambda index: -waiting_seconds[index])


@dataclass(frozen=True, slots=True, eq=False)
class _Chunk:
    samples: Waveform
    script: Script | None
    turn: float
    """Seconds of audio after which it is due; see `_Turns`."""
    answer: "Future[Hypothesis]" = field(default_factory=Future)

    @property
    def seconds(self) -> float:
        return _seconds(self.samples)


def _seconds(samples: Waveform) -> float:
    return len(samples) / SAMPLE_RATE


class _Batch:
    """Chunks on their way through the engine."""

    def __init__(self, chunks: Sequence[_Chunk], *, again: bool = False) -> None:
        self.chunks = chunks
        self.again = again
        """Whether it is part of a batch that did not fit; nothing else is in flight beside it."""
        self.shared = False
        """Whether another batch was in flight at any moment of its attempt."""
        self.began = 0.0
        self.pending: Pending | None = None
        """None until the engine has taken it."""


@dataclass(frozen=True, slots=True)
class _NoRoom:
    """The engine had no memory for an attempt."""

    reason: str


@dataclass(frozen=True, slots=True)
class Load:
    """What waits, and what the engine has been given since the start."""

    waiting_seconds: float
    """Audio that waits for the engine."""
    budget_seconds: float
    """What one batch has room for, padding counted where the engine pads."""
    batches: int
    chunks: int
    computed_seconds: float
    """Of all batches, padding counted where the engine pads."""
    busy_seconds: float
    """For how long at least one batch was in flight."""


class _Anonymous:
    """A caller who does not say who he is."""


class _Turns:
    """Fair turns among callers who share an engine, measured in seconds of audio.

    A piece is due where its caller's piece before it ends, or now, if the caller has none before
    it: so one who comes with two seconds waits for one piece of everybody at most, and not for
    the hours of another. Demers, Keshav, Shenker, "Analysis and Simulation of a Fair Queueing
    Algorithm", 1989, in the form of start times (Goyal, Vin, Cheng, 1996).
    """

    def __init__(self) -> None:
        self._now = 0.0
        self._ends: WeakKeyDictionary[object, float] = WeakKeyDictionary()

    def next(self, caller: object, seconds: float) -> float:
        turn = max(self._now, self._ends.get(caller, 0.0))
        self._ends[caller] = turn + seconds
        return turn

    def served(self, turn: float) -> None:
        """A piece that was due then goes to the engine."""
        self._now = max(self._now, turn)


class Batcher:
    """One queue in front of an engine, and the thread that calls it.

    A batch is never delayed to become fuller: while the engine works, the next one gathers.
    Callers get fair turns. Where the engine takes more than one batch at once (`Engine.depth`),
    a second thread waits for the results, so that the first only submits.

    A batch that does not fit in memory is halved until it fits. A failure of any other kind is
    the loss of the engine: all that wait are answered with `EngineLost`, and so is all that is
    submitted later. So is an engine whose oldest batch is in flight for more than
    `timeout_seconds`.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        capacity: Capacity,
        queue_seconds: float,
        timeout_seconds: float | None = None,
    ) -> None:
        self.engine = engine
        self._depth = engine.depth
        self._capacity = capacity
        self._queue_seconds = queue_seconds
        self._timeout_seconds = timeout_seconds
        self._waiting: list[_Chunk] = []  # by turn
        self._again: deque[_Batch] = deque()  # what did not fit, in parts, before all that waits
        self._flying: list[_Batch] = []  # oldest first
        self._watched: _Batch | None = None
        self._watch: threading.Timer | None = None
        self._turns = _Turns()
        self._changed = threading.Condition()
        self._closed = False
        self._ended = False
        self._lost: str | None = None
        self._batches, self._chunks = 0, 0
        self._computed_seconds, self._busy_seconds, self._busy_until = 0.0, 0.0, 0.0
        self._over = threading.Event()
        """The engine thread has ended, or is given up together with the engine."""
        self._threads = [threading.Thread(target=self._run, name="engine", daemon=True)]
        if self._depth > 1:
            self._threads.append(
                threading.Thread(target=self._collect, name="results", daemon=True)
            )
        for thread in self._threads:
            thread.start()

    @property
    def lost(self) -> bool:
        """Whether the engine has failed for good and the worker should be replaced."""
        return self._lost is not None

    @property
    def load(self) -> Load:
        """How much there is to do, and how full the batches were."""
        with self._changed:
            return Load(
                waiting_seconds=self._waiting_seconds(),
                budget_seconds=self._capacity.seconds,
                batches=self._batches,
                chunks=self._chunks,
                computed_seconds=self._computed_seconds,
                busy_seconds=self._busy_seconds,
            )

    def submit(
        self,
        chunks: Sequence[Waveform],
        *,
        script: Script | None = None,
        caller: object = None,
        admitted: bool = False,
    ) -> "list[Future[Hypothesis]]":
        """Queue all chunks of a request, or none; raises `Overloaded` or `EngineLost`.

        Where nothing waits, a request of any length is taken. Chunks of one `caller` take turns
        with those of others; without one, a submission is a caller of its own. A caller that is
        `admitted`, because earlier chunks of the same recording were taken, is not refused.
        """
        caller = _Anonymous() if caller is None else caller
        with self._changed:
            if self._lost is not None or self._closed:
                raise EngineLost(self._lost or "the worker is closing")
            waiting = self._waiting_seconds()
            asked = sum(_seconds(samples) for samples in chunks)
            if waiting and not admitted and waiting + asked > self._queue_seconds:
                raise Overloaded(waiting, self._queue_seconds)
            queued = [
                _Chunk(samples, script, self._turns.next(caller, _seconds(samples)))
                for samples in chunks
            ]
            self._waiting.extend(queued)
            self._waiting.sort(key=lambda chunk: chunk.turn)
            self._changed.notify_all()
        return [chunk.answer for chunk in queued]

    def lose(self, reason: str) -> None:
        """Give the engine up; from any thread, as for a CUDA error outside the engine.

        All that is in flight or waits is answered with `EngineLost`, and the engine is not called
        again; a thread that is inside it is not waited for. A no-op if the engine is lost.
        """
        self._lose(reason)

    def close(self) -> None:
        """Finish what is in flight, answer what waits with `EngineLost`, and end the threads."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._over.wait()
        if self._lost is None:
            for thread in self._threads:
                thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        failure: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    # The engine thread.

    def _run(self) -> None:
        try:
            while self._begin_next():
                pass
        except BaseException as failure:  # noqa: BLE001  # whatever it is, all that wait are answered
            self._lose_by(failure)
        finally:
            self._end()
            self._over.set()

    def _begin_next(self) -> bool:
        """Submit one batch as soon as there is one; False where there will be none."""
        batch = self._next()
        if batch is None:
            return False
        if batch.again:
            self.engine.release()
        samples = [chunk.samples for chunk in batch.chunks]
        scripts = [chunk.script for chunk in batch.chunks]
        submitted = _attempted(lambda: self.engine.submit(samples, scripts))
        if isinstance(submitted, _NoRoom):
            self._finish(batch, submitted)
            return True
        with self._changed:
            batch.pending = submitted
            self._changed.notify_all()
        if self._depth == 1:
            self._finish(batch, _attempted(submitted.result))
        return True

    def _next(self) -> _Batch | None:
        """Wait for a batch that may begin; None means that the batcher is closed or lost."""
        with self._changed:
            while True:
                self._changed.wait_for(self._may_begin)
                if self._lost is not None:
                    return None
                if not self._again and self._closed:
                    return None
                batch = self._again.popleft() if self._again else self._planned()
                if batch is not None:
                    self._fly(batch)
                    return batch

    def _may_begin(self) -> bool:
        if self._lost is not None:
            return True
        if self._again or self._closed:
            return not self._flying
        room = len(self._flying) < self._depth
        return bool(self._waiting) and room and not any(batch.again for batch in self._flying)

    def _planned(self) -> _Batch | None:
        """The next batch of what waits; None if all of it was cancelled."""
        chosen = plan([chunk.seconds for chunk in self._waiting], self._capacity)
        chunks = [self._waiting[index] for index in chosen]
        self._turns.served(self._waiting[0].turn)
        taken = set(chosen)
        self._waiting = [chunk for index, chunk in enumerate(self._waiting) if index not in taken]
        live = [chunk for chunk in chunks if chunk.answer.set_running_or_notify_cancel()]
        if not live:
            return None
        self._batches += 1
        self._chunks += len(live)
        lengths = [chunk.seconds for chunk in live]
        self._computed_seconds += (
            sum(lengths) if self._capacity.packed else len(live) * max(lengths)
        )
        return _Batch(live)

    def _fly(self, batch: _Batch) -> None:
        batch.began = time.monotonic()
        if self._flying:
            for other in (*self._flying, batch):
                other.shared = True
        self._flying.append(batch)
        self._watch_oldest()

    # The thread that waits for results, where there is one.

    def _collect(self) -> None:
        try:
            while self._finish_oldest():
                pass
        except BaseException as failure:  # noqa: BLE001  # as in the engine thread
            self._lose_by(failure)

    def _finish_oldest(self) -> bool:
        with self._changed:
            self._changed.wait_for(self._may_finish)
            if self._lost is not None or not self._flying:
                return False
            batch = self._flying[0]
        assert batch.pending is not None
        # No variable for it: it would keep what a failed attempt holds during the next one.
        self._finish(batch, _attempted(batch.pending.result))
        return True

    def _may_finish(self) -> bool:
        if self._lost is not None or self._ended:
            return True
        return bool(self._flying) and self._flying[0].pending is not None

    # Both threads.

    def _finish(self, batch: _Batch, found: list[Outcome] | _NoRoom) -> None:
        """Answer a batch that is back, or have it tried again in parts."""
        with self._changed:
            if self._lost is not None:  # it came back after all, to find its chunks answered
                return
            self._land(batch)
            alone = len(batch.chunks) == 1 and not batch.shared
            if isinstance(found, _NoRoom) and not alone:
                self._again.extendleft(reversed(_parts(batch)))
            self._changed.notify_all()
        if isinstance(found, _NoRoom):
            log.warning("no memory for a batch of %d: %s", len(batch.chunks), found.reason)
            if alone:
                _settle(batch.chunks[0], OutOfMemory(batch.chunks[0].seconds))
            return
        given, answered = len(batch.chunks), len(found)
        for index, chunk in enumerate(batch.chunks):
            _settle(chunk, found[index] if given == answered else ContractBroken(given, answered))

    def _land(self, batch: _Batch) -> None:
        now = time.monotonic()
        self._busy_seconds += now - max(batch.began, self._busy_until)
        self._busy_until = now
        batch.pending = None
        self._flying.remove(batch)
        self._watch_oldest()

    def _lose_by(self, failure: BaseException) -> None:
        self._lose(f"{type(failure).__name__}: {failure}", failure=failure)
        failures.clear_tracebacks(failure)

    def _lose(
        self, reason: str, *, failure: BaseException | None = None, late: _Batch | None = None
    ) -> None:
        with self._changed:
            if self._lost is not None or (late is not None and late is not self._watched):
                return
            self._lost = reason
        log.error("the engine is lost: %s", reason, exc_info=failure)
        self._end()
        self._over.set()

    def _end(self) -> None:
        """Refuse new work, and answer all chunks that have no answer yet."""
        with self._changed:
            self._closed = self._ended = True
            begun = [chunk for batch in (*self._flying, *self._again) for chunk in batch.chunks]
            left, self._waiting = self._waiting, []
            self._flying.clear()
            self._again.clear()
            self._watch_oldest()
            self._changed.notify_all()
        reason = self._lost or "the worker is closing"
        for chunk in left:
            chunk.answer.set_running_or_notify_cancel()
        for chunk in (*begun, *left):
            _settle(chunk, EngineLost(reason))

    def _watch_oldest(self) -> None:
        """Give the engine up if the oldest batch is not back in time, from now if it is new."""
        oldest = self._flying[0] if self._flying else None
        if self._timeout_seconds is None or oldest is self._watched:
            return
        if self._watch is not None:
            self._watch.cancel()
        self._watched, self._watch = oldest, None
        if oldest is not None:
            self._watch = threading.Timer(self._timeout_seconds, self._give_up, [oldest])
            self._watch.daemon = True
            self._watch.start()

    def _give_up(self, batch: _Batch) -> None:
        """A no-op if the batch came back in this very moment."""
        reason = f"it did not come back from a batch within {self._timeout_seconds:g} s"
        self._lose(reason, late=batch)

    def _waiting_seconds(self) -> float:
        return sum(chunk.seconds for chunk in self._waiting if not chunk.answer.cancelled())


def _parts(batch: _Batch) -> list[_Batch]:
    """What to try next: both halves, or a chunk by itself that had another batch beside it."""
    if len(batch.chunks) == 1:
        return [_Batch(batch.chunks, again=True)]
    half = len(batch.chunks) // 2
    return [_Batch(batch.chunks[:half], again=True), _Batch(batch.chunks[half:], again=True)]


def _attempted(work: Callable[[], Value]) -> Value | _NoRoom:
    """What it returns, or that there was no memory for it; whatever else it raises, raised.

    Nothing of a failed attempt outlives this call: as long as its exception did, the traceback
    would keep the attempt's tensors, and every smaller attempt would find them in its way.
    """
    try:
        return work()
    except Exception as failure:
        if not failures.is_out_of_memory(failure):
            raise
        reason = str(failure)
        failures.clear_tracebacks(failure)
    return _NoRoom(reason)


def _settle(chunk: _Chunk, answer: Outcome) -> None:
    """Give the chunk its answer, unless it has one: a batch may come back in the moment in which
    the engine is given up."""
    with suppress(InvalidStateError):
        if isinstance(answer, Exception):
            chunk.answer.set_exception(answer)
        else:
            chunk.answer.set_result(answer)
