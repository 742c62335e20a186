"""Many recordings through one network: each is heard as alone."""

import gc
import logging
import threading
import time
import weakref
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch

from parakeet_worker.container import Container
from parakeet_worker.engine.base import Samples
from parakeet_worker.engine.device import disable_tf32
from parakeet_worker.vad import silero
from parakeet_worker.vad.backends import (
    _AGREES_WITHIN,
    MOST_TOGETHER,
    Alone,
    Listener,
    SileroDetector,
    Together,
    _difference,
    open_listener,
)
from parakeet_worker.vad.base import BLOCK_SAMPLES, Probabilities
from parakeet_worker.vad.silero import Silero
from recordings import decode, silence
from speech import named

RATE = 16_000
ONE_BLOCK = BLOCK_SAMPLES / RATE

no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no GPU")


@pytest.fixture(scope="module")
def alone() -> Alone:
    return Alone(silero.load())


@pytest.fixture
def network() -> Silero:
    """One of the test's own, to hang hooks on."""
    return silero.load()


@pytest.fixture
def batches(network: Silero) -> list[int]:
    """How many blocks each call of the network was given."""
    sizes: list[int] = []
    network.register_forward_pre_hook(lambda _, given: sizes.append(len(given[0])))
    return sizes


def stretches(count: int, seconds: float = 9.0) -> list[Samples]:
    """Different recordings, each of a little more than two blocks, none as long as another."""
    minute = decode(named("minute").path)
    starts = np.linspace(0, 20, count)
    lengths = np.linspace(seconds, seconds + 3, count)
    return [
        minute[int(start * RATE) : int((start + length) * RATE)]
        for start, length in zip(starts, lengths, strict=True)
    ]


def heard(listener: Listener, samples: Samples) -> Probabilities:
    detector = SileroDetector(listener)
    return np.concatenate((detector.feed(samples), detector.finish()))


@contextmanager
def held(together: Together, waiting: int) -> Iterator[None]:
    """Nothing is heard until so many blocks wait."""
    with together._listening:
        yield
        deadline = time.monotonic() + 30
        while len(together._waiting) < waiting:
            assert time.monotonic() < deadline, "they do not come"
            time.sleep(0.001)


def heard_together(
    together: Together, recordings: Sequence[Samples]
) -> "list[Future[Probabilities]]":
    with ThreadPoolExecutor(len(recordings)) as threads, held(together, len(recordings)):
        return [threads.submit(heard, together, samples) for samples in recordings]


def test_recordings_that_wait_together_are_heard_in_one_batch_and_as_alone(network, alone, batches):
    recordings = stretches(8)
    found = heard_together(Together(network, alone), recordings)
    assert batches[0] == 8
    for samples, each in zip(recordings, found, strict=True):
        assert each.result() == pytest.approx(heard(alone, samples), abs=1e-4)


def test_a_last_short_block_and_whole_ones_do_not_disturb_each_other(network, alone, batches):
    recordings = [*stretches(3), *stretches(3, seconds=0.4)]
    found = heard_together(Together(network, alone), recordings)
    assert batches[0] == 6
    for samples, each in zip(recordings, found, strict=True):
        assert each.result() == pytest.approx(heard(alone, samples), abs=1e-4)


def test_of_very_many_only_so_many_are_heard_at_once(network, alone, batches):
    recordings = [silence(0.1)] * (MOST_TOGETHER + 1)
    found = heard_together(Together(network, alone), recordings)
    assert batches == [MOST_TOGETHER, 1]
    assert {len(each.result()) for each in found} == {4}


def test_who_is_by_himself_waits_for_nobody(network, alone, batches):
    samples = stretches(1)[0]
    assert heard(Together(network, alone), samples) == pytest.approx(
        heard(alone, samples), abs=1e-4
    )
    assert batches == [1, 1], "both whole blocks at once, and the rest"


