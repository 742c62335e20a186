"""Many callers' pieces to batches for one engine; every piece is answered exactly once."""

import logging
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self
from weakref import WeakKeyDictionary

from parakeet_worker.audio import SAMPLE_RATE
from parakeet_worker.engine.base import Capacity, Engine, Hypothesis, Outcome, Waveform
from parakeet_worker.errors import ContractBroken, EngineLost, OutOfMemory, Overloaded
from parakeet_worker.language import Script

log = logging.getLogger(__name__)


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
class _Waiting:
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


@dataclass(frozen=True, slots=True)
class Load:
    """What waits, and what the engine has been given since the start."""

    waiting_seconds: float
    """Audio that waits for the engine."""
    budget_seconds: float
    """What one batch has room for, padding counted."""
    batches: int
    pieces: int
    padded_seconds: float
    """Of all batches, what the engine computed: padding counted where it pads."""
    busy_seconds: float
    """How long the engine worked on them."""


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
    """One queue and one thread in front of an engine.

    Nobody waits for company: while the engine works, the next batch gathers by itself. Callers
    get fair turns. A failure that the engine does not name is taken for the loss of the engine:
    all that wait are answered with `EngineLost`, and so is everybody after them. So is an engine
    that works on one batch for longer than `timeout_seconds`.
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
        self._capacity = capacity
        self._queue_seconds = queue_seconds
        self._timeout_seconds = timeout_seconds
        self._waiting: list[_Waiting] = []  # by turn
        self._working: list[_Waiting] = []  # what the engine was given last
        self._turns = _Turns()
        self._changed = threading.Condition()
        self._closed = False
        self._lost: str | None = None
        self._batches, self._pieces = 0, 0
        self._padded_seconds, self._busy_seconds = 0.0, 0.0
        self._stuck = False
        self._over = threading.Event()
        """The thread has ended, or is given up together with the engine."""
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    @property
    def lost(self) -> bool:
        """Whether the engine has failed for good and the worker should be replaced."""
        return self._lost is not None

    @property
    def load(self) -> Load:
        """How much there is to do, and how full the batches were."""
        with self._changed:
            waiting = sum(piece.seconds for piece in self._waiting if not piece.answer.cancelled())
            return Load(
                waiting_seconds=waiting,
                budget_seconds=self._capacity.seconds,
                batches=self._batches,
                pieces=self._pieces,
                padded_seconds=self._padded_seconds,
                busy_seconds=self._busy_seconds,
            )

    def submit(
        self,
        pieces: Sequence[Waveform],
        *,
        script: Script | None = None,
        caller: object = None,
        admitted: bool = False,
    ) -> "list[Future[Hypothesis]]":
        """Queue all pieces of a request, or none; raises `Overloaded` or `EngineLost`.

        Where nothing waits, a request of any length is taken. Pieces of one `caller` take turns
        with those of others; without one, a submission is a caller of its own. Who is `admitted`,
        because pieces of his were taken before, is not refused in the middle of his recording.
        """
        caller = _Anonymous() if caller is None else caller
        with self._changed:
            if self._lost is not None or self._closed:
                raise EngineLost(self._lost or "the worker is closing")
            waiting = sum(piece.seconds for piece in self._waiting if not piece.answer.cancelled())
            asked = sum(_seconds(samples) for samples in pieces)
            if waiting and not admitted and waiting + asked > self._queue_seconds:
                raise Overloaded(waiting, self._queue_seconds)
            queued = [
                _Waiting(samples, script, self._turns.next(caller, _seconds(samples)))
                for samples in pieces
            ]
            self._waiting.extend(queued)
            self._waiting.sort(key=lambda piece: piece.turn)
            self._changed.notify()
        return [piece.answer for piece in queued]

    def close(self) -> None:
        """Finish what is running, answer what waits with `EngineLost`, and end the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._over.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        failure: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _run(self) -> None:
        batch: list[_Waiting] = []
        try:
            while batch := self._next():
                started = time.monotonic()
                with self._watched(batch):
                    self._transcribe(batch)
                self._count(batch, time.monotonic() - started)
        except BaseException as failure:  # whatever it is, nobody may be left waiting
            log.exception("the engine is lost")
            self._lost = f"{type(failure).__name__}: {failure}"
        finally:
            self._leave(batch)
            self._over.set()

    def _next(self) -> list[_Waiting]:
        """Wait for work; an empty list means that the batcher is closed."""
        with self._changed:
            while True:
                self._changed.wait_for(lambda: self._waiting or self._closed)
                if self._closed:
                    return []
                chosen = plan([piece.seconds for piece in self._waiting], self._capacity)
                batch = [self._waiting[index] for index in chosen]
                self._turns.served(self._waiting[0].turn)
                taken = set(chosen)
                self._waiting = [
                    piece for index, piece in enumerate(self._waiting) if index not in taken
                ]
                live = [piece for piece in batch if piece.answer.set_running_or_notify_cancel()]
                if live:
                    self._working = live
                    return live

    def _count(self, batch: list[_Waiting], busy_seconds: float) -> None:
        with self._changed:
            self._batches += 1
            self._pieces += len(batch)
            self._padded_seconds += self._computed_seconds(batch)
            self._busy_seconds += busy_seconds

    def _computed_seconds(self, batch: list[_Waiting]) -> float:
        if self._capacity.packed:
            return sum(piece.seconds for piece in batch)
        return len(batch) * max(piece.seconds for piece in batch)

    @contextmanager
    def _watched(self, batch: list[_Waiting]) -> Iterator[None]:
        """Give the engine up where it does not come back; its thread then stays with it."""
        if self._timeout_seconds is None:
            yield
            return
        watch = threading.Timer(self._timeout_seconds, self._give_up, [batch])
        watch.daemon = True
        watch.start()
        try:
            yield
        finally:
            watch.cancel()

    def _give_up(self, batch: list[_Waiting]) -> None:
        reason = f"it did not come back from a batch within {self._timeout_seconds:g} s"
        with self._changed:  # from here on the engine is given nothing more
            if self._working is not batch:  # it came back in this very moment, and works on
                return
            self._stuck = True
            self._lost = reason
            self._leave(batch)
        self._over.set()
        log.error("the engine is lost: %s", reason)

    def _transcribe(self, batch: list[_Waiting]) -> None:
        try:
            outcomes = self.engine.submit(
                [piece.samples for piece in batch], [piece.script for piece in batch]
            ).result()
        except OutOfMemory as failure:
            self._transcribe_halves(batch, failure)
            return
        if self._stuck:  # it came back after all, to find everybody answered
            return
        if len(outcomes) != len(batch):
            for piece in batch:
                self._settle(piece, ContractBroken(len(batch), len(outcomes)))
            return
        for piece, outcome in zip(batch, outcomes, strict=True):
            self._settle(piece, outcome)

    def _transcribe_halves(self, batch: list[_Waiting], failure: OutOfMemory) -> None:
        if self._stuck:
            return
        if len(batch) == 1:
            self._settle(batch[0], failure)
            return
        half = len(batch) // 2
        self._transcribe(batch[:half])
        self._transcribe(batch[half:])

    def _leave(self, batch: list[_Waiting]) -> None:
        """Refuse new work and answer everybody who has no answer yet."""
        with self._changed:
            self._closed = True
            left, self._waiting = self._waiting, []
        reason = self._lost or "the worker is closing"
        for piece in left:
            piece.answer.set_running_or_notify_cancel()
        for piece in (*batch, *left):
            self._settle(piece, EngineLost(reason))

    @staticmethod
    def _settle(piece: _Waiting, answer: Outcome) -> None:
        """Give the piece its answer, unless it has one: an engine may come back from a batch in
        the moment in which it is given up."""
        with suppress(InvalidStateError):
            if isinstance(answer, Exception):
                piece.answer.set_exception(answer)
            else:
                piece.answer.set_result(answer)
