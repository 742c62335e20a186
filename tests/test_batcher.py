"""Tests of the batcher with engines that violate the engine interface."""

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
from hypothesis import given
from hypothesis import strategies as st

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

TIMEOUT_SECONDS = 20.0

Answer = Future[Hypothesis]


class Engine(SynchronousEngine):
    """Emits the first sample of every chunk as its token, and records the batches."""

    def __init__(self) -> None:
        self.batches: list[list[Samples]] = []
        self.threads: set[int] = set()

    def transcribe(self, batch: Sequence[Samples], _scripts: object = ()) -> list[Hypothesis]:
        self.batches.append(list(batch))
        self.threads.add(threading.get_ident())
        return [hypothesis(chunk) for chunk in batch]

    def close(self) -> None:
        pass

    @property
    def transcribed(self) -> list[str]:
        """The names of all chunks, in order."""
        return [name(chunk) for batch in self.batches for chunk in batch]


class BlockedEngine(Engine):
    """Blocks in its first batch until it is released."""

    def __init__(self) -> None:
        super().__init__()
        self.entered = threading.Event()
        self.released = threading.Event()

    def transcribe(self, batch: Sequence[Samples], _scripts: object = ()) -> list[Hypothesis]:
        self.entered.set()
        assert self.released.wait(TIMEOUT_SECONDS)
        return super().transcribe(batch)


class ManipulatedEngine(BlockedEngine):
    """Applies a function of the test to every result after the first batch."""

    def __init__(self, change: Callable[[list[Hypothesis]], list[Hypothesis]]) -> None:
        super().__init__()
        self.change = change

    def transcribe(self, batch: Sequence[Samples], _scripts: object = ()) -> list[Hypothesis]:
        results = super().transcribe(batch)
        return results if len(self.batches) == 1 else self.change(results)


class SmallEngine(BlockedEngine):
    """Runs out of memory beyond `memory_seconds`, including padding."""

    def __init__(self, memory_seconds: float) -> None:
        super().__init__()
        self.memory_seconds = memory_seconds

    def transcribe(self, batch: Sequence[Samples], _scripts: object = ()) -> list[Hypothesis]:
        results = super().transcribe(batch)
        longest = max(len(chunk) for chunk in batch) / SAMPLE_RATE
        if longest * len(batch) > self.memory_seconds:
            raise OutOfMemory(longest)
        return results


def chunk(number: float, seconds: float = 1.0) -> Samples:
    return np.full(round(seconds * SAMPLE_RATE), number, dtype=np.float32)


def chunks_of(*numbers: float) -> list[Samples]:
    return [chunk(number) for number in numbers]


def name(samples: Samples) -> str:
    return f"{samples[0]:g}"