def test_rows_of_all_lengths_carry_their_own_state(network, alone, batches):
    """In one batch, of which each goes on with another of other lengths."""
    lengths = (1, 8, 3, 2)
    recordings = stretches(4, seconds=70.0)
    together = Together(network, alone)
    found: list[list[Probabilities]] = [[] for _ in lengths]
    listeners = [SileroDetector(together) for _ in lengths]
    for turn in (0, 1):
        with ThreadPoolExecutor(4) as threads, held(together, 4):
            told = [
                threads.submit(listener.feed, _blocks(samples, lengths, row, turn))
                for row, (listener, samples) in enumerate(zip(listeners, recordings, strict=True))
            ]
        for row, each in enumerate(told):
            found[row].append(each.result())
    assert batches == [4, 4]
    for row, samples in enumerate(recordings):
        both = np.concatenate(found[row])
        assert both == pytest.approx(heard(alone, samples)[: len(both)], abs=1e-4)


def _blocks(samples: Samples, lengths: Sequence[int], row: int, turn: int) -> Samples:
    """The first blocks of a recording, as many as its length says; then as another's does."""
    first = lengths[row] * BLOCK_SAMPLES
    if turn == 0:
        return samples[:first]
    return samples[first : first + lengths[row - 1] * BLOCK_SAMPLES]


def test_without_memory_for_a_batch_each_is_heard_alone_and_goes_on_together(
    network, alone, batches, caplog
):
    def refuse(*_: Any) -> None:
        if len(batches) == 1:
            raise torch.OutOfMemoryError("none left")

    network.register_forward_pre_hook(refuse)
    recordings = stretches(4)
    with caplog.at_level(logging.WARNING):
        found = heard_together(Together(network, alone), recordings)
    for samples, each in zip(recordings, found, strict=True):
        assert each.result() == pytest.approx(heard(alone, samples), abs=1e-4)
    assert len(batches) > 1
    assert "no memory to detect speech in 4 recordings at once" in caplog.text


def test_a_failure_reaches_all_of_its_batch_and_nobody_after(network, alone):
    failing = True

    def fail(*_: Any) -> None:
        if failing:
            raise RuntimeError("the device is gone")

    network.register_forward_pre_hook(fail)
    together = Together(network, alone)
    for each in heard_together(together, stretches(3)):
        with pytest.raises(RuntimeError, match="the device is gone"):
            each.result(timeout=30)
    failing = False
    assert len(heard(together, stretches(1)[0])) > 250


MISALIGNED = "CUDA error: misaligned address"


@pytest.mark.parametrize("kind", [RuntimeError, torch.AcceleratorError])
def test_a_device_that_fails_is_reported_once_and_the_processor_hears_from_there_on(
    network, alone, batches, caplog, kind
):
    def fail(*_: Any) -> None:
        if len(batches) > 1:
            raise kind(MISALIGNED)

    network.register_forward_pre_hook(fail)
    reported: list[str] = []
    together = Together(network, alone, reported.append)
    recordings = stretches(4)
    with caplog.at_level(logging.WARNING):
        found = heard_together(together, recordings)
    for samples, each in zip(recordings, found, strict=True):
        assert each.result() == pytest.approx(heard(alone, samples), abs=1e-4)
    assert reported == [f"in voice activity detection: {MISALIGNED}"]
    assert "on the processor from here on" in caplog.text
    device_batches = list(batches)
    assert heard(together, recordings[0]) == pytest.approx(heard(alone, recordings[0]), abs=1e-4)
    assert batches == device_batches, "the device is not touched again"
    assert len(reported) == 1


