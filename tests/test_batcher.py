"""Every guarantee of the batcher, with engines that violate their contract."""

import itertools
import logging
import queue
import threading
import time
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, Future, wait
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from parakeet_worker.audio.decoding import SAMPLE_RATE
from parakeet_worker.batcher import Batcher, plan
from parakeet_worker.engine.base import (
    Capacity,
    Finished,
    Hypothesis,
    LazyTokens,
    Outcome,
    Pending,
    Samples,
    SynchronousEngine,
    Token,
)
from parakeet_worker.engine.failures import translate_out_of_memory
from parakeet_worker.errors import (
    ContractBroken,
    EngineLost,
    NotFinite,
    OutOfMemory,
    Overloaded,
)

PATIENCE_SECONDS = 20.0

Answer = Future[Hypothesis]


class Engine(SynchronousEngine):
    """Returns the first sample of every chunk as its text, and records all calls."""

    def __init__(self) -> None:
        self.batches: list[list[Samples]] = []
        self.threads: set[int] = set()

    def transcribe(self, batch: Sequence[Samples], _scripts: object = ()) -> list[Hypothesis]:
        self.batches.append(list(batch))
        self.threads.add(threading.get_ident())
        return [hypothesis(piece) for piece in batch]

    def close(self) -> None:
        pass

    @property
    def texts(self) -> list[str]:
        """The names of all pieces that it was given, in order."""
        return [name(piece) for batch in self.batches for piece in batch]


class Held(Engine):
    """Blocks in its first batch until it is released."""

    def __init__(self) -> None:
        super().__init__()
        self.entered = threading.Event()
        self.released = threading.Event()

    def transcribe(self, batch: Sequence[Samples], _scripts: object = ()) -> list[Hypothesis]:
        self.entered.set()
        assert self.released.wait(PATIENCE_SECONDS)
        return super().transcribe(batch)


class Scheming(Held):
    """After the first batch, applies the function of the test to each."""

    def __init__(self, scheme: Callable[[list[Hypothesis]], list[Hypothesis]]) -> None:
        super().__init__()
        self.scheme = scheme

    def transcribe(self, batch: Sequence[Samples], _scripts: object = ()) -> list[Hypothesis]:
        hypotheses = super().transcribe(batch)
        return hypotheses if len(self.batches) == 1 else self.scheme(hypotheses)


class Cramped(Held):
    """Has room for so many seconds, padding counted."""

    def __init__(self, room_seconds: float) -> None:
        super().__init__()
        self.room_seconds = room_seconds

    def transcribe(self, batch: Sequence[Samples], _scripts: object = ()) -> list[Hypothesis]:
        hypotheses = super().transcribe(batch)
        longest = max(len(piece) for piece in batch) / SAMPLE_RATE
        if longest * len(batch) > self.room_seconds:
            raise OutOfMemory(longest)
        return hypotheses


def piece(number: float, seconds: float = 1.0) -> Samples:
    return np.full(round(seconds * SAMPLE_RATE), number, dtype=np.float32)


def pieces(*numbers: float) -> list[Samples]:
    return [piece(number) for number in numbers]


def name(samples: Samples) -> str:
    return f"{samples[0]:g}"


