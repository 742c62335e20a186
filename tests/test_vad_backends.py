"""Backends: a batch gives each recording the probabilities that it has by itself."""

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
    _MAX_DIFFERENCE,
    MAX_BATCH,
    BatchedVad,
    PerThreadVad,
    _difference,
    open_backend,
)
from parakeet_worker.vad.base import (
    BLOCK_SAMPLES,
    CONTEXT_SAMPLES,
    SPEECH_BEGINS,
    Inference,
    NetworkState,
    Probabilities,
    VadBackend,
    speech_spans,
)
from parakeet_worker.vad.level import Decibels, measured
from parakeet_worker.vad.silero import Silero
from parakeet_worker.vad.silero_detector import SileroDetector
from recordings import decode, silence
from speech import named

RATE = 16_000
ONE_BLOCK = BLOCK_SAMPLES / RATE

no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no GPU")


@pytest.fixture(scope="module")
def on_cpu() -> PerThreadVad:
    return PerThreadVad(silero.load())


@pytest.fixture
def network() -> Silero:
    """A network of the test's own, for hooks."""
    return silero.load()


@pytest.fixture
def batches(network: Silero) -> list[int]:
    """Number of blocks in each call of the network."""
    sizes: list[int] = []
    network.register_forward_pre_hook(lambda _, arguments: sizes.append(len(arguments[0])))
    return sizes


def recordings_of(count: int, seconds: float = 9.0) -> list[Samples]:
    """Different recordings of a little more than two blocks, each of another length."""
    minute = decode(named("minute").path)
    starts = np.linspace(0, 20, count)
    lengths = np.linspace(seconds, seconds + 3, count)
    return [
        minute[int(start * RATE) : int((start + length) * RATE)]
        for start, length in zip(starts, lengths, strict=True)
    ]


def probabilities_of(detector: VadBackend, samples: Samples) -> Probabilities:
    detector = SileroDetector(detector)
    return np.concatenate((detector.feed(samples), detector.finish()))


@contextmanager
def blocked(batched: BatchedVad, waiting: int) -> Iterator[None]:
    """Computes nothing until so many requests are pending."""
    with batched._batch_lock:
        yield
        deadline = time.monotonic() + 30
        while len(batched._pending) < waiting:
            assert time.monotonic() < deadline, "requests are missing"
            time.sleep(0.001)


class Drifting:
    """Detects almost nothing in one recording, except in single blocks from the initial state.

    Silero's network does so for some voices after ten seconds without a pause.
    """

    def __init__(self, network: VadBackend) -> None:
        self._network, self._started = network, False

    def probabilities(self, block: Samples, state: NetworkState | None) -> Inference:
        probabilities, after = self._network.probabilities(block, state)
        hidden = state is not None or not self._started
        self._started = True
        return probabilities * np.float32(0.01 if hidden else 1.0), after


def speech_of(backend: VadBackend, samples: Samples) -> set[int]:
    """Numbers of the frames with speech."""
    return set(np.flatnonzero(probabilities_of(backend, samples) >= SPEECH_BEGINS).tolist())


@pytest.mark.parametrize(
    ("decibels", "share"),
    [(0, 0.97), (-14, 0.95), (-18, 0.88), (-20, 0.88), (-30, 0.85), (-40, 0.85), (-50, 0.85)],
)
def test_speech_that_the_state_of_the_network_hides_is_detected(on_cpu, decibels, share):
    minute = decode(named("minute").path) * np.float32(10 ** (decibels / 20))
    expected, detected = speech_of(on_cpu, minute), speech_of(Drifting(on_cpu), minute)
    assert len(expected & detected) > share * len(expected)
    assert len(detected - expected) < (0.03 if decibels else 0.02) * len(expected)


def test_hidden_speech_is_the_same_for_any_division_of_the_input(on_cpu):
    minute = decode(named("minute").path)[: 40 * RATE]
    whole, divided = SileroDetector(Drifting(on_cpu)), SileroDetector(Drifting(on_cpu))
    parts = [divided.feed(part) for part in np.array_split(minute, 17)]
    expected = np.concatenate((whole.feed(minute), whole.finish()))
    assert np.array_equal(np.concatenate((*parts, divided.finish())), expected)