def hypothesis(samples: Samples) -> Hypothesis:
    return Hypothesis((Token(f"▁{name(samples)}", 0, len(samples) // 1280, -0.1),), 0.08)


class Caller:
    """Identifies a caller with several submissions."""


def text_of(answer: Answer) -> str:
    (token,) = answer.result(TIMEOUT_SECONDS).tokens
    return token.piece.removeprefix("▁")


def failure(answer: Answer) -> BaseException | None:
    return answer.exception(TIMEOUT_SECONDS)


class Flight:
    """A batch in flight that the test completes."""

    def __init__(self, batch: Sequence[Samples]) -> None:
        self.names = [name(samples) for samples in batch]
        self._outcomes = [hypothesis(samples) for samples in batch]
        self._back: Future[list[Outcome]] = Future()

    def result(self) -> list[Outcome]:
        return self._back.result(TIMEOUT_SECONDS)

    def land(self, outcomes: list[Outcome] | None = None) -> None:
        self._back.set_result(self._outcomes if outcomes is None else outcomes)

    def fail(self, failure: BaseException) -> None:
        self._back.set_exception(failure)


class PipelinedEngine(Engine):
    """Accepts a second batch while the first is in flight; the test completes them."""

    depth = 2

    def __init__(self) -> None:
        super().__init__()
        self._flights: queue.Queue[Flight] = queue.Queue()
        self.flying: list[Flight] = []
        self.in_flight_at_release: list[int] = []
        """For each release of memory, the number of batches in flight."""

    def submit(self, batch: Sequence[Samples], _scripts: object = ()) -> Flight:
        self.threads.add(threading.get_ident())
        flight = Flight(batch)
        self.batches.append(list(batch))
        self._flights.put(flight)
        return flight

    def release(self) -> None:
        flying = sum(not flight._back.done() for flight in self.flying)
        self.in_flight_at_release.append(flying)

    def next(self) -> Flight:
        flight = self._flights.get(timeout=TIMEOUT_SECONDS)
        self.flying.append(flight)
        return flight

    def has_no_more(self) -> bool:
        """Whether no batch is submitted within 50 ms."""
        try:
            self._flights.put(self._flights.get(timeout=0.05))
        except queue.Empty:
            return True
        return False


@contextmanager
def open_batcher(
    engine: Engine, *, batch_seconds: float = 100.0, queue_seconds: float = 1000.0
) -> Iterator[Batcher]:
    with Batcher(
        engine, capacity=Capacity(batch_seconds, 512, packed=False), queue_seconds=queue_seconds
    ) as batcher:
        try:
            yield batcher
        finally:
            if isinstance(engine, BlockedEngine):
                engine.released.set()


def block(batcher: Batcher, engine: BlockedEngine) -> Answer:
    """Block the engine in a chunk, so that later chunks are queued."""
    (answer,) = batcher.submit(chunks_of(0))
    assert engine.entered.wait(TIMEOUT_SECONDS)
    return answer


# plan


@pytest.mark.parametrize(
    ("waiting", "budget", "chosen"),
    [
        ([], 60, []),
        ([10], 60, [0]),
        ([100], 60, [0]),  # longer than the budget: alone
        ([100, 1], 60, [0]),
        ([10, 10, 10], 30, [0, 1, 2]),
        ([10, 10, 10], 29, [0, 1]),
        ([10, 20, 30], 60, [1, 0]),  # 2 x 20; with the 30 it would be 90
        ([30, 20, 10], 60, [0, 1]),
        ([30, 10, 29], 60, [0, 2]),  # the closest in length
        ([1, 1, 1, 30], 60, [0, 1, 2]),  # 4 x 30 of which 87 would be padding
        ([1, 30], 60, [1, 0]),
        ([5, 1, 5, 1, 5], 15, [0, 2, 4]),
        ([0, 0, 0], 1, [0, 1, 2]),
    ],
)
def test_the_budget_of_a_padded_batch_includes_padding(waiting, budget, chosen):
    assert plan(waiting, Capacity(budget, 512, packed=False)) == chosen


@pytest.mark.parametrize(
    ("waiting", "budget", "chosen"),
    [
        ([], 60, []),
        ([100], 60, [0]),  # longer than the budget: alone
        ([100, 1], 60, [0]),
        ([10, 20, 30], 60, [2, 1, 0]),  # the sum: no padding is computed
        ([10, 20, 31], 60, [1, 0]),
        ([1, 1, 1, 30], 60, [3, 0, 1, 2]),
        ([30, 20, 20, 10], 60, [0, 1, 3]),  # in queue order; one that does not fit is skipped
        ([5, 29, 6, 26], 60, [1, 2, 0]),  # not by length
        ([0, 0, 0], 1, [0, 1, 2]),
    ],
)
def test_the_budget_of_a_packed_batch_is_the_sum_of_its_chunks(waiting, budget, chosen):
    assert plan(waiting, Capacity(budget, 512, packed=True)) == chosen


@pytest.mark.parametrize("packed", [False, True])
def test_a_batch_has_at_most_the_engines_maximum_of_chunks(packed):
    assert plan([2, 1, 1, 1], Capacity(100, 3, packed=packed)) == [0, 1, 2]
    assert plan([2, 1, 1, 1], Capacity(100, 1, packed=packed)) == [0]


@pytest.mark.parametrize("packed", [False, True])
def test_a_chunk_longer_than_alone_seconds_is_a_batch_of_its_own(packed):
    capacity = Capacity(1000, 512, packed=packed, alone_seconds=40)
    assert plan([41, 41, 10, 40], capacity) == [0]
    assert plan([40, 41, 10, 300], capacity) == [0, 2]


def computed_seconds(seconds, *, packed):
    return sum(seconds) if packed else max(seconds) * len(seconds)


@given(
    waiting=st.lists(st.floats(0.1, 30), min_size=1, max_size=60),
    capacity=st.builds(
        Capacity,
        seconds=st.floats(1, 300),
        chunks=st.integers(1, 40),
        packed=st.booleans(),
        alone_seconds=st.floats(10, 40),
    ),
)
def test_a_plan_fills_the_capacity_and_contains_the_oldest_chunk(waiting, capacity):
    chosen = plan(waiting, capacity)

    assert 0 in chosen
    assert len(set(chosen)) == len(chosen) <= capacity.chunks
    assert chosen == sorted(chosen, key=lambda index: -waiting[index])
    lengths = [waiting[index] for index in chosen]
    assert len(chosen) == 1 or max(lengths) <= capacity.alone_seconds
    assert len(chosen) == 1 or computed_seconds(lengths, packed=capacity.packed) <= capacity.seconds
    if max(lengths) > capacity.alone_seconds or len(chosen) == capacity.chunks:
        return
    for index in set(range(len(waiting))) - set(chosen):
        more = [*lengths, waiting[index]]
        too_long = waiting[index] > capacity.alone_seconds
        assert too_long or computed_seconds(more, packed=capacity.packed) > capacity.seconds


# results


def test_every_chunk_gets_its_own_result():
    with open_batcher(Engine()) as batcher:
        answers = batcher.submit(chunks_of(*range(50)))
        assert [text_of(answer) for answer in answers] == [str(number) for number in range(50)]


def test_chunks_of_different_lengths_get_their_results_in_submission_order():
    lengths = np.random.default_rng(5).uniform(0.1, 4, 60).tolist()
    engine = Engine()
    with open_batcher(engine, batch_seconds=12) as batcher:
        answers = batcher.submit([chunk(n, seconds) for n, seconds in enumerate(lengths)])
        assert [text_of(answer) for answer in answers] == [str(number) for number in range(60)]
    assert len(engine.batches) > 1
    for batch in engine.batches:
        assert max(len(samples) for samples in batch) * len(batch) <= 12 * SAMPLE_RATE


def test_many_threads_share_one_engine_thread_and_get_their_own_results():
    engine = Engine()
    results: dict[int, list[str]] = {}

    def caller(number: int) -> None:
        answers = [
            *batcher.submit(chunks_of(*range(number * 100, number * 100 + 5))),
            *batcher.submit(chunks_of(number * 100 + 5)),
        ]
        results[number] = [text_of(answer) for answer in answers]

    with open_batcher(engine, batch_seconds=7) as batcher:
        threads = [threading.Thread(target=caller, args=(number,)) for number in range(32)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(TIMEOUT_SECONDS)
    assert results == {
        number: [str(number * 100 + index) for index in range(6)] for number in range(32)
    }
    assert len(engine.threads) == 1
    assert threading.get_ident() not in engine.threads


def test_different_callers_share_a_batch():
    engine = BlockedEngine()
    with open_batcher(engine) as batcher:
        block(batcher, engine)
        answers = [batcher.submit(chunks_of(number))[0] for number in (1, 2, 3)]
        engine.released.set()
        assert [text_of(answer) for answer in answers] == ["1", "2", "3"]
    assert [len(batch) for batch in engine.batches] == [1, 3]


def test_the_oldest_chunk_is_in_the_next_batch_at_any_length():
    engine = BlockedEngine()
    with open_batcher(engine, batch_seconds=30) as batcher:
        block(batcher, engine)
        (odd,) = batcher.submit([chunk(1, 29)])
        others = batcher.submit([chunk(2, 0.5)] * 40)
        engine.released.set()
        text_of(odd)
        wait(others, TIMEOUT_SECONDS)
    assert "1" in [name(samples) for samples in engine.batches[1]]


def test_a_request_without_chunks_has_no_results():
    with open_batcher(Engine()) as batcher:
        assert batcher.submit([]) == []


# exactly once


def outcome(number: int, answer: Answer) -> str:
    if answer.cancelled():
        return "cancelled"
    if answer.exception() is not None:
        return type(answer.exception()).__name__
    return "right" if text_of(answer) == str(number) else "wrong"


def test_every_chunk_is_resolved_exactly_once_despite_cancellations_and_failures():
    turns = itertools.count()

    def change(results: list[Hypothesis]) -> list[Hypothesis]:
        turn = next(turns)
        if turn % 2 == 0:
            raise OutOfMemory(1.0)
        return results[1:] if turn % 5 == 0 else results

    engine = ManipulatedEngine(change)
    engine.released.set()
    answers: dict[int, Answer] = {}
    resolved: list[int] = []

    def caller(first: int) -> None:
        for number in range(first, first + 50):
            (answers[number],) = batcher.submit([chunk(number, 0.1)])
            answers[number].add_done_callback(lambda _, number=number: resolved.append(number))
            if number % 3 == 0:
                answers[number].cancel()

    with open_batcher(engine, batch_seconds=0.8) as batcher:
        threads = [threading.Thread(target=caller, args=(first,)) for first in range(1, 401, 50)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(TIMEOUT_SECONDS)
        assert wait(answers.values(), TIMEOUT_SECONDS).not_done == set()
        assert not batcher.lost

    assert sorted(resolved) == list(range(1, 401))
    outcomes = Counter(outcome(number, answer) for number, answer in answers.items())
    assert set(outcomes) - {"cancelled"} == {"right", "OutOfMemory", "ContractBroken"}


def test_close_finishes_running_chunks_and_fails_queued_ones():
    engine = BlockedEngine()
    with open_batcher(engine) as batcher:
        running = block(batcher, engine)
        waiting = batcher.submit(chunks_of(1, 2, 3))
        waiting[1].cancel()
        closing = threading.Thread(target=batcher.close)
        closing.start()
        while not batcher._closed:
            closing.join(0.001)
        engine.released.set()
        closing.join(TIMEOUT_SECONDS)
        assert not closing.is_alive()
        assert text_of(running) == "0"
        assert isinstance(failure(waiting[0]), EngineLost)
        assert isinstance(failure(waiting[2]), EngineLost)
        assert waiting[1].cancelled()
        assert wait(waiting, TIMEOUT_SECONDS).not_done == set()
        assert engine.transcribed == ["0"]


def test_a_closed_batcher_rejects_submissions_and_close_is_idempotent():
    with open_batcher(Engine()) as batcher:
        batcher.close()
        with pytest.raises(EngineLost, match="closing"):
            batcher.submit(chunks_of(1))
    assert not batcher.lost


def test_close_joins_the_threads():
    before = set(threading.enumerate())
    with open_batcher(Engine()) as batcher:
        batcher.submit(chunks_of(1))
        (own,) = set(threading.enumerate()) - before
    assert not own.is_alive()


# all or none


def test_a_request_beyond_the_queue_limit_is_rejected_as_a_whole():
    engine = BlockedEngine()
    with open_batcher(engine, queue_seconds=5) as batcher:
        block(batcher, engine)
        taken = batcher.submit(chunks_of(1, 2, 3))
        with pytest.raises(Overloaded) as refused:
            batcher.submit(chunks_of(4, 5, 6))
        last = batcher.submit(chunks_of(7, 8))
        with pytest.raises(Overloaded):
            batcher.submit(chunks_of(9))
        engine.released.set()
        assert [text_of(answer) for answer in (*taken, *last)] == ["1", "2", "3", "7", "8"]
        wait(batcher.submit(chunks_of(10)), TIMEOUT_SECONDS)
    assert refused.value.facts == {"limit": 5}
    assert sorted(engine.transcribed, key=int) == ["0", "1", "2", "3", "7", "8", "10"]


def test_an_empty_queue_accepts_a_request_beyond_its_limit():
    engine = BlockedEngine()
    with open_batcher(engine, queue_seconds=2) as batcher:
        block(batcher, engine)
        answers = batcher.submit(chunks_of(1, 2, 3, 4))
        engine.released.set()
        assert [text_of(answer) for answer in answers] == ["1", "2", "3", "4"]


def test_cancelled_chunks_do_not_count_towards_the_queue_limit():
    engine = BlockedEngine()
    with open_batcher(engine, queue_seconds=3) as batcher:
        block(batcher, engine)
        for answer in batcher.submit(chunks_of(1, 2, 3)):
            answer.cancel()
        answers = batcher.submit(chunks_of(4, 5, 6))
        engine.released.set()
        assert [text_of(answer) for answer in answers] == ["4", "5", "6"]


# wrong number of results


@pytest.mark.parametrize(
    ("change", "answered"),
    [
        (lambda results: results[1:], 2),
        (lambda results: [*results, results[0]], 4),
        (lambda _: [], 0),
    ],
    ids=["one too few", "one too many", "none"],
)
def test_a_wrong_number_of_results_fails_that_batch_only_with_contract_broken(change, answered):
    engine = ManipulatedEngine(change)
    with open_batcher(engine) as batcher:
        first = block(batcher, engine)
        wronged = batcher.submit(chunks_of(1, 2, 3))
        engine.released.set()
        errors = [failure(answer) for answer in wronged]
        engine.change = lambda results: results
        assert [text_of(answer) for answer in batcher.submit(chunks_of(4, 5))] == ["4", "5"]
        assert text_of(first) == "0"
        assert not batcher.lost
    assert all(isinstance(error, ContractBroken) for error in errors)
    assert [error.facts for error in errors] == [{"chunks": 3, "results": answered}] * 3
    assert len({id(error) for error in errors}) == 3


# out of memory


def test_out_of_memory_halves_the_batch_until_it_fits():
    engine = SmallEngine(memory_seconds=2)
    with open_batcher(engine) as batcher:
        block(batcher, engine)
        answers = batcher.submit(chunks_of(*range(1, 9)))
        engine.released.set()
        assert [text_of(answer) for answer in answers] == [str(number) for number in range(1, 9)]
        assert not batcher.lost
    assert [len(batch) for batch in engine.batches] == [1, 8, 4, 2, 2, 4, 2, 2]


def test_only_a_chunk_that_does_not_fit_alone_fails_with_out_of_memory():
    engine = SmallEngine(memory_seconds=3)
    with open_batcher(engine) as batcher:
        block(batcher, engine)
        answers = batcher.submit([chunk(1), chunk(2, 4), chunk(3), chunk(4), chunk(5)])
        engine.released.set()
        errors = [failure(answer) for answer in answers]
        assert [text_of(answers[index]) for index in (0, 2, 3, 4)] == ["1", "3", "4", "5"]
        assert [text_of(answer) for answer in batcher.submit(chunks_of(6))] == ["6"]
        assert not batcher.lost
    assert isinstance(errors[1], OutOfMemory)
    assert errors[1].facts == {"seconds": 4}


# an engine that is lost


@pytest.mark.parametrize(
    "kind", [RuntimeError, OSError, ValueError, EngineLost, SystemExit, KeyboardInterrupt]
)
def test_an_unknown_failure_loses_the_engine_for_queued_and_later_chunks(kind):
    def change(_: object) -> list[Hypothesis]:
        raise kind("device-side assert")

    engine = ManipulatedEngine(change)
    with open_batcher(engine, batch_seconds=2) as batcher:
        first = block(batcher, engine)
        answers = batcher.submit(chunks_of(1, 2, 3, 4, 5))
        answers[4].cancel()
        assert not batcher.lost
        engine.released.set()
        errors = [failure(answer) for answer in answers[:4]]
        assert batcher.lost
        with pytest.raises(EngineLost, match="device-side assert"):
            batcher.submit(chunks_of(6))
        assert text_of(first) == "0"
        assert answers[4].cancelled()
        assert wait(answers, TIMEOUT_SECONDS).not_done == set()
    assert all(isinstance(error, EngineLost) for error in errors)
    assert all("device-side assert" in str(error) for error in errors)
    assert len({id(error) for error in errors}) == 4
    assert len(engine.batches) == 2


def test_a_loss_in_the_second_half_of_a_split_batch_resolves_all_chunks():
    failures = iter([OutOfMemory(1.0), None, RuntimeError("illegal memory access")])

    def change(results: list[Hypothesis]) -> list[Hypothesis]:
        failing = next(failures)
        if failing is not None:
            raise failing
        return results

    engine = ManipulatedEngine(change)
    with open_batcher(engine, batch_seconds=4) as batcher:
        block(batcher, engine)
        split = batcher.submit(chunks_of(1, 2, 3, 4), caller=engine)
        (waiting,) = batcher.submit(chunks_of(5), caller=engine)
        engine.released.set()
        assert [text_of(answer) for answer in split[:2]] == ["1", "2"]
        assert isinstance(failure(split[2]), EngineLost)
        assert isinstance(failure(split[3]), EngineLost)
        assert isinstance(failure(waiting), EngineLost)
        assert batcher.lost
    assert "5" not in engine.transcribed


def test_a_loss_fails_the_queued_parts_of_a_split_batch():
    failures = iter([OutOfMemory(1.0), RuntimeError("illegal memory access")])

    def change(_: object) -> list[Hypothesis]:
        raise next(failures)

    engine = ManipulatedEngine(change)
    with open_batcher(engine, batch_seconds=4) as batcher:
        block(batcher, engine)
        split = batcher.submit(chunks_of(1, 2, 3, 4))
        engine.released.set()
        errors = [failure(answer) for answer in split]
    assert all(isinstance(error, EngineLost) for error in errors)


# fair queueing


def test_a_short_request_waits_for_at_most_one_chunk_of_each_other_caller():
    engine = BlockedEngine()
    with open_batcher(engine, batch_seconds=1) as batcher:
        block(batcher, engine)
        hours = batcher.submit(chunks_of(*range(1, 101)), caller=Caller())
        more = batcher.submit(chunks_of(*range(101, 201)), caller=Caller())
        (short,) = batcher.submit(chunks_of(777))
        engine.released.set()
        assert text_of(short) == "777"
        assert [text_of(answer) for answer in (*hours, *more)] == [str(n) for n in range(1, 201)]
    order = [name(batch[0]) for batch in engine.batches]
    assert order.index("777") <= 3, "at most one chunk of each caller before it"
    assert order.index("101") <= 3, "the second caller alternates with the first"


def test_chunks_of_one_caller_keep_their_order_across_submissions():
    engine = BlockedEngine()
    with open_batcher(engine, batch_seconds=1) as batcher:
        block(batcher, engine)
        caller = Caller()
        answers = [batcher.submit(chunks_of(number), caller=caller)[0] for number in range(1, 30)]
        engine.released.set()
        assert [text_of(answer) for answer in answers] == [str(number) for number in range(1, 30)]
    assert [name(batch[0]) for batch in engine.batches[1:]] == [str(n) for n in range(1, 30)]


# cancelled work


def test_cancelled_chunks_are_not_submitted_to_the_engine():
    engine = BlockedEngine()
    with open_batcher(engine) as batcher:
        block(batcher, engine)
        answers = batcher.submit(chunks_of(1, 2, 3, 4))
        assert answers[0].cancel()
        assert answers[2].cancel()
        engine.released.set()
        assert text_of(answers[1]) == "2"
        assert text_of(answers[3]) == "4"
        with pytest.raises(CancelledError):
            answers[0].result(TIMEOUT_SECONDS)
        assert wait(answers, TIMEOUT_SECONDS).not_done == set()
    assert engine.transcribed == ["0", "2", "4"]


def test_a_batch_of_cancelled_chunks_is_not_submitted():
    engine = BlockedEngine()
    with open_batcher(engine, batch_seconds=2) as batcher:
        block(batcher, engine)
        for answer in batcher.submit(chunks_of(1, 2, 3, 4)):
            answer.cancel()
        (last,) = batcher.submit(chunks_of(5))
        engine.released.set()
        assert text_of(last) == "5"
    assert engine.transcribed == ["0", "5"]
    assert all(engine.batches)


def test_a_running_chunk_cannot_be_cancelled():
    engine = BlockedEngine()
    with open_batcher(engine) as batcher:
        running = block(batcher, engine)
        assert not running.cancel()
        engine.released.set()
        assert text_of(running) == "0"


# timeout


@contextmanager
def open_watched_batcher(engine: Engine, timeout_seconds: float) -> Iterator[Batcher]:
    with Batcher(
        engine,
        capacity=Capacity(2.0, 512, packed=False),
        queue_seconds=1000.0,
        timeout_seconds=timeout_seconds,
    ) as batcher:
        yield batcher


def test_a_timeout_loses_the_engine_and_fails_all_chunks():
    engine = BlockedEngine()
    with open_watched_batcher(engine, 0.3) as batcher:
        answers = batcher.submit(chunks_of(1, 2, 3, 4, 5))
        assert engine.entered.wait(TIMEOUT_SECONDS)
        errors = [failure(answer) for answer in answers]
        assert batcher.lost
        with pytest.raises(EngineLost, match=r"did not complete a batch within 0\.3 s"):
            batcher.submit(chunks_of(6))
    # The batcher is closed while its thread is blocked in the engine.
    assert not engine.released.is_set()
    engine.released.set()
    assert all(isinstance(error, EngineLost) for error in errors)
    assert all("did not complete" in str(error) for error in errors)


def test_a_batch_that_completes_after_the_timeout_is_ignored():
    engine = BlockedEngine()
    with open_watched_batcher(engine, 0.3) as batcher:
        answers = batcher.submit(chunks_of(1, 2, 3))
        errors = [failure(answer) for answer in answers]
        thread = batcher._threads[0]
        engine.released.set()
        thread.join(TIMEOUT_SECONDS)
        assert not thread.is_alive()
        assert [failure(answer) for answer in answers] == errors
        assert batcher.lost
    assert all(isinstance(error, EngineLost) for error in errors)
    assert len(engine.batches) == 1, "queued chunks are not submitted after they failed"


def test_out_of_memory_after_the_timeout_is_ignored():
    engine = SmallEngine(0.5)
    with open_watched_batcher(engine, 0.3) as batcher:
        answers = batcher.submit(chunks_of(1, 2))
        errors = [failure(answer) for answer in answers]
        engine.released.set()
        batcher._threads[0].join(TIMEOUT_SECONDS)
        assert [failure(answer) for answer in answers] == errors
    assert len(engine.batches) == 1


class SteppedEngine(Engine):
    """Blocks in each batch until the test releases it."""

    def __init__(self) -> None:
        super().__init__()
        self.entered = threading.Semaphore(0)
        self.released = threading.Semaphore(0)

    def transcribe(self, batch: Sequence[Samples], _scripts: object = ()) -> list[Hypothesis]:
        self.entered.release()
        assert self.released.acquire(timeout=TIMEOUT_SECONDS)
        return super().transcribe(batch)


def test_a_batch_that_completes_during_the_timeout_leaves_no_chunk_unresolved():
    engine = SteppedEngine()

    class CompleteMeanwhile(logging.Handler):
        """Completes the batch while the engine is being abandoned."""

        def emit(self, _record: logging.LogRecord) -> None:
            engine.released.release(40)
            engine.entered.acquire(timeout=0.5)

    handler = CompleteMeanwhile()
    log = logging.getLogger("parakeet_worker.batcher")
    log.addHandler(handler)
    try:
        with open_watched_batcher(engine, 0.3) as batcher:
            answers = batcher.submit(chunks_of(*range(20)))
            assert engine.entered.acquire(timeout=TIMEOUT_SECONDS)
            assert wait(answers, TIMEOUT_SECONDS / 4).not_done == set()
    finally:
        log.removeHandler(handler)
    assert all(isinstance(failure(answer), EngineLost) for answer in answers)


def test_a_watchdog_that_fires_for_a_completed_batch_is_a_no_op():
    engine = SteppedEngine()
    with open_watched_batcher(engine, TIMEOUT_SECONDS) as batcher:
        answers = batcher.submit(chunks_of(1, 2, 3, 4))
        assert engine.entered.acquire(timeout=TIMEOUT_SECONDS)
        done = batcher._watched_batch
        engine.released.release()
        assert engine.entered.acquire(timeout=TIMEOUT_SECONDS), "the second batch was submitted"
        batcher._abandon_engine(done)
        assert not batcher.lost
        engine.released.release()
        assert [text_of(answer) for answer in answers] == ["1", "2", "3", "4"]


def test_close_returns_while_the_engine_hangs():
    engine = BlockedEngine()
    with open_watched_batcher(engine, 0.5) as batcher:
        (running,) = batcher.submit(chunks_of(1))
        assert engine.entered.wait(TIMEOUT_SECONDS)
        # The worker is shut down without waiting for the result.
        closing = threading.Thread(target=batcher.close)
        closing.start()
        closing.join(TIMEOUT_SECONDS)
        closed = not closing.is_alive()
        engine.released.set()
        closing.join()
    assert closed
    assert isinstance(failure(running), EngineLost)


def test_a_slow_engine_within_the_timeout_is_not_lost():
    engine = BlockedEngine()
    with open_watched_batcher(engine, TIMEOUT_SECONDS) as batcher:
        answers = batcher.submit(chunks_of(1, 2, 3))
        assert engine.entered.wait(TIMEOUT_SECONDS)
        engine.released.set()
        assert [text_of(answer) for answer in answers] == ["1", "2", "3"]
        assert not batcher.lost


# two batches in flight


def test_the_next_batch_is_submitted_while_one_is_in_flight_and_no_third():
    engine = PipelinedEngine()
    with open_batcher(engine, batch_seconds=1) as batcher:
        answers = batcher.submit(chunks_of(1, 2, 3, 4))
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


def test_results_are_awaited_in_another_thread_and_tokens_are_built_by_the_reader():
    engine = PipelinedEngine()
    built: list[int] = []
    resolved: list[int] = []

    def tokens() -> tuple[Token, ...]:
        built.append(threading.get_ident())
        return (Token("▁lazy", 0, 1, -0.1),)

    with open_batcher(engine) as batcher:
        (answer,) = batcher.submit(chunks_of(1))
        answer.add_done_callback(lambda _: resolved.append(threading.get_ident()))
        engine.next().land([Hypothesis(LazyTokens(1, tokens), 0.08)])
        hypothesis_ = answer.result(TIMEOUT_SECONDS)
        assert built == []
        assert hypothesis_.tokens[0].piece == "▁lazy"
    assert built == [threading.get_ident()]
    assert not engine.threads & {*resolved, *built}


def test_batches_are_resolved_in_submission_order():
    engine = PipelinedEngine()
    with open_batcher(engine, batch_seconds=1) as batcher:
        answers = batcher.submit(chunks_of(1, 2))
        first, second = engine.next(), engine.next()
        second.land()
        first.land()
        assert [text_of(answer) for answer in answers] == ["1", "2"]


def test_out_of_memory_in_one_batch_does_not_fail_the_concurrent_one():
    engine = PipelinedEngine()
    with open_batcher(engine, batch_seconds=2) as batcher:
        answers = batcher.submit(chunks_of(1, 2, 3, 4, 5), caller=engine)
        first, second = engine.next(), engine.next()
        assert (first.names, second.names) == (["1", "2"], ["3", "4"])
        first.fail(OutOfMemory(1))
        assert engine.has_no_more(), "the parts are submitted one at a time"
        second.land()
        assert [text_of(answer) for answer in answers[2:4]] == ["3", "4"]
        for expected in ("1", "2"):
            part = engine.next()
            assert part.names == [expected]
            assert engine.has_no_more()
            part.land()
        engine.next().land()
        assert [text_of(answer) for answer in answers] == ["1", "2", "3", "4", "5"]
    assert engine.in_flight_at_release == [0, 0]


@pytest.mark.parametrize("fits", [True, False])
def test_a_chunk_that_did_not_fit_with_another_batch_is_retried_alone(fits):
    engine = PipelinedEngine()
    with open_batcher(engine, batch_seconds=1) as batcher:
        answers = batcher.submit([chunk(1, 1), chunk(2, 3), chunk(3)], caller=engine)
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


class FullEngine(PipelinedEngine):
    """Has no memory to submit a second batch while one is in flight."""

    def submit(self, batch: Sequence[Samples], _scripts: object = ()) -> Flight:
        if any(not flight._back.done() for flight in self.flying):
            raise OutOfMemory(1)
        self.flying.append(super().submit(batch))
        return self.flying[-1]


def test_a_batch_that_cannot_be_submitted_is_retried_with_nothing_in_flight():
    engine = FullEngine()
    with open_batcher(engine, batch_seconds=2) as batcher:
        answers = batcher.submit(chunks_of(1, 2, 3, 4), caller=engine)
        first = engine._flights.get(timeout=TIMEOUT_SECONDS)
        assert engine.has_no_more()
        first.land()
        for _ in range(2):
            engine._flights.get(timeout=TIMEOUT_SECONDS).land()
        assert [text_of(answer) for answer in answers] == ["1", "2", "3", "4"]
    assert [len(batch) for batch in engine.batches] == [2, 1, 1]


def test_a_loss_fails_all_chunks_in_flight_and_in_the_queue():
    engine = PipelinedEngine()
    with open_batcher(engine, batch_seconds=1) as batcher:
        answers = batcher.submit(chunks_of(1, 2, 3, 4))
        first, second = engine.next(), engine.next()
        first.fail(RuntimeError("CUDA error: an illegal memory access was encountered"))
        errors = [failure(answer) for answer in answers]
        assert batcher.lost
        second.land()
        with pytest.raises(EngineLost, match="illegal memory access"):
            batcher.submit(chunks_of(5))
    assert all(isinstance(error, EngineLost) for error in errors)
    assert len(engine.batches) == 2


def test_a_failure_in_submit_also_fails_the_batch_in_flight():
    class Broken(PipelinedEngine):
        def submit(self, batch: Sequence[Samples], _scripts: object = ()) -> Flight:
            if self.batches:
                raise RuntimeError("CUDA error: misaligned address")
            return super().submit(batch)

    engine = Broken()
    with open_batcher(engine, batch_seconds=1) as batcher:
        answers = batcher.submit(chunks_of(1, 2, 3))
        errors = [failure(answer) for answer in answers]
        engine.next().land()
    assert all(isinstance(error, EngineLost) for error in errors)
    assert all("misaligned" in str(error) for error in errors)


def test_closing_finishes_both_batches_in_flight():
    engine = PipelinedEngine()
    with open_batcher(engine, batch_seconds=1) as batcher:
        answers = batcher.submit(chunks_of(1, 2, 3))
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
        closing.join(TIMEOUT_SECONDS)
        assert not closing.is_alive()
        assert text_of(answers[1]) == "2"
        assert isinstance(failure(answers[2]), EngineLost)
        assert not batcher.lost
        assert not any(thread.is_alive() for thread in batcher._threads)


def test_closing_finishes_the_parts_of_a_batch_that_did_not_fit():
    engine = PipelinedEngine()
    with open_batcher(engine, batch_seconds=2) as batcher:
        answers = batcher.submit(chunks_of(1, 2, 3), caller=engine)
        first, second = engine.next(), engine.next()
        closing = threading.Thread(target=batcher.close)
        closing.start()
        while not batcher._closed:
            closing.join(0.001)
        second.land()
        first.fail(MemoryError())
        for _ in range(2):
            engine.next().land()
        closing.join(TIMEOUT_SECONDS)
        assert [text_of(answer) for answer in answers] == ["1", "2", "3"]


def test_chunks_cancelled_with_two_batches_in_flight_are_not_submitted():
    engine = PipelinedEngine()
    with open_batcher(engine, batch_seconds=1) as batcher:
        answers = batcher.submit(chunks_of(1, 2, 3, 4))
        first, second = engine.next(), engine.next()
        assert answers[2].cancel()
        assert not answers[1].cancel()
        first.land()
        second.land()
        engine.next().land()
        assert text_of(answers[3]) == "4"
    assert engine.transcribed == ["1", "2", "4"]


def test_the_timeout_of_a_batch_starts_when_it_is_the_oldest():
    engine = PipelinedEngine()
    with open_watched_batcher(engine, TIMEOUT_SECONDS) as batcher:
        answers = batcher.submit([chunk(1, 2), chunk(2, 2)])
        first, second = engine.next(), engine.next()
        watched, watch = batcher._watched_batch, batcher._watchdog
        first.land()
        assert text_of(answers[0]) == "1"
        assert batcher._watched_batch is not watched
        assert batcher._watchdog is not watch
        assert watch.finished.is_set(), "the timer of the first batch is cancelled"
        batcher._abandon_engine(watched)
        assert not batcher.lost
        second.land()
        assert text_of(answers[1]) == "2"


def test_a_timeout_fails_all_batches_in_flight():
    engine = PipelinedEngine()
    with open_watched_batcher(engine, 0.3) as batcher:
        answers = batcher.submit(chunks_of(*range(1, 8)))
        first, second = engine.next(), engine.next()
        first.land()
        assert text_of(answers[0]) == "1"
        errors = [failure(answer) for answer in answers[2:]]
        assert batcher.lost
    assert all("did not complete" in str(error) for error in errors)
    second.land()
    assert all(not thread.join(TIMEOUT_SECONDS) for thread in batcher._threads)
    assert [failure(answer) for answer in answers[2:]] == errors


def complete_at_random(engine: PipelinedEngine, chance: np.random.Generator) -> None:
    """Complete every batch at random, until an empty batch is submitted."""
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
def test_every_chunk_is_resolved_exactly_once_with_many_batches_in_flight(depth):
    engine = PipelinedEngine()
    engine.depth = depth
    device = threading.Thread(
        target=complete_at_random, args=[engine, np.random.default_rng(depth)]
    )
    device.start()
    resolved: list[int] = []
    answers: dict[int, Answer] = {}

    def caller(first: int) -> None:
        for number in range(first, first + 50):
            (answers[number],) = batcher.submit([chunk(number, 0.1)])
            answers[number].add_done_callback(lambda _, number=number: resolved.append(number))
            if number % 3 == 0:
                answers[number].cancel()

    with open_batcher(engine, batch_seconds=0.8) as batcher:
        threads = [threading.Thread(target=caller, args=(first,)) for first in range(1, 401, 50)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(TIMEOUT_SECONDS)
        assert wait(answers.values(), TIMEOUT_SECONDS).not_done == set()
        assert not batcher.lost
    engine._flights.put(Flight([]))
    device.join(TIMEOUT_SECONDS)
    assert sorted(resolved) == list(range(1, 401))
    outcomes = Counter(outcome(number, answer) for number, answer in answers.items())
    assert outcomes.keys() <= {"right", "cancelled", "OutOfMemory", "ContractBroken"}
    assert outcomes["right"] > 100


# a device that fails outside the engine


@pytest.mark.parametrize("engine_class", [BlockedEngine, PipelinedEngine])
def test_mark_lost_fails_all_chunks_and_the_engine_is_not_called_again(engine_class):
    engine = engine_class()
    with open_batcher(engine, batch_seconds=1) as batcher:
        answers = batcher.submit(chunks_of(1, 2, 3, 4))
        if isinstance(engine, PipelinedEngine):
            flights = [engine.next(), engine.next()]
        else:
            assert engine.entered.wait(TIMEOUT_SECONDS)
        batcher.mark_lost("CUDA error in voice activity detection")
        batcher.mark_lost("and again")
        errors = [failure(answer) for answer in answers]
        assert batcher.lost
        with pytest.raises(EngineLost, match="voice activity detection"):
            batcher.submit(chunks_of(5))
        batcher.close()  # does not wait for the blocked engine
        calls = len(engine.batches)
        if isinstance(engine, PipelinedEngine):
            for flight in flights:
                flight.land()
        else:
            engine.released.set()
        for thread in batcher._threads:
            thread.join(TIMEOUT_SECONDS)
            assert not thread.is_alive()
    assert all("voice activity" in str(error) for error in errors)
    assert [failure(answer) for answer in answers] == errors
    assert len(engine.batches) == max(calls, 1)


# errors of one chunk


@pytest.mark.parametrize("error", [NotFinite(1.0), OutOfMemory(1.0)])
def test_an_error_outcome_fails_its_chunk_only(error):
    def change(results: list[Outcome]) -> list[Outcome]:
        return [results[0], error, results[2]]

    engine = ManipulatedEngine(change)
    with open_batcher(engine) as batcher:
        block(batcher, engine)
        answers = batcher.submit(chunks_of(1, 2, 3))
        engine.released.set()
        assert failure(answers[1]) is error
        assert [text_of(answers[0]), text_of(answers[2])] == ["1", "3"]
        assert not batcher.lost
    assert len(engine.batches) == 2, "it is not retried"


# references


class LeakCheckingEngine(Engine):
    """Has memory for one chunk; fails with live tensors, and counts them in the next attempt."""

    def __init__(self, fails_in: str) -> None:
        super().__init__()
        self.fails_in = fails_in
        self.depth = 2 if fails_in == "result" else 1
        self.held: list[weakref.ref[torch.Tensor]] = []
        self.alive: list[int] = []
        """For each attempt, the number of live tensors of earlier ones."""

    def submit(self, batch: Sequence[Samples], _scripts: object = ()) -> Pending:
        self.alive.append(sum(reference() is not None for reference in self.held))
        states = self.allocated()
        if self.fails_in == "submit":
            return Finished(self.computed(states, batch))
        return LatePending(self, states, batch)

    def allocated(self) -> torch.Tensor:
        tensor = torch.zeros(1000)
        self.held.append(weakref.ref(tensor))
        return tensor

    def computed(self, states: torch.Tensor, batch: Sequence[Samples]) -> list[Outcome]:
        # As in an engine: with the library's exception as the cause, and its frames.
        with translate_out_of_memory(1.0):
            self.compute(states, len(batch))
        return self.transcribe(batch)

    def compute(self, states: torch.Tensor, count: int) -> None:
        scratch = self.allocated()
        # A local of a frame in the traceback: a cycle that only the garbage collector would break.
        failure = torch.OutOfMemoryError(f"out of memory with {len(states)} and {len(scratch)}")
        if count > 1:
            raise failure


@dataclass(frozen=True, slots=True, eq=False)
class LatePending:
    """Keeps states until `result` is called."""

    engine: LeakCheckingEngine
    states: torch.Tensor
    batch: Sequence[Samples]

    def result(self) -> list[Outcome]:
        return self.engine.computed(self.states, self.batch)


@pytest.mark.parametrize("fails_in", ["submit", "result"])
def test_the_tensors_of_a_failed_attempt_are_released_before_the_retry(fails_in):
    engine = LeakCheckingEngine(fails_in)
    with open_batcher(engine) as batcher:
        answers = batcher.submit(chunks_of(*range(8)))
        assert [text_of(answer) for answer in answers] == [str(number) for number in range(8)]
    assert [len(batch) for batch in engine.batches] == [1] * 8
    assert engine.alive == [0] * 15


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("timeout_seconds", [None, TIMEOUT_SECONDS])
def test_an_idle_batcher_has_no_references_to_its_last_batches(depth, timeout_seconds):
    class FastEngine(SynchronousEngine):
        def transcribe(self, batch: Sequence[Samples], _scripts: object = ()) -> list[Outcome]:
            return [hypothesis(samples) for samples in batch]

    engine = FastEngine()
    engine.depth = depth
    kept: list[weakref.ref[object]] = []
    with Batcher(
        engine,
        capacity=Capacity(1.0, 512, packed=False),
        queue_seconds=100,
        timeout_seconds=timeout_seconds,
    ) as batcher:
        chunks = chunks_of(1, 2, 3)
        answers = batcher.submit(chunks)
        for answer in answers:
            kept.append(weakref.ref(answer))
            hypothesis_ = answer.result(TIMEOUT_SECONDS)
            assert hypothesis_ is not None
        kept += [weakref.ref(samples) for samples in chunks]
        del chunks, answers, answer, hypothesis_
        deadline = time.monotonic() + TIMEOUT_SECONDS
        while any(one() is not None for one in kept) and time.monotonic() < deadline:
            time.sleep(0.001)  # until its threads are idle
        assert [one() for one in kept] == [None] * 6