def hypothesis(samples: Samples) -> Hypothesis:
    return Hypothesis((Token(f"▁{name(samples)}", 0, len(samples) // 1280, -0.1),), 0.08)


class Caller:
    """A caller that submits several times."""


def text_of(answer: Answer) -> str:
    (token,) = answer.result(PATIENCE_SECONDS).tokens
    return token.piece.removeprefix("▁")


def failure(answer: Answer) -> BaseException | None:
    return answer.exception(PATIENCE_SECONDS)


class Flight:
    """A batch that the test completes."""

    def __init__(self, batch: Sequence[Samples]) -> None:
        self.names = [name(samples) for samples in batch]
        self._outcomes = [hypothesis(samples) for samples in batch]
        self._back: Future[list[Outcome]] = Future()

    def result(self) -> list[Outcome]:
        return self._back.result(PATIENCE_SECONDS)

    def land(self, outcomes: list[Outcome] | None = None) -> None:
        self._back.set_result(self._outcomes if outcomes is None else outcomes)

    def fail(self, failure: BaseException) -> None:
        self._back.set_exception(failure)


class Deep(Engine):
    """Takes a second batch while the first is in flight; the test lands them."""

    depth = 2

    def __init__(self) -> None:
        super().__init__()
        self._flights: queue.Queue[Flight] = queue.Queue()
        self.flying: list[Flight] = []
        self.released_concurrently: list[int] = []
        """For each release of memory, how many batches were in flight."""

    def submit(self, batch: Sequence[Samples], _scripts: object = ()) -> Flight:
        self.threads.add(threading.get_ident())
        flight = Flight(batch)
        self.batches.append(list(batch))
        self._flights.put(flight)
        return flight

    def release(self) -> None:
        flying = sum(not flight._back.done() for flight in self.flying)
        self.released_concurrently.append(flying)

    def next(self) -> Flight:
        flight = self._flights.get(timeout=PATIENCE_SECONDS)
        self.flying.append(flight)
        return flight

    def has_no_more(self) -> bool:
        """Whether nothing is submitted for a moment."""
        try:
            self._flights.put(self._flights.get(timeout=0.05))
        except queue.Empty:
            return True
        return False


@contextmanager
def batching(
    engine: Engine, *, batch_seconds: float = 100.0, queue_seconds: float = 1000.0
) -> Iterator[Batcher]:
    with Batcher(
        engine, capacity=Capacity(batch_seconds, 512, packed=False), queue_seconds=queue_seconds
    ) as batcher:
        try:
            yield batcher
        finally:
            if isinstance(engine, Held):
                engine.released.set()


def occupy(batcher: Batcher, engine: Held) -> Answer:
    """Block the engine with a chunk, so that later chunks wait."""
    (answer,) = batcher.submit(pieces(0))
    assert engine.entered.wait(PATIENCE_SECONDS)
    return answer


# plan


@pytest.mark.parametrize(
    ("waiting", "budget", "chosen"),
    [
        ([], 60, []),
        ([10], 60, [0]),
        ([100], 60, [0]),  # longer than the budget: alone, but not left behind
        ([100, 1], 60, [0]),
        ([10, 10, 10], 30, [0, 1, 2]),
        ([10, 10, 10], 29, [0, 1]),
        ([10, 20, 30], 60, [1, 0]),  # 2 x 20; with the 30 it would be 90
        ([30, 20, 10], 60, [0, 1]),
        ([30, 10, 29], 60, [0, 2]),  # the one that is nearest in length
        ([1, 1, 1, 30], 60, [0, 1, 2]),  # 4 x 30 of which 87 would be padding
        ([1, 30], 60, [1, 0]),
        ([5, 1, 5, 1, 5], 15, [0, 2, 4]),
        ([0, 0, 0], 1, [0, 1, 2]),
    ],
)
def test_the_budget_of_a_batch_counts_padding(waiting, budget, chosen):
    assert plan(waiting, Capacity(budget, 512, packed=False)) == chosen


@pytest.mark.parametrize(
    ("waiting", "budget", "chosen"),
    [
        ([], 60, []),
        ([100], 60, [0]),  # longer than the budget: alone, but not left behind
        ([100, 1], 60, [0]),
        ([10, 20, 30], 60, [2, 1, 0]),  # the sum: no padding is computed
        ([10, 20, 31], 60, [1, 0]),
        ([1, 1, 1, 30], 60, [3, 0, 1, 2]),
        ([30, 20, 20, 10], 60, [0, 1, 3]),  # in turn; what does not fit leaves room for the next
        ([5, 29, 6, 26], 60, [1, 2, 0]),  # and not by length
        ([0, 0, 0], 1, [0, 1, 2]),
    ],
)
def test_the_budget_of_a_packed_batch_counts_what_it_contains(waiting, budget, chosen):
    assert plan(waiting, Capacity(budget, 512, packed=True)) == chosen


@pytest.mark.parametrize("packed", [False, True])
def test_a_batch_has_no_more_chunks_than_the_engine_takes(packed):
    assert plan([2, 1, 1, 1], Capacity(100, 3, packed=packed)) == [0, 1, 2]
    assert plan([2, 1, 1, 1], Capacity(100, 1, packed=packed)) == [0]


@pytest.mark.parametrize("packed", [False, True])
def test_a_chunk_longer_than_the_engine_mixes_goes_alone(packed):
    capacity = Capacity(1000, 512, packed=packed, alone_seconds=40)
    assert plan([41, 41, 10, 40], capacity) == [0]
    assert plan([40, 41, 10, 300], capacity) == [0, 2]


def computed_seconds(seconds, *, packed):
    return sum(seconds) if packed else max(seconds) * len(seconds)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("seed", range(200))
def test_a_plan_keeps_to_the_capacity_wastes_no_room_and_takes_the_oldest(seed, packed):
    generator = np.random.default_rng(seed)
    waiting = generator.uniform(0.1, 30, generator.integers(1, 60)).tolist()
    capacity = Capacity(
        generator.uniform(1, 300),
        int(generator.integers(1, 40)),
        packed=packed,
        alone_seconds=generator.uniform(10, 40),
    )
    chosen = plan(waiting, capacity)

    assert 0 in chosen
    assert len(set(chosen)) == len(chosen) <= capacity.chunks
    assert chosen == sorted(chosen, key=lambda index: -waiting[index])
    lengths = [waiting[index] for index in chosen]
    assert len(chosen) == 1 or max(lengths) <= capacity.alone_seconds
    assert len(chosen) == 1 or computed_seconds(lengths, packed=packed) <= capacity.seconds
    if max(lengths) > capacity.alone_seconds or len(chosen) == capacity.chunks:
        return
    for index in set(range(len(waiting))) - set(chosen):
        more = [*lengths, waiting[index]]
        too_long = waiting[index] > capacity.alone_seconds
        assert too_long or computed_seconds(more, packed=packed) > capacity.seconds


# answers


def test_every_piece_gets_the_answer_to_itself():
    with batching(Engine()) as batcher:
        answers = batcher.submit(pieces(*range(50)))
        assert [text_of(answer) for answer in answers] == [str(number) for number in range(50)]


def test_pieces_of_all_lengths_get_their_own_answers_in_the_order_of_submission():
    lengths = np.random.default_rng(5).uniform(0.1, 4, 60).tolist()
    engine = Engine()
    with batching(engine, batch_seconds=12) as batcher:
        answers = batcher.submit([piece(n, seconds) for n, seconds in enumerate(lengths)])
        assert [text_of(answer) for answer in answers] == [str(number) for number in range(60)]
    assert len(engine.batches) > 1
    for batch in engine.batches:
        assert max(len(samples) for samples in batch) * len(batch) <= 12 * SAMPLE_RATE


def test_many_threads_get_their_own_answers_from_one_engine_thread():
    engine = Engine()
    texts: dict[int, list[str]] = {}

    def caller(number: int) -> None:
        answers = [
            *batcher.submit(pieces(*range(number * 100, number * 100 + 5))),
            *batcher.submit(pieces(number * 100 + 5)),
        ]
        texts[number] = [text_of(answer) for answer in answers]

    with batching(engine, batch_seconds=7) as batcher:
        threads = [threading.Thread(target=caller, args=(number,)) for number in range(32)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE_SECONDS)
    assert texts == {
        number: [str(number * 100 + index) for index in range(6)] for number in range(32)
    }
    assert len(engine.threads) == 1
    assert threading.get_ident() not in engine.threads


def test_different_callers_share_a_batch():
    engine = Held()
    with batching(engine) as batcher:
        occupy(batcher, engine)
        answers = [batcher.submit(pieces(number))[0] for number in (1, 2, 3)]
        engine.released.set()
        assert [text_of(answer) for answer in answers] == ["1", "2", "3"]
    assert [len(batch) for batch in engine.batches] == [1, 3]


def test_the_oldest_is_in_the_next_batch_however_unlike_the_others_it_is():
    engine = Held()
    with batching(engine, batch_seconds=30) as batcher:
        occupy(batcher, engine)
        (odd,) = batcher.submit([piece(1, 29)])
        others = batcher.submit([piece(2, 0.5)] * 40)
        engine.released.set()
        text_of(odd)
        wait(others, PATIENCE_SECONDS)
    assert "1" in [name(samples) for samples in engine.batches[1]]


def test_a_request_without_pieces_is_answered_with_nothing():
    with batching(Engine()) as batcher:
        assert batcher.submit([]) == []


# exactly once


def outcome(number: int, answer: Answer) -> str:
    if answer.cancelled():
        return "cancelled"
    if answer.exception() is not None:
        return type(answer.exception()).__name__
    return "right" if text_of(answer) == str(number) else "wrong"


def test_every_piece_is_answered_exactly_once_whatever_is_cancelled_or_fails():
    turns = itertools.count()

    def scheme(hypotheses: list[Hypothesis]) -> list[Hypothesis]:
        turn = next(turns)
        if turn % 2 == 0:
            raise OutOfMemory(1.0)
        return hypotheses[1:] if turn % 5 == 0 else hypotheses

    engine = Scheming(scheme)
    engine.released.set()
    answers: dict[int, Answer] = {}
    notified: list[int] = []

    def caller(first: int) -> None:
        for number in range(first, first + 50):
            (answers[number],) = batcher.submit([piece(number, 0.1)])
            answers[number].add_done_callback(lambda _, number=number: notified.append(number))
            if number % 3 == 0:
                answers[number].cancel()

    with batching(engine, batch_seconds=0.8) as batcher:
        threads = [threading.Thread(target=caller, args=(first,)) for first in range(1, 401, 50)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE_SECONDS)
        assert wait(answers.values(), PATIENCE_SECONDS).not_done == set()
        assert not batcher.lost

    assert sorted(notified) == list(range(1, 401))
    outcomes = Counter(outcome(number, answer) for number, answer in answers.items())
    assert set(outcomes) - {"cancelled"} == {"right", "OutOfMemory", "ContractBroken"}


def test_closing_finishes_what_runs_and_answers_what_waits():
    engine = Held()
    with batching(engine) as batcher:
        running = occupy(batcher, engine)
        waiting = batcher.submit(pieces(1, 2, 3))
        waiting[1].cancel()
        closing = threading.Thread(target=batcher.close)
        closing.start()
        while not batcher._closed:
            closing.join(0.001)
        engine.released.set()
        closing.join(PATIENCE_SECONDS)
        assert not closing.is_alive()
        assert text_of(running) == "0"
        assert isinstance(failure(waiting[0]), EngineLost)
        assert isinstance(failure(waiting[2]), EngineLost)
        assert waiting[1].cancelled()
        assert wait(waiting, PATIENCE_SECONDS).not_done == set()
        assert engine.texts == ["0"]


def test_a_closed_batcher_refuses_work_and_may_be_closed_again():
    with batching(Engine()) as batcher:
        batcher.close()
        with pytest.raises(EngineLost, match="closing"):
            batcher.submit(pieces(1))
    assert not batcher.lost


def test_no_thread_is_left_behind():
    before = set(threading.enumerate())
    with batching(Engine()) as batcher:
        batcher.submit(pieces(1))
        (own,) = set(threading.enumerate()) - before
    assert not own.is_alive()


# all or none


def test_a_request_that_does_not_fit_the_queue_is_refused_whole():
    engine = Held()
    with batching(engine, queue_seconds=5) as batcher:
        occupy(batcher, engine)
        taken = batcher.submit(pieces(1, 2, 3))
        with pytest.raises(Overloaded) as refused:
            batcher.submit(pieces(4, 5, 6))
        last = batcher.submit(pieces(7, 8))
        with pytest.raises(Overloaded):
            batcher.submit(pieces(9))
        engine.released.set()
        assert [text_of(answer) for answer in (*taken, *last)] == ["1", "2", "3", "7", "8"]
        wait(batcher.submit(pieces(10)), PATIENCE_SECONDS)
    assert refused.value.facts == {"limit": 5}
    assert sorted(engine.texts, key=int) == ["0", "1", "2", "3", "7", "8", "10"]


def test_a_request_longer_than_the_queue_is_taken_where_nothing_waits():
    engine = Held()
    with batching(engine, queue_seconds=2) as batcher:
        occupy(batcher, engine)
        answers = batcher.submit(pieces(1, 2, 3, 4))
        engine.released.set()
        assert [text_of(answer) for answer in answers] == ["1", "2", "3", "4"]


def test_cancelled_work_does_not_occupy_the_queue():
    engine = Held()
    with batching(engine, queue_seconds=3) as batcher:
        occupy(batcher, engine)
        for answer in batcher.submit(pieces(1, 2, 3)):
            answer.cancel()
        answers = batcher.submit(pieces(4, 5, 6))
        engine.released.set()
        assert [text_of(answer) for answer in answers] == ["4", "5", "6"]


# another number of answers than pieces


@pytest.mark.parametrize(
    ("scheme", "answered"),
    [
        (lambda hypotheses: hypotheses[1:], 2),
        (lambda hypotheses: [*hypotheses, hypotheses[0]], 4),
        (lambda _: [], 0),
    ],
    ids=["one too few", "one too many", "none"],
)
def test_another_number_of_answers_is_contract_broken_for_that_batch_only(scheme, answered):
    engine = Scheming(scheme)
    with batching(engine) as batcher:
        first = occupy(batcher, engine)
        wronged = batcher.submit(pieces(1, 2, 3))
        engine.released.set()
        errors = [failure(answer) for answer in wronged]
        engine.scheme = lambda hypotheses: hypotheses
        assert [text_of(answer) for answer in batcher.submit(pieces(4, 5))] == ["4", "5"]
        assert text_of(first) == "0"
        assert not batcher.lost
    assert all(isinstance(error, ContractBroken) for error in errors)
    assert [error.facts for error in errors] == [{"chunks": 3, "results": answered}] * 3
    assert len({id(error) for error in errors}) == 3


# out of memory


def test_out_of_memory_halves_the_batch_until_it_fits():
    engine = Cramped(room_seconds=2)
    with batching(engine) as batcher:
        occupy(batcher, engine)
        answers = batcher.submit(pieces(*range(1, 9)))
        engine.released.set()
        assert [text_of(answer) for answer in answers] == [str(number) for number in range(1, 9)]
        assert not batcher.lost
    assert [len(batch) for batch in engine.batches] == [1, 8, 4, 2, 2, 4, 2, 2]


def test_only_the_piece_that_does_not_fit_alone_is_blamed_for_it():
    engine = Cramped(room_seconds=3)
    with batching(engine) as batcher:
        occupy(batcher, engine)
        answers = batcher.submit([piece(1), piece(2, 4), piece(3), piece(4), piece(5)])
        engine.released.set()
        errors = [failure(answer) for answer in answers]
        assert [text_of(answers[index]) for index in (0, 2, 3, 4)] == ["1", "3", "4", "5"]
        assert [text_of(answer) for answer in batcher.submit(pieces(6))] == ["6"]
        assert not batcher.lost
    assert isinstance(errors[1], OutOfMemory)
    assert errors[1].facts == {"seconds": 4}


# an engine that is lost


@pytest.mark.parametrize(
    "kind", [RuntimeError, OSError, ValueError, EngineLost, SystemExit, KeyboardInterrupt]
)
def test_an_unknown_failure_is_the_loss_of_the_engine_for_all_that_wait_and_come(kind):
    def scheme(_: object) -> list[Hypothesis]:
        raise kind("device-side assert")

    engine = Scheming(scheme)
    with batching(engine, batch_seconds=2) as batcher:
        first = occupy(batcher, engine)
        answers = batcher.submit(pieces(1, 2, 3, 4, 5))
        answers[4].cancel()
        assert not batcher.lost
        engine.released.set()
        errors = [failure(answer) for answer in answers[:4]]
        assert batcher.lost
        with pytest.raises(EngineLost, match="device-side assert"):
            batcher.submit(pieces(6))
        assert text_of(first) == "0"
        assert answers[4].cancelled()
        assert wait(answers, PATIENCE_SECONDS).not_done == set()
    assert all(isinstance(error, EngineLost) for error in errors)
    assert all("device-side assert" in str(error) for error in errors)
    assert len({id(error) for error in errors}) == 4
    assert len(engine.batches) == 2


def test_a_loss_in_the_second_half_of_a_split_batch_resolves_all_chunks():
    failures = iter([OutOfMemory(1.0), None, RuntimeError("illegal memory access")])

    def scheme(hypotheses: list[Hypothesis]) -> list[Hypothesis]:
        failing = next(failures)
        if failing is not None:
            raise failing
        return hypotheses

    engine = Scheming(scheme)
    with batching(engine, batch_seconds=4) as batcher:
        occupy(batcher, engine)
        split = batcher.submit(pieces(1, 2, 3, 4), caller=engine)
        (waiting,) = batcher.submit(pieces(5), caller=engine)
        engine.released.set()
        assert [text_of(answer) for answer in split[:2]] == ["1", "2"]
        assert isinstance(failure(split[2]), EngineLost)
        assert isinstance(failure(split[3]), EngineLost)
        assert isinstance(failure(waiting), EngineLost)
        assert batcher.lost
    assert "5" not in engine.texts


def test_a_loss_resolves_the_queued_parts_of_a_split_batch():
    failures = iter([OutOfMemory(1.0), RuntimeError("illegal memory access")])

    def scheme(_: object) -> list[Hypothesis]:
        raise next(failures)

    engine = Scheming(scheme)
    with batching(engine, batch_seconds=4) as batcher:
        occupy(batcher, engine)
        split = batcher.submit(pieces(1, 2, 3, 4))
        engine.released.set()
        errors = [failure(answer) for answer in split]
    assert all(isinstance(error, EngineLost) for error in errors)


# turns


def test_one_who_comes_with_little_does_not_wait_for_the_hours_of_another():
    engine = Held()
    with batching(engine, batch_seconds=1) as batcher:
        occupy(batcher, engine)
        hours = batcher.submit(pieces(*range(1, 101)), caller=Caller())
        more = batcher.submit(pieces(*range(101, 201)), caller=Caller())
        (short,) = batcher.submit(pieces(777))
        engine.released.set()
        assert text_of(short) == "777"
        assert [text_of(answer) for answer in (*hours, *more)] == [str(n) for n in range(1, 201)]
    order = [name(batch[0]) for batch in engine.batches]
    assert order.index("777") <= 3, "at most one chunk of each caller precedes it"
    assert order.index("101") <= 3, "the second caller is served like the first"


def test_chunks_of_one_caller_keep_their_order_for_any_number_per_submission():
    engine = Held()
    with batching(engine, batch_seconds=1) as batcher:
        occupy(batcher, engine)
        caller = Caller()
        answers = [batcher.submit(pieces(number), caller=caller)[0] for number in range(1, 30)]
        engine.released.set()
        assert [text_of(answer) for answer in answers] == [str(number) for number in range(1, 30)]
    assert [name(batch[0]) for batch in engine.batches[1:]] == [str(n) for n in range(1, 30)]


# cancelled work


def test_cancelled_work_never_reaches_the_engine():
    engine = Held()
    with batching(engine) as batcher:
        occupy(batcher, engine)
        answers = batcher.submit(pieces(1, 2, 3, 4))
        assert answers[0].cancel()
        assert answers[2].cancel()
        engine.released.set()
        assert text_of(answers[1]) == "2"
        assert text_of(answers[3]) == "4"
        with pytest.raises(CancelledError):
            answers[0].result(PATIENCE_SECONDS)
        assert wait(answers, PATIENCE_SECONDS).not_done == set()
    assert engine.texts == ["0", "2", "4"]


def test_a_batch_of_nothing_but_cancelled_work_is_not_run():
    engine = Held()
    with batching(engine, batch_seconds=2) as batcher:
        occupy(batcher, engine)
        for answer in batcher.submit(pieces(1, 2, 3, 4)):
            answer.cancel()
        (last,) = batcher.submit(pieces(5))
        engine.released.set()
        assert text_of(last) == "5"
    assert engine.texts == ["0", "5"]
    assert all(engine.batches)


def test_what_the_engine_already_has_can_no_longer_be_taken_back():
    engine = Held()
    with batching(engine) as batcher:
        running = occupy(batcher, engine)
        assert not running.cancel()
        engine.released.set()
        assert text_of(running) == "0"


# an engine that does not come back


@contextmanager
def watching(engine: Engine, timeout_seconds: float) -> Iterator[Batcher]:
    with Batcher(
        engine,
        capacity=Capacity(2.0, 512, packed=False),
        queue_seconds=1000.0,
        timeout_seconds=timeout_seconds,
    ) as batcher:
        yield batcher


def test_a_hanging_engine_is_lost_and_all_chunks_are_resolved():
    engine = Held()
    with watching(engine, 0.3) as batcher:
        answers = batcher.submit(pieces(1, 2, 3, 4, 5))
        assert engine.entered.wait(PATIENCE_SECONDS)
        errors = [failure(answer) for answer in answers]
        assert batcher.lost
        with pytest.raises(EngineLost, match=r"did not complete a batch within 0\.3 s"):
            batcher.submit(pieces(6))
    # The batcher is closed, although its thread is still blocked in the engine.
    assert not engine.released.is_set()
    engine.released.set()
    assert all(isinstance(error, EngineLost) for error in errors)
    assert all("did not complete" in str(error) for error in errors)


def test_an_engine_that_comes_back_too_late_does_no_harm():
    engine = Held()
    with watching(engine, 0.3) as batcher:
        answers = batcher.submit(pieces(1, 2, 3))
        errors = [failure(answer) for answer in answers]
        thread = batcher._threads[0]
        engine.released.set()
        thread.join(PATIENCE_SECONDS)
        assert not thread.is_alive()
        assert [failure(answer) for answer in answers] == errors
        assert batcher.lost
    assert all(isinstance(error, EngineLost) for error in errors)
    assert len(engine.batches) == 1, "waiting chunks are not decoded after their rejection"


def test_an_engine_that_runs_out_of_memory_too_late_does_no_harm():
    engine = Cramped(0.5)
    with watching(engine, 0.3) as batcher:
        answers = batcher.submit(pieces(1, 2))
        errors = [failure(answer) for answer in answers]
        engine.released.set()
        batcher._threads[0].join(PATIENCE_SECONDS)
        assert [failure(answer) for answer in answers] == errors
    assert len(engine.batches) == 1


class Watched(Engine):
    """Blocks in each batch until the test releases it."""

    def __init__(self) -> None:
        super().__init__()
        self.entered = threading.Semaphore(0)
        self.released = threading.Semaphore(0)

    def transcribe(self, batch: Sequence[Samples], _scripts: object = ()) -> list[Hypothesis]:
        self.entered.release()
        assert self.released.acquire(timeout=PATIENCE_SECONDS)
        return super().transcribe(batch)


def test_an_engine_that_returns_while_it_is_abandoned_resolves_all_chunks():
    engine = Watched()

    class Meanwhile(logging.Handler):
        """The engine returns during the abandonment and would take waiting chunks."""

        def emit(self, _record: logging.LogRecord) -> None:
            engine.released.release(40)
            engine.entered.acquire(timeout=0.5)

    handler = Meanwhile()
    log = logging.getLogger("parakeet_worker.batcher")
    log.addHandler(handler)
    try:
        with watching(engine, 0.3) as batcher:
            answers = batcher.submit(pieces(*range(20)))
            assert engine.entered.acquire(timeout=PATIENCE_SECONDS)
            assert wait(answers, PATIENCE_SECONDS / 4).not_done == set()
    finally:
        log.removeHandler(handler)
    assert all(isinstance(failure(answer), EngineLost) for answer in answers)


def test_a_watch_that_ends_when_its_batch_is_done_gives_nothing_up():
    engine = Watched()
    with watching(engine, PATIENCE_SECONDS) as batcher:
        answers = batcher.submit(pieces(1, 2, 3, 4))
        assert engine.entered.acquire(timeout=PATIENCE_SECONDS)
        done = batcher._watched_batch
        engine.released.release()
        assert engine.entered.acquire(timeout=PATIENCE_SECONDS), "the second batch has started"
        batcher._abandon_engine(done)
        assert not batcher.lost
        engine.released.release()
        assert [text_of(answer) for answer in answers] == ["1", "2", "3", "4"]


def test_a_batcher_with_an_engine_that_hangs_can_be_closed():
    engine = Held()
    with watching(engine, 0.5) as batcher:
        (running,) = batcher.submit(pieces(1))
        assert engine.entered.wait(PATIENCE_SECONDS)
        # No caller waits any more, and the worker is stopped.
        closing = threading.Thread(target=batcher.close)
        closing.start()
        closing.join(PATIENCE_SECONDS)
        closed = not closing.is_alive()
        engine.released.set()
        closing.join()
    assert closed
    assert isinstance(failure(running), EngineLost)


def test_a_slow_engine_that_returns_in_time_is_not_abandoned():
    engine = Held()
    with watching(engine, PATIENCE_SECONDS) as batcher:
        answers = batcher.submit(pieces(1, 2, 3))
        assert engine.entered.wait(PATIENCE_SECONDS)
        engine.released.set()
        assert [text_of(answer) for answer in answers] == ["1", "2", "3"]
        assert not batcher.lost


# two batches in flight


def test_the_next_batch_is_submitted_while_one_is_in_flight_and_no_third():
    engine = Deep()
    with batching(engine, batch_seconds=1) as batcher:
        answers = batcher.submit(pieces(1, 2, 3, 4))
        first, second = engine.next(), engine.next()
        assert engine.has_no_more()
        first.land()
        assert text_of(answers[0]) == "1"
        third = engine.next()
        assert not answers[1].done()
        for flight in (second, third):
            flight.land()
        engine.next().land()
        assert [text_of(answer) for answer in answers] == ["1", "2", "3", "4"]
    assert len(engine.threads) == 1


def test_results_are_awaited_outside_the_submitting_thread_and_tokens_are_not_built():
    engine = Deep()
    built: list[int] = []
    resolved: list[int] = []

    def tokens() -> tuple[Token, ...]:
        built.append(threading.get_ident())
        return (Token("▁lazy", 0, 1, -0.1),)

    with batching(engine) as batcher:
        (answer,) = batcher.submit(pieces(1))
        answer.add_done_callback(lambda _: resolved.append(threading.get_ident()))
        engine.next().land([Hypothesis(LazyTokens(1, tokens), 0.08)])
        result = answer.result(PATIENCE_SECONDS)
        assert built == []
        assert result.tokens[0].piece == "▁lazy"
    assert built == [threading.get_ident()]
    assert not engine.threads & {*resolved, *built}


def test_a_batch_that_comes_back_before_an_older_one_waits_for_it():
    engine = Deep()
    with batching(engine, batch_seconds=1) as batcher:
        answers = batcher.submit(pieces(1, 2))
        first, second = engine.next(), engine.next()
        second.land()
        first.land()
        assert [text_of(answer) for answer in answers] == ["1", "2"]


def test_out_of_memory_in_one_batch_does_not_fail_a_concurrent_one():
    engine = Deep()
    with batching(engine, batch_seconds=2) as batcher:
        answers = batcher.submit(pieces(1, 2, 3, 4, 5), caller=engine)
        first, second = engine.next(), engine.next()
        assert (first.names, second.names) == (["1", "2"], ["3", "4"])
        first.fail(OutOfMemory(1))
        assert engine.has_no_more(), "the parts have the device to themselves"
        second.land()
        assert [text_of(answer) for answer in answers[2:4]] == ["3", "4"]
        for expected in ("1", "2"):
            part = engine.next()
            assert part.names == [expected]
            assert engine.has_no_more()
            part.land()
        engine.next().land()
        assert [text_of(answer) for answer in answers] == ["1", "2", "3", "4", "5"]
    assert engine.released_concurrently == [0, 0]


@pytest.mark.parametrize("fits", [True, False])
def test_a_chunk_that_does_not_fit_during_another_batch_fails_only_if_it_does_not_fit_alone(fits):
    engine = Deep()
    with batching(engine, batch_seconds=1) as batcher:
        answers = batcher.submit([piece(1, 1), piece(2, 3), piece(3)], caller=engine)
        first, second = engine.next(), engine.next()
        first.land()
        third = engine.next()
        second.fail(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."))
        assert engine.has_no_more()
        third.land()
        alone = engine.next()
        assert alone.names == ["2"]
        assert engine.has_no_more()
        if fits:
            alone.land()
            assert text_of(answers[1]) == "2"
        else:
            alone.fail(OutOfMemory(3))
            error = failure(answers[1])
            assert isinstance(error, OutOfMemory)
            assert error.facts == {"seconds": 3}
        assert [text_of(answers[0]), text_of(answers[2])] == ["1", "3"]
        assert not batcher.lost


class Refusing(Deep):
    """Has no memory for a second concurrent batch."""

    def submit(self, batch: Sequence[Samples], _scripts: object = ()) -> Flight:
        if any(not flight._back.done() for flight in self.flying):
            raise OutOfMemory(1)
        self.flying.append(super().submit(batch))
        return self.flying[-1]


def test_a_batch_that_there_is_no_memory_to_begin_is_tried_again_when_nothing_is_in_flight():
    engine = Refusing()
    with batching(engine, batch_seconds=2) as batcher:
        answers = batcher.submit(pieces(1, 2, 3, 4), caller=engine)
        first = engine._flights.get(timeout=PATIENCE_SECONDS)
        assert engine.has_no_more()
        first.land()
        for _ in range(2):
            engine._flights.get(timeout=PATIENCE_SECONDS).land()
        assert [text_of(answer) for answer in answers] == ["1", "2", "3", "4"]
    assert [len(batch) for batch in engine.batches] == [2, 1, 1]


def test_a_loss_answers_all_that_is_in_flight_and_all_that_waits():
    engine = Deep()
    with batching(engine, batch_seconds=1) as batcher:
        answers = batcher.submit(pieces(1, 2, 3, 4))
        first, second = engine.next(), engine.next()
        first.fail(RuntimeError("CUDA error: an illegal memory access was encountered"))
        errors = [failure(answer) for answer in answers]
        assert batcher.lost
        second.land()
        with pytest.raises(EngineLost, match="illegal memory access"):
            batcher.submit(pieces(5))
    assert all(isinstance(error, EngineLost) for error in errors)
    assert len(engine.batches) == 2


def test_a_failure_to_submit_is_the_loss_of_the_batch_in_flight_too():
    class Broken(Deep):
        def submit(self, batch: Sequence[Samples], _scripts: object = ()) -> Flight:
            if self.batches:
                raise RuntimeError("CUDA error: misaligned address")
            return super().submit(batch)

    engine = Broken()
    with batching(engine, batch_seconds=1) as batcher:
        answers = batcher.submit(pieces(1, 2, 3))
        errors = [failure(answer) for answer in answers]
        engine.next().land()
    assert all(isinstance(error, EngineLost) for error in errors)
    assert all("misaligned" in str(error) for error in errors)


def test_closing_finishes_both_batches_in_flight():
    engine = Deep()
    with batching(engine, batch_seconds=1) as batcher:
        answers = batcher.submit(pieces(1, 2, 3))
        first, second = engine.next(), engine.next()
        closing = threading.Thread(target=batcher.close)
        closing.start()
        while not batcher._closed:
            closing.join(0.001)
        first.land()
        assert text_of(answers[0]) == "1"
        closing.join(0.05)
        assert closing.is_alive()
        second.land()
        closing.join(PATIENCE_SECONDS)
        assert not closing.is_alive()
        assert text_of(answers[1]) == "2"
        assert isinstance(failure(answers[2]), EngineLost)
        assert not batcher.lost
        assert not any(thread.is_alive() for thread in batcher._threads)


def test_closing_finishes_the_parts_of_a_batch_that_did_not_fit():
    engine = Deep()
    with batching(engine, batch_seconds=2) as batcher:
        answers = batcher.submit(pieces(1, 2, 3), caller=engine)
        first, second = engine.next(), engine.next()
        closing = threading.Thread(target=batcher.close)
        closing.start()
        while not batcher._closed:
            closing.join(0.001)
        second.land()
        first.fail(MemoryError())
        for _ in range(2):
            engine.next().land()
        closing.join(PATIENCE_SECONDS)
        assert [text_of(answer) for answer in answers] == ["1", "2", "3"]


def test_work_cancelled_while_two_batches_are_in_flight_never_reaches_the_engine():
    engine = Deep()
    with batching(engine, batch_seconds=1) as batcher:
        answers = batcher.submit(pieces(1, 2, 3, 4))
        first, second = engine.next(), engine.next()
        assert answers[2].cancel()
        assert not answers[1].cancel()
        first.land()
        second.land()
        engine.next().land()
        assert text_of(answers[3]) == "4"
    assert engine.texts == ["1", "2", "4"]


def test_the_time_of_a_batch_counts_from_when_it_is_the_oldest():
    engine = Deep()
    with watching(engine, PATIENCE_SECONDS) as batcher:
        answers = batcher.submit([piece(1, 2), piece(2, 2)])
        first, second = engine.next(), engine.next()
        watched, watch = batcher._watched_batch, batcher._watchdog
        first.land()
        assert text_of(answers[0]) == "1"
        assert batcher._watched_batch is not watched
        assert batcher._watchdog is not watch
        assert watch.finished.is_set(), "of the first, nothing is waited for any more"
        batcher._abandon_engine(watched)
        assert not batcher.lost
        second.land()
        assert text_of(answers[1]) == "2"


def test_a_batch_that_does_not_come_back_is_the_loss_of_all_in_flight():
    engine = Deep()
    with watching(engine, 0.3) as batcher:
        answers = batcher.submit(pieces(*range(1, 8)))
        first, second = engine.next(), engine.next()
        first.land()
        assert text_of(answers[0]) == "1"
        errors = [failure(answer) for answer in answers[2:]]
        assert batcher.lost
    assert all("did not complete" in str(error) for error in errors)
    second.land()
    assert all(not thread.join(PATIENCE_SECONDS) for thread in batcher._threads)
    assert [failure(answer) for answer in answers[2:]] == errors


def land_by_chance(engine: Deep, chance: np.random.Generator) -> None:
    """Whatever is submitted, until a batch of nothing."""
    while True:
        flight = engine.next()
        fate = chance.integers(8)
        if not flight.names:
            return
        if fate == 0:
            flight.fail(RuntimeError("CUDA error: out of memory"))
        else:
            flight.land([] if fate == 1 else None)


@pytest.mark.parametrize("depth", [2, 3, 5])
def test_every_chunk_is_answered_exactly_once_with_many_batches_in_flight(depth):
    engine = Deep()
    engine.depth = depth
    device = threading.Thread(target=land_by_chance, args=[engine, np.random.default_rng(depth)])
    device.start()
    notified: list[int] = []
    answers: dict[int, Answer] = {}

    def caller(first: int) -> None:
        for number in range(first, first + 50):
            (answers[number],) = batcher.submit([piece(number, 0.1)])
            answers[number].add_done_callback(lambda _, number=number: notified.append(number))
            if number % 3 == 0:
                answers[number].cancel()

    with batching(engine, batch_seconds=0.8) as batcher:
        threads = [threading.Thread(target=caller, args=(first,)) for first in range(1, 401, 50)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE_SECONDS)
        assert wait(answers.values(), PATIENCE_SECONDS).not_done == set()
        assert not batcher.lost
    engine._flights.put(Flight([]))
    device.join(PATIENCE_SECONDS)
    assert sorted(notified) == list(range(1, 401))
    outcomes = Counter(outcome(number, answer) for number, answer in answers.items())
    assert outcomes.keys() <= {"right", "cancelled", "OutOfMemory", "ContractBroken"}
    assert outcomes["right"] > 100


# a device that fails outside the engine


@pytest.mark.parametrize("engine_class", [Held, Deep])
def test_an_engine_abandoned_from_outside_resolves_all_and_is_not_called_again(engine_class):
    engine = engine_class()
    with batching(engine, batch_seconds=1) as batcher:
        answers = batcher.submit(pieces(1, 2, 3, 4))
        if isinstance(engine, Deep):
            flights = [engine.next(), engine.next()]
        else:
            assert engine.entered.wait(PATIENCE_SECONDS)
        batcher.mark_lost("CUDA error in voice activity detection")
        batcher.mark_lost("and again")
        errors = [failure(answer) for answer in answers]
        assert batcher.lost
        with pytest.raises(EngineLost, match="voice activity detection"):
            batcher.submit(pieces(5))
        batcher.close()  # does not wait for what may never come back
        calls = len(engine.batches)
        if isinstance(engine, Deep):
            for flight in flights:
                flight.land()
        else:
            engine.released.set()
        for thread in batcher._threads:
            thread.join(PATIENCE_SECONDS)
            assert not thread.is_alive()
    assert all("voice activity" in str(error) for error in errors)
    assert [failure(answer) for answer in answers] == errors
    assert len(engine.batches) == max(calls, 1)


# errors of one chunk


@pytest.mark.parametrize("error", [NotFinite(1.0), OutOfMemory(1.0)])
def test_an_error_that_an_engine_answers_is_of_its_chunk_alone(error):
    def scheme(hypotheses: list[Outcome]) -> list[Outcome]:
        return [hypotheses[0], error, hypotheses[2]]

    engine = Scheming(scheme)
    with batching(engine) as batcher:
        occupy(batcher, engine)
        answers = batcher.submit(pieces(1, 2, 3))
        engine.released.set()
        assert failure(answers[1]) is error
        assert [text_of(answers[0]), text_of(answers[2])] == ["1", "3"]
        assert not batcher.lost
    assert len(engine.batches) == 2, "it is not tried again"


# references that are kept


class Filling(Engine):
    """Has memory for one chunk; fails while it holds tensors, and checks for them later."""

    def __init__(self, fails_in: str) -> None:
        super().__init__()
        self.fails_in = fails_in
        self.depth = 2 if fails_in == "result" else 1
        self.held: list[weakref.ref[torch.Tensor]] = []
        self.alive: list[int] = []
        """For each attempt, how many tensors of those before it were alive."""

    def submit(self, batch: Sequence[Samples], _scripts: object = ()) -> Pending:
        self.alive.append(sum(reference() is not None for reference in self.held))
        states = self.allocated()
        if self.fails_in == "submit":
            return Finished(self.computed(states, batch))
        return Late(self, states, batch)

    def allocated(self) -> torch.Tensor:
        tensor = torch.zeros(1000)
        self.held.append(weakref.ref(tensor))
        return tensor

    def computed(self, states: torch.Tensor, batch: Sequence[Samples]) -> list[Outcome]:
        # As an engine reports it: with the library's failure behind it, and its frames.
        with translate_out_of_memory(1.0):
            self.compute(states, len(batch))
        return self.transcribe(batch)

    def compute(self, states: torch.Tensor, count: int) -> None:
        scratch = self.allocated()
        # A variable of the frame that the traceback holds: only a collection would end this cycle.
        failure = torch.OutOfMemoryError(f"no memory after {len(states)} and {len(scratch)}")
        if count > 1:
            raise failure


@dataclass(frozen=True, slots=True, eq=False)
class Late:
    """Holds states until its result is requested."""

    engine: Filling
    states: torch.Tensor
    batch: Sequence[Samples]

    def result(self) -> list[Outcome]:
        return self.engine.computed(self.states, self.batch)


@pytest.mark.parametrize("fails_in", ["submit", "result"])
def test_tensors_of_a_failed_attempt_are_released_before_the_next(fails_in):
    engine = Filling(fails_in)
    with batching(engine) as batcher:
        answers = batcher.submit(pieces(*range(8)))
        assert [text_of(answer) for answer in answers] == [str(number) for number in range(8)]
    assert [len(batch) for batch in engine.batches] == [1] * 8
    assert engine.alive == [0] * 15


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("timeout_seconds", [None, PATIENCE_SECONDS])
def test_an_idle_batcher_keeps_nothing_of_its_last_batches(depth, timeout_seconds):
    class Quick(SynchronousEngine):
        def transcribe(self, batch: Sequence[Samples], _scripts: object = ()) -> list[Outcome]:
            return [hypothesis(samples) for samples in batch]

    engine = Quick()
    engine.depth = depth
    kept: list[weakref.ref[object]] = []
    with Batcher(
        engine,
        capacity=Capacity(1.0, 512, packed=False),
        queue_seconds=100,
        timeout_seconds=timeout_seconds,
    ) as batcher:
        chunks = pieces(1, 2, 3)
        answers = batcher.submit(chunks)
        for answer in answers:
            kept.append(weakref.ref(answer))
            result = answer.result(PATIENCE_SECONDS)
            assert result is not None
        kept += [weakref.ref(samples) for samples in chunks]
        del chunks, answers, answer, result
        deadline = time.monotonic() + PATIENCE_SECONDS
        while any(one() is not None for one in kept) and time.monotonic() < deadline:
            time.sleep(0.001)  # until its threads wait again
        assert [one() for one in kept] == [None] * 6