def test_the_search_for_missed_speech_gets_blocks_without_gain_and_their_levels(on_cpu):
    samples = decode(named("minute").path)[: 10 * BLOCK_SAMPLES]
    samples[5 * BLOCK_SAMPLES :] *= np.float32(0.03)
    whole = np.concatenate((np.zeros(CONTEXT_SAMPLES, dtype=np.float32), samples))
    blocks = list[Samples]()

    class Checked(SileroDetector):
        def _with_missed(
            self, block: Samples, detected: Probabilities, decibels: Decibels
        ) -> Probabilities:
            begin = len(blocks) * BLOCK_SAMPLES
            assert np.array_equal(block, whole[begin : begin + CONTEXT_SAMPLES + BLOCK_SAMPLES])
            assert np.array_equal(measured(block[CONTEXT_SAMPLES:]).decibels, decibels)
            blocks.append(block)
            return super()._with_missed(block, detected, decibels)

    Checked(on_cpu).feed(samples)
    assert len(blocks) == 10


class Searches:
    """Counts the blocks that are computed from the initial state too."""

    def __init__(self, network: VadBackend) -> None:
        self._network, self.count = network, 0

    def probabilities(self, block: Samples, state: NetworkState | None) -> Inference:
        self.count += state is None
        return self._network.probabilities(block, state)


