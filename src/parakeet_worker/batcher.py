"""Dynamic batching: chunks of many callers to batches for one engine."""

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
    """Select the chunks of the next batch; returns their indices, longest first.

    Index 0, the head of the queue, is always selected, which rules out starvation. The batch is
    filled up to `capacity`: with the chunks closest to the head in length if the engine pads, in
    queue order if it packs. A chunk longer than `alone_seconds` is a batch of its own.
    """
    if not waiting_seconds:
        return []
    head = waiting_seconds[0]
    if head > capacity.alone_seconds:
        return [0]
    others = [
        index
        for index, seconds in enumerate(waiting_seconds)
        if index and seconds <= capacity.alone_seconds
    ]
    if not capacity.packed:
        others.sort(key=lambda index: abs(waiting_seconds[index] - head))
    selected, longest, total = [0], head, head
    for index in others:
        if len(selected) >= capacity.chunks:
            break
        seconds = waiting_seconds[index]
        new_longest = max(longest, seconds)
        computed = total + seconds if capacity.packed else new_longest * (len(selected) + 1)
        if computed <= capacity.seconds:
            selected.append(index)
            longest, total = new_longest, total + seconds
    return sorted(selected, key=lambda index: -waiting_seconds[index])


@dataclass(frozen=True, slots=True, eq=False)
class _Chunk:
    samples: Waveform
    script: Script | None
    start_tag: float
    """Virtual start time in seconds of audio; see `_FairQueue`."""
    future: "Future[Hypothesis]" = field(default_factory=Future)

    @property
    def seconds(self) -> float:
        return _seconds(self.samples)


def _seconds(samples: Waveform) -> float:
    return len(samples) / SAMPLE_RATE


class _Batch:
    """Chunks that are submitted to the engine together."""

    def __init__(self, chunks: Sequence[_Chunk], *, retry: bool = False) -> None:
        self.chunks = chunks
        self.retry = retry
        """Part of a batch that did not fit in memory; runs with no other batch in flight."""
        self.overlapped = False
        """Another batch was in flight at some point during this attempt."""
        self.started_at = 0.0
        self.pending: Pending | None = None
        """None until `Engine.submit` has returned."""


@dataclass(frozen=True, slots=True)
class _NoMemory:
    """Result of an attempt that ran out of memory."""

    reason: str


@dataclass(frozen=True, slots=True)
class Load:
    """Queue length, and totals since the start."""

    waiting_seconds: float
    """Audio in the queue."""
    budget_seconds: float
    """Capacity of one batch, including padding if the engine pads."""
    batches: int
    chunks: int
    computed_seconds: float
    """Sum over all batches, including padding if the engine pads."""
    busy_seconds: float
    """Time during which at least one batch was in flight."""


class _AnonymousCaller:
    """Identifies a submission without `caller`."""


class _FairQueue:
    """Start-time fair queueing among callers, with seconds of audio as the cost.

    The start tag of a chunk is the finish tag of its caller's previous chunk, or the virtual time
    if that is later. A short request therefore waits for at most one chunk of each other caller.
    Demers, Keshav, Shenker, "Analysis and Simulation of a Fair
    Queueing Algorithm", 1989; start tags as in Goyal, Vin, Cheng, 1996.
    """

    def __init__(self) -> None:
        self._virtual_time = 0.0
        self._finish_tags: WeakKeyDictionary[object, float] = WeakKeyDictionary()

    def start_tag(self, caller: object, seconds: float) -> float:
        """Start tag of the caller's next chunk, whose length is `seconds`."""
        tag = max(self._virtual_time, self._finish_tags.get(caller, 0.0))
        self._finish_tags[caller] = tag + seconds
        return tag

    def advance(self, tag: float) -> None:
        """Move the virtual time to the start tag of a chunk that is submitted to the engine."""
        self._virtual_time = max(self._virtual_time, tag)