def test_a_state_that_lies_on_a_device_that_has_failed_is_begun_anew(network, alone):
    """A tensor of the meta device stands in for one that can be copied from no more."""
    together = Together(network, alone)
    block = stretches(1)[0][: 64 + 512 * 128]
    lost = tuple(part.to("meta") for part in network.silence())
    network.register_forward_pre_hook(lambda *_: raise_(RuntimeError(MISALIGNED)))
    with pytest.raises(NotImplementedError):
        alone.hear(block, lost)
    together.hear(block, None)  # in which the device fails
    found, after = together.hear(block, lost)
    assert found == pytest.approx(alone.hear(block, None)[0], abs=1e-6)
    assert after[0].device.type == "cpu"
    again, _ = together.hear(block, after)
    assert again == pytest.approx(alone.hear(block, after)[0], abs=1e-6)


def test_a_failure_that_is_not_of_the_device_is_reported_to_nothing(network, alone):
    reported: list[str] = []
    together = Together(network, alone, reported.append)
    hook = network.register_forward_pre_hook(lambda *_: raise_(ValueError("a bug")))
    with pytest.raises(ValueError, match="a bug"):
        heard(together, silence(1))
    hook.remove()
    assert len(heard(together, silence(1))) > 30
    assert reported == []


def raise_(failure: Exception) -> None:
    raise failure


def test_what_a_failed_batch_held_is_gone_when_the_next_begins(network, alone):
    held: list[weakref.ref[torch.Tensor]] = []

    def refuse(*_: Any) -> None:
        scratch = torch.zeros(1000)
        held.append(weakref.ref(scratch))
        # In a variable, so that the traceback and its own frame keep each other.
        failure = RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED")
        raise failure

    hook = network.register_forward_pre_hook(refuse)
    gc.disable()
    try:
        heard(Together(network, alone), silence(1))
        assert held
        assert [one() for one in held] == [None] * len(held)
    finally:
        gc.enable()
        hook.remove()


def test_on_a_processor_each_listens_alone():
    assert isinstance(open_listener("cpu"), Alone)


@no_gpu
def test_a_gpu_that_fails_is_warned_of_and_the_processor_listens(caplog):
    assert isinstance(open_listener("auto"), Alone)
    assert caplog.text == ""
    assert isinstance(open_listener("cuda"), Alone)
    assert "the GPU fails at it" in caplog.text


def test_a_network_that_errs_is_told_from_one_that_does_not(network, alone):
    assert _difference(Together(network, alone), alone) <= _AGREES_WITHIN
    with torch.no_grad():
        network.output.weight.mul_(1.1)
    assert not _difference(Together(network, alone), alone) <= _AGREES_WITHIN


@gpu
def test_a_gpu_hears_the_same_for_all_at_once(alone):
    disable_tf32()
    recordings = stretches(8)
    listener = open_listener("cuda")
    assert isinstance(listener, Together)
    for samples, each in zip(recordings, heard_together(listener, recordings), strict=True):
        assert each.result() == pytest.approx(heard(alone, samples), abs=1e-3)


class Noting:
    """The network, and in which threads it computed, with how many of torch's."""

    def __init__(self) -> None:
        self._network = silero.load()
        self.threads: set[int] = set()
        self.torch_threads: set[int] = set()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._network, name)

    def __call__(self, *given: Any) -> Any:
        self.threads.add(threading.get_ident())
        self.torch_threads.add(torch.get_num_threads())
        return self._network(*given)


def test_many_recordings_are_listened_to_in_few_threads_and_others_compute_as_before() -> None:
    """What torch keeps for each thread is kept for as many as there are processors."""
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    network = Noting()
    alone = Alone(network)  # type: ignore[arg-type]

    def threads_after_listening(_: int) -> int:
        heard(alone, silence(1))
        return torch.get_num_threads()

    try:
        with ThreadPoolExecutor(16) as recordings:
            assert {*recordings.map(threads_after_listening, range(64))} <= {3}
        assert len(network.threads) <= Container.read().threads
        assert network.torch_threads == {1}
        with ThreadPoolExecutor(1) as late:
            assert late.submit(torch.get_num_threads).result() == 3
    finally:
        torch.set_num_threads(before)