@pytest.mark.parametrize("decibels", [0, -10, -20, -30, -45])
def test_sounds_without_speech_stay_without(on_cpu, decibels):
    chance, at = np.random.default_rng(1), np.arange(20 * RATE) / RATE
    pulses = (1 + np.sin(2 * np.pi * 4 * at)) / 2
    tones = np.sin(2 * np.pi * np.repeat(chance.uniform(200, 600, 40), RATE // 2) * at)
    for sound in (chance.standard_normal(len(at)) * 0.1, tones * 0.3):
        pulsing = (sound * pulses * 10 ** (decibels / 20)).astype(np.float32)
        searches = Searches(on_cpu)
        assert speech_spans(probabilities_of(searches, pulsing)) == []
        assert searches.count >= 5, "of five blocks and a part, the level varies as that of speech"


def batch_results(
    batched: BatchedVad, recordings: Sequence[Samples]
) -> "list[Future[Probabilities]]":
    with ThreadPoolExecutor(len(recordings)) as threads, blocked(batched, len(recordings)):
        return [threads.submit(probabilities_of, batched, samples) for samples in recordings]


def test_pending_recordings_are_computed_in_one_batch_with_the_results_of_single_ones(
    network, on_cpu, batches
):
    recordings = recordings_of(8)
    result = batch_results(BatchedVad(network, on_cpu), recordings)
    assert batches[0] == 8
    for samples, each in zip(recordings, result, strict=True):
        assert each.result() == pytest.approx(probabilities_of(on_cpu, samples), abs=1e-4)


def test_short_last_blocks_and_whole_blocks_share_a_batch(network, on_cpu, batches):
    recordings = [*recordings_of(3), *recordings_of(3, seconds=0.4)]
    result = batch_results(BatchedVad(network, on_cpu), recordings)
    assert batches[0] == 6
    for samples, each in zip(recordings, result, strict=True):
        assert each.result() == pytest.approx(probabilities_of(on_cpu, samples), abs=1e-4)


def test_a_batch_has_a_maximum_size(network, on_cpu, batches):
    recordings = [silence(0.1)] * (MAX_BATCH + 1)
    result = batch_results(BatchedVad(network, on_cpu), recordings)
    assert batches == [MAX_BATCH, 1]
    assert {len(each.result()) for each in result} == {4}


def test_a_single_recording_does_not_wait(network, on_cpu, batches):
    samples = recordings_of(1)[0]
    assert probabilities_of(BatchedVad(network, on_cpu), samples) == pytest.approx(
        probabilities_of(on_cpu, samples), abs=1e-4
    )
    assert batches == [1, 1], "both whole blocks in one call, then the rest"


def test_rows_of_all_lengths_carry_their_own_state(network, on_cpu, batches):
    """Over two batches, in which each recording has another length."""
    lengths = (1, 8, 3, 2)
    recordings = recordings_of(4, seconds=70.0)
    batched = BatchedVad(network, on_cpu)
    result: list[list[Probabilities]] = [[] for _ in lengths]
    detectors = [SileroDetector(batched) for _ in lengths]
    for turn in (0, 1):
        with ThreadPoolExecutor(4) as threads, blocked(batched, 4):
            futures = [
                threads.submit(detector.feed, _blocks(samples, lengths, row, turn))
                for row, (detector, samples) in enumerate(zip(detectors, recordings, strict=True))
            ]
        for row, each in enumerate(futures):
            result[row].append(each.result())
    assert batches == [4, 4]
    for row, samples in enumerate(recordings):
        both = np.concatenate(result[row])
        assert both == pytest.approx(probabilities_of(on_cpu, samples)[: len(both)], abs=1e-4)


def _blocks(samples: Samples, lengths: Sequence[int], row: int, turn: int) -> Samples:
    """As many first blocks of a recording as its length, then as many as the length before."""
    first = lengths[row] * BLOCK_SAMPLES
    if turn == 0:
        return samples[:first]
    return samples[first : first + lengths[row - 1] * BLOCK_SAMPLES]


def test_out_of_memory_falls_back_to_the_cpu_for_one_batch(network, on_cpu, batches, caplog):
    def refuse(*_: Any) -> None:
        if len(batches) == 1:
            raise torch.OutOfMemoryError("none left")

    network.register_forward_pre_hook(refuse)
    recordings = recordings_of(4)
    with caplog.at_level(logging.WARNING):
        result = batch_results(BatchedVad(network, on_cpu), recordings)
    for samples, each in zip(recordings, result, strict=True):
        assert each.result() == pytest.approx(probabilities_of(on_cpu, samples), abs=1e-4)
    assert len(batches) > 1
    assert "out of memory: voice activity detection of 4 recordings" in caplog.text


def test_a_failure_is_raised_for_its_batch_only(network, on_cpu):
    failing = True

    def fail(*_: Any) -> None:
        if failing:
            raise RuntimeError("unknown failure")

    network.register_forward_pre_hook(fail)
    batched = BatchedVad(network, on_cpu)
    for each in batch_results(batched, recordings_of(3)):
        with pytest.raises(RuntimeError, match="unknown failure"):
            each.result(timeout=30)
    failing = False
    assert len(probabilities_of(batched, recordings_of(1)[0])) > 250


MISALIGNED = "CUDA error: misaligned address"


@pytest.mark.parametrize("kind", [RuntimeError, torch.AcceleratorError])
def test_a_device_failure_is_reported_once_and_later_batches_run_on_the_cpu(
    network, on_cpu, batches, caplog, kind
):
    def fail(*_: Any) -> None:
        if len(batches) > 1:
            raise kind(MISALIGNED)

    network.register_forward_pre_hook(fail)
    reported: list[str] = []
    batched = BatchedVad(network, on_cpu, reported.append)
    recordings = recordings_of(4)
    with caplog.at_level(logging.WARNING):
        result = batch_results(batched, recordings)
    for samples, each in zip(recordings, result, strict=True):
        assert each.result() == pytest.approx(probabilities_of(on_cpu, samples), abs=1e-4)
    assert reported == [f"in voice activity detection: {MISALIGNED}"]
    assert "runs on the CPU from now on" in caplog.text
    device_batches = list(batches)
    assert probabilities_of(batched, recordings[0]) == pytest.approx(
        probabilities_of(on_cpu, recordings[0]), abs=1e-4
    )
    assert batches == device_batches, "the device is not touched again"
    assert len(reported) == 1


def test_after_a_device_failure_a_recording_continues_from_its_state(network, on_cpu):
    """The state is in the host's memory; from a failed device nothing can be copied."""
    batched = BatchedVad(network, on_cpu)
    samples = recordings_of(1)[0]
    first, second = samples[: 64 + 512 * 128], samples[512 * 128 : 64 + 512 * 200]
    _, state = batched.probabilities(first, None)
    network.register_forward_pre_hook(lambda *_: raise_(RuntimeError(MISALIGNED)))
    result, after = batched.probabilities(second, state)
    _, own = on_cpu.probabilities(first, None)
    expected, expected_after = on_cpu.probabilities(second, own)
    assert result == pytest.approx(expected, abs=1e-5)
    assert after[0] == pytest.approx(expected_after[0], abs=1e-5)
    assert not np.allclose(result, on_cpu.probabilities(second, None)[0], atol=1e-3)


def test_other_failures_are_not_reported_as_device_failures(network, on_cpu):
    reported: list[str] = []
    batched = BatchedVad(network, on_cpu, reported.append)
    hook = network.register_forward_pre_hook(lambda *_: raise_(ValueError("a bug")))
    with pytest.raises(ValueError, match="a bug"):
        probabilities_of(batched, silence(1))
    hook.remove()
    assert len(probabilities_of(batched, silence(1))) > 30
    assert reported == []


def raise_(failure: Exception) -> None:
    raise failure


def test_tensors_of_a_failed_batch_are_released_before_the_next(network, on_cpu):
    blocked: list[weakref.ref[torch.Tensor]] = []

    def refuse(*_: Any) -> None:
        scratch = torch.zeros(1000)
        blocked.append(weakref.ref(scratch))
        # In a variable, so that the traceback and its own frame keep each other.
        failure = RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED")
        raise failure

    hook = network.register_forward_pre_hook(refuse)
    gc.disable()
    try:
        probabilities_of(BatchedVad(network, on_cpu), silence(1))
        assert blocked
        assert [one() for one in blocked] == [None] * len(blocked)
    finally:
        gc.enable()
        hook.remove()


def test_on_a_cpu_each_recording_has_its_own_thread():
    assert isinstance(open_backend("cpu"), PerThreadVad)


@no_gpu
def test_a_failing_gpu_is_logged_and_the_cpu_is_used(caplog):
    assert isinstance(open_backend("auto"), PerThreadVad)
    assert caplog.text == ""
    assert isinstance(open_backend("cuda"), PerThreadVad)
    assert "the GPU failed" in caplog.text


def test_the_comparison_detects_a_wrong_network(network, on_cpu):
    assert _difference(BatchedVad(network, on_cpu), on_cpu) <= _MAX_DIFFERENCE
    with torch.no_grad():
        network.output.weight.mul_(1.1)
    assert not _difference(BatchedVad(network, on_cpu), on_cpu) <= _MAX_DIFFERENCE


@gpu
def test_a_gpu_gives_the_probabilities_of_the_cpu(on_cpu):
    disable_tf32()
    recordings = recordings_of(8)
    detector = open_backend("cuda")
    assert isinstance(detector, BatchedVad)
    for samples, each in zip(recordings, batch_results(detector, recordings), strict=True):
        assert each.result() == pytest.approx(probabilities_of(on_cpu, samples), abs=1e-3)


class Noting:
    """The network, with a record of its threads and of torch's thread count in them."""

    def __init__(self) -> None:
        self._network = silero.load()
        self.threads: set[int] = set()
        self.torch_threads: set[int] = set()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._network, name)

    def __call__(self, *arguments: Any) -> Any:
        self.threads.add(threading.get_ident())
        self.torch_threads.add(torch.get_num_threads())
        return self._network(*arguments)


def test_many_recordings_use_few_compute_threads_and_other_threads_keep_their_limit() -> None:
    """torch's per-thread caches exist once per CPU."""
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    network = Noting()
    on_cpu = PerThreadVad(network)  # type: ignore[arg-type]

    def threads_afterwards(_: int) -> int:
        probabilities_of(on_cpu, silence(1))
        return torch.get_num_threads()

    try:
        with ThreadPoolExecutor(16) as recordings:
            assert {*recordings.map(threads_afterwards, range(64))} <= {3}
        assert len(network.threads) <= Container.read().threads
        assert network.torch_threads == {1}
        with ThreadPoolExecutor(1) as late:
            assert late.submit(torch.get_num_threads).result() == 3
    finally:
        torch.set_num_threads(before)