class Batcher:
    """A queue in front of an engine, and the threads that call it.

    Batches are not delayed to fill up: chunks accumulate while the engine is busy. Callers are
    served by fair queueing. With `Engine.depth` above 1, a second thread waits for the results,
    so that the first only submits.

    A batch that does not fit in memory is halved until it fits. Any other failure loses the
    engine: every queued chunk, and every later submission, fails with `EngineLost`. The same
    happens if the oldest batch is in flight for more than `timeout_seconds`.
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
        self._waiting: list[_Chunk] = []  # by start tag
        self._retries: deque[_Batch] = deque()  # submitted before anything in `_waiting`
        self._in_flight: list[_Batch] = []  # oldest first
        self._watched_batch: _Batch | None = None
        self._watchdog: threading.Timer | None = None
        self._fair_queue = _FairQueue()
        self._changed = threading.Condition()
        self._closed = False
        self._stopped = False
        self._lost_reason: str | None = None
        self._batches, self._chunks = 0, 0
        self._computed_seconds, self._busy_seconds, self._busy_until = 0.0, 0.0, 0.0
        self._finished = threading.Event()
        """Set when the engine thread has ended, or was abandoned together with the engine."""
        self._threads = [threading.Thread(target=self._run, name="engine", daemon=True)]
        if self._depth > 1:
            self._threads.append(
                threading.Thread(target=self._run_results, name="results", daemon=True)
            )
        for thread in self._threads:
            thread.start()

    @property
    def lost(self) -> bool:
        """Whether the engine has failed permanently and the worker must be replaced."""
        return self._lost_reason is not None

    @property
    def load(self) -> Load:
        """Queue length, and totals since the start."""
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

        An empty queue accepts a request of any length. `caller` identifies the flow for fair
        queueing; without it, every submission is a flow of its own. `admitted=True` bypasses the
        queue limit, so that a recording in progress is never rejected halfway.
        """
        caller = _AnonymousCaller() if caller is None else caller
        with self._changed:
            if self._lost_reason is not None or self._closed:
                raise EngineLost(self._lost_reason or "the worker is closing")
            waiting = self._waiting_seconds()
            requested = sum(_seconds(samples) for samples in chunks)
            if waiting and not admitted and waiting + requested > self._queue_seconds:
                raise Overloaded(waiting, self._queue_seconds)
            queued = [
                _Chunk(samples, script, self._fair_queue.start_tag(caller, _seconds(samples)))
                for samples in chunks
            ]
            self._waiting.extend(queued)
            self._waiting.sort(key=lambda chunk: chunk.start_tag)
            self._changed.notify_all()
        return [chunk.future for chunk in queued]

    def mark_lost(self, reason: str) -> None:
        """Abandon the engine, e.g. after a CUDA error outside it; callable from any thread.

        Chunks in flight and in the queue fail with `EngineLost`. The engine is not called again,
        and a thread that is blocked in it is not joined. A no-op if the engine is already lost.
        """
        self._mark_lost(reason)

    def close(self) -> None:
        """Finish the batches in flight, fail queued chunks with `EngineLost`, join the threads."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._finished.wait()
        if self._lost_reason is None:
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
            while self._submit_next():
                pass
        except BaseException as failure:  # noqa: BLE001  # every future must be resolved
            self._lose_after(failure)
        finally:
            self._fail_all()
            self._finished.set()

    def _submit_next(self) -> bool:
        """Submit one batch as soon as there is one; False after `close` or a loss."""
        batch = self._next_batch()
        if batch is None:
            return False
        if batch.retry:
            self.engine.release()
        samples = [chunk.samples for chunk in batch.chunks]
        scripts = [chunk.script for chunk in batch.chunks]
        submitted = _attempt(lambda: self.engine.submit(samples, scripts))
        if isinstance(submitted, _NoMemory):
            self._complete(batch, submitted)
            return True
        with self._changed:
            batch.pending = submitted
            self._changed.notify_all()
        if self._depth == 1:
            self._complete(batch, _attempt(submitted.result))
        return True

    def _next_batch(self) -> _Batch | None:
        """Wait for a batch that can be submitted; None after `close` or a loss."""
        with self._changed:
            while True:
                self._changed.wait_for(self._can_submit)
                if self._lost_reason is not None:
                    return None
                if not self._retries and self._closed:
                    return None
                batch = self._retries.popleft() if self._retries else self._take_batch()
                if batch is not None:
                    self._add_in_flight(batch)
                    return batch

    def _can_submit(self) -> bool:
        if self._lost_reason is not None:
            return True
        if self._retries or self._closed:
            return not self._in_flight
        has_slot = len(self._in_flight) < self._depth
        return bool(self._waiting) and has_slot and not any(one.retry for one in self._in_flight)

    def _take_batch(self) -> _Batch | None:
        """Remove the next batch from the queue; None if all its chunks were cancelled."""
        selected = plan([chunk.seconds for chunk in self._waiting], self._capacity)
        chunks = [self._waiting[index] for index in selected]
        self._fair_queue.advance(self._waiting[0].start_tag)
        taken = set(selected)
        self._waiting = [chunk for index, chunk in enumerate(self._waiting) if index not in taken]
        live = [chunk for chunk in chunks if chunk.future.set_running_or_notify_cancel()]
        if not live:
            return None
        self._batches += 1
        self._chunks += len(live)
        lengths = [chunk.seconds for chunk in live]
        self._computed_seconds += (
            sum(lengths) if self._capacity.packed else len(live) * max(lengths)
        )
        return _Batch(live)

    def _add_in_flight(self, batch: _Batch) -> None:
        batch.started_at = time.monotonic()
        if self._in_flight:
            for other in (*self._in_flight, batch):
                other.overlapped = True
        self._in_flight.append(batch)
        self._update_watchdog()

    # The results thread, if `Engine.depth` is above 1.

    def _run_results(self) -> None:
        try:
            while self._complete_oldest():
                pass
        except BaseException as failure:  # noqa: BLE001  # as in the engine thread
            self._lose_after(failure)

    def _complete_oldest(self) -> bool:
        with self._changed:
            self._changed.wait_for(self._can_complete)
            if self._lost_reason is not None or not self._in_flight:
                return False
            batch = self._in_flight[0]
        assert batch.pending is not None
        # Not bound to a variable, which would keep a failed attempt's tensors during the next one.
        self._complete(batch, _attempt(batch.pending.result))
        return True

    def _can_complete(self) -> bool:
        if self._lost_reason is not None or self._stopped:
            return True
        return bool(self._in_flight) and self._in_flight[0].pending is not None

    # Both threads.

    def _complete(self, batch: _Batch, outcomes: list[Outcome] | _NoMemory) -> None:
        """Resolve the chunks of a batch, or queue its parts for a retry."""
        with self._changed:
            if self._lost_reason is not None:  # the chunks have failed with `EngineLost`
                return
            self._remove_in_flight(batch)
            ran_alone = len(batch.chunks) == 1 and not batch.overlapped
            if isinstance(outcomes, _NoMemory) and not ran_alone:
                self._retries.extendleft(reversed(_split(batch)))
            self._changed.notify_all()
        if isinstance(outcomes, _NoMemory):
            log.warning("out of memory for a batch of %d: %s", len(batch.chunks), outcomes.reason)
            if ran_alone:
                _resolve(batch.chunks[0], OutOfMemory(batch.chunks[0].seconds))
            return
        expected, returned = len(batch.chunks), len(outcomes)
        for index, chunk in enumerate(batch.chunks):
            matches = expected == returned
            _resolve(chunk, outcomes[index] if matches else ContractBroken(expected, returned))

    def _remove_in_flight(self, batch: _Batch) -> None:
        now = time.monotonic()
        self._busy_seconds += now - max(batch.started_at, self._busy_until)
        self._busy_until = now
        batch.pending = None
        self._in_flight.remove(batch)
        self._update_watchdog()

    def _lose_after(self, failure: BaseException) -> None:
        self._mark_lost(f"{type(failure).__name__}: {failure}", failure=failure)
        failures.clear_tracebacks(failure)

    def _mark_lost(
        self, reason: str, *, failure: BaseException | None = None, overdue: _Batch | None = None
    ) -> None:
        """`mark_lost`; a no-op if the `overdue` batch has completed in the meantime."""
        with self._changed:
            completed = overdue is not None and overdue is not self._watched_batch
            if self._lost_reason is not None or completed:
                return
            self._lost_reason = reason
        log.error("the engine is lost: %s", reason, exc_info=failure)
        self._fail_all()
        self._finished.set()

    def _fail_all(self) -> None:
        """Reject new submissions and fail every chunk that is not resolved yet."""
        with self._changed:
            self._closed = self._stopped = True
            batches = (*self._in_flight, *self._retries)
            running = [chunk for batch in batches for chunk in batch.chunks]
            waiting, self._waiting = self._waiting, []
            self._in_flight.clear()
            self._retries.clear()
            self._update_watchdog()
            self._changed.notify_all()
        reason = self._lost_reason or "the worker is closing"
        for chunk in waiting:
            chunk.future.set_running_or_notify_cancel()
        for chunk in (*running, *waiting):
            _resolve(chunk, EngineLost(reason))

    def _update_watchdog(self) -> None:
        """Restart the timer if the oldest batch in flight is another one than before."""
        oldest = self._in_flight[0] if self._in_flight else None
        if self._timeout_seconds is None or oldest is self._watched_batch:
            return
        if self._watchdog is not None:
            self._watchdog.cancel()
        self._watched_batch, self._watchdog = oldest, None
        if oldest is not None:
            self._watchdog = threading.Timer(self._timeout_seconds, self._abandon_engine, [oldest])
            self._watchdog.daemon = True
            self._watchdog.start()

    def _abandon_engine(self, batch: _Batch) -> None:
        reason = f"it did not complete a batch within {self._timeout_seconds:g} s"
        self._mark_lost(reason, overdue=batch)

    def _waiting_seconds(self) -> float:
        return sum(chunk.seconds for chunk in self._waiting if not chunk.future.cancelled())


def _split(batch: _Batch) -> list[_Batch]:
    """Both halves of a batch that did not fit; a single chunk is retried without overlap."""
    if len(batch.chunks) == 1:
        return [_Batch(batch.chunks, retry=True)]
    half = len(batch.chunks) // 2
    return [_Batch(batch.chunks[:half], retry=True), _Batch(batch.chunks[half:], retry=True)]


def _attempt(work: Callable[[], Value]) -> Value | _NoMemory:
    """Return the result of `work`, or `_NoMemory`; other exceptions propagate.

    The exception of a failed attempt is released here: its traceback holds the attempt's tensors,
    which would occupy the memory that the smaller retry needs.
    """
    try:
        return work()
    except Exception as failure:
        if not failures.is_out_of_memory(failure):
            raise
        reason = str(failure)
        failures.clear_tracebacks(failure)
    return _NoMemory(reason)


def _resolve(chunk: _Chunk, outcome: Outcome) -> None:
    """Set the future's result or exception.

    A no-op if it is resolved: a batch may complete while the engine is being abandoned.
    """
    with suppress(InvalidStateError):
        if isinstance(outcome, Exception):
            chunk.future.set_exception(outcome)
        else:
            chunk.future.set_result(outcome)
