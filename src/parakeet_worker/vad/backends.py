"""Backends that run Silero's network: one recording per thread, or batches of recordings."""

import logging
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import cache
from typing import Literal

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

from parakeet_worker import threads
from parakeet_worker.container import Container
from parakeet_worker.engine import failures
from parakeet_worker.engine.base import Samples
from parakeet_worker.vad import silero
from parakeet_worker.vad.base import (
    BLOCK_SAMPLES,
    CONTEXT_SAMPLES,
    FRAME_SAMPLES,
    Inference,
    NetworkState,
    Probabilities,
    VadBackend,
)
from parakeet_worker.vad.silero import Silero
from parakeet_worker.vad.silero_detector import MAX_BLOCKS

log = logging.getLogger(__name__)

MAX_BATCH = 64
"""Recordings in one batch, with up to 33 s each."""

_MAX_DIFFERENCE = 1e-3


def open_backend(
    device: Literal["auto", "cpu", "cuda"],
    on_device_failure: Callable[[str], None] | None = None,
) -> VadBackend:
    """Load the packaged network on `device`; fall back to the CPU if the GPU fails or differs.

    `on_device_failure` is called, from any thread and at most once, with the reason of a CUDA
    error: the CUDA context is unusable for the whole process then. Raises `WeightsMissing` or
    `WeightsCorrupt`.
    """
    on_cpu = PerThreadVad(silero.load())
    if device == "cpu" or (device == "auto" and not torch.cuda.is_available()):
        return on_cpu
    try:
        batched = BatchedVad(silero.load("cuda"), on_cpu, on_device_failure)
        difference = _difference(batched, on_cpu)
    except (RuntimeError, AssertionError) as failure:  # the latter if torch has no CUDA
        log.warning("voice activity detection runs on the CPU: the GPU failed: %s", failure)
        return on_cpu
    if not difference <= _MAX_DIFFERENCE:
        log.warning("voice activity detection runs on the CPU: the GPU differs by %.4f", difference)
        return on_cpu
    return batched


def _difference(batched: "BatchedVad", reference: "PerThreadVad") -> float:
    """Largest difference between both backends on noise, in a batch of the maximum size."""
    noise = np.random.default_rng(1).normal(0, 0.1, CONTEXT_SAMPLES + MAX_BLOCKS * BLOCK_SAMPLES)
    block = noise.astype(np.float32)
    results = batched.on_device([_Request(block, None)] * MAX_BATCH)
    expected, _ = reference.probabilities(block, None)
    return max(float(np.abs(probabilities - expected).max()) for probabilities, _ in results)


def _limit_torch_threads(started: threading.Barrier) -> None:
    """Limit torch to one thread in this thread only.

    The network is small: torch's threads synchronise longer than they compute, and as many
    recordings are processed concurrently as there are CPUs.
    """
    with _limiting_threads:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        # This also sets the default of later threads, which another thread restores.
        others = threading.Thread(target=torch.set_num_threads, args=(threads,))
        others.start()
        others.join()
    started.wait()


_limiting_threads = threading.Lock()


@cache
def _pool() -> ThreadPoolExecutor:
    """The compute threads, all started before the first recording.

    Separate from the threads of recordings, which are many: torch caches per thread what it
    prepared for every input length, 3 MB in total. Started together, because a recording's thread
    that first calls torch while the default is 1 would keep that limit.
    """
    count = Container.read().threads
    pool = ThreadPoolExecutor(count, thread_name_prefix="vad")
    started = threading.Barrier(count)
    wait([pool.submit(_limit_torch_threads, started) for _ in range(count)])
    return pool


def _executor() -> ThreadPoolExecutor:
    with _starting_pool:
        return _pool()


_starting_pool = threading.Lock()


@dataclass(frozen=True, slots=True)
class PerThreadVad:
    """CPU backend: each recording by itself, as many concurrently as there are CPUs."""

    network: Silero

    def probabilities(self, block: Samples, state: NetworkState | None) -> Inference:
        """See `VadBackend.probabilities`."""
        return _executor().submit(self._compute, block, state).result()

    @torch.inference_mode()
    def _compute(self, block: Samples, state: NetworkState | None) -> Inference:
        after = _tensors(state) if state else self.network.initial_state()
        results: list[Probabilities] = []
        # Block by block: larger inputs exceed a core's cache and take longer, and the last bits of
        # a probability must not depend on how the input was divided.
        for begin in range(0, len(block) - CONTEXT_SAMPLES, BLOCK_SAMPLES):
            part = torch.from_numpy(block[begin : begin + CONTEXT_SAMPLES + BLOCK_SAMPLES])
            probabilities, after = self.network(part[None], after)
            results.append(probabilities[0].numpy())
        return np.concatenate(results), (after[0].numpy(), after[1].numpy())


@dataclass(frozen=True, slots=True, eq=False)
class _Request:
    block: Samples
    state: NetworkState | None
    result: "Future[Inference]" = field(default_factory=Future)


class BatchedVad:
    """GPU backend: requests that are pending at the same time are computed in one batch.

    The first thread that acquires the lock computes all pending requests; the other threads find
    their results set. A batch that does not fit into GPU memory is computed by `fallback`, and so
    is every batch after a device failure.
    """

    def __init__(
        self,
        network: Silero,
        fallback: PerThreadVad,
        on_device_failure: Callable[[str], None] | None = None,
    ) -> None:
        self._network = network
        self._fallback = fallback
        self._on_device_failure = on_device_failure
        self._failed = False
        self._pending: list[_Request] = []
        self._queue_lock = threading.Lock()
        self._batch_lock = threading.Lock()
        # CUDA's libraries keep a workspace for each thread that has ever called them.
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="vad")
        self._stream: torch.cuda.Stream | None = None
        if network.window.is_cuda:
            # In the engine's stream these kernels would wait for all of its long ones.
            self._stream = torch.cuda.Stream(priority=-1)
            torch.cuda.synchronize()  # the weights were copied in another stream

    def probabilities(self, block: Samples, state: NetworkState | None) -> Inference:
        """See `VadBackend.probabilities`."""
        request = _Request(block, state)
        with self._queue_lock:
            self._pending.append(request)
        with threads.SLOTS.released():  # so that a batch is not limited to their number
            while not request.result.done():
                with self._batch_lock:
                    if not request.result.done():
                        self._compute_pending()
        return request.result.result()

    def _compute_pending(self) -> None:
        with self._queue_lock:
            batch, self._pending = self._pending[:MAX_BATCH], self._pending[MAX_BATCH:]
        try:
            results = self.compute(batch)
        except Exception as failure:  # noqa: BLE001  # any request may be the cause: all fail
            for request in batch:
                request.result.set_exception(failure)
        else:
            for request, result in zip(batch, results, strict=True):
                request.result.set_result(result)

    def compute(self, batch: Sequence[_Request]) -> list[Inference]:
        """Compute a batch, on the fallback if the device cannot."""
        if not self._failed:
            try:
                return self.on_device(batch)
            except (RuntimeError, MemoryError) as failure:
                self._fall_back(failure, len(batch))
        return [self._fallback.probabilities(each.block, each.state) for each in batch]

    def on_device(self, batch: Sequence[_Request]) -> list[Inference]:
        """Compute a batch on the network's device; raises what torch raises."""
        return self._executor.submit(self._compute_in_stream, batch).result()

    def _compute_in_stream(self, batch: Sequence[_Request]) -> list[Inference]:
        with self._own_stream():
            return self._compute([each.block for each in batch], [each.state for each in batch])

    def _fall_back(self, failure: Exception, count: int) -> None:
        """Log the failure and prepare for the fallback; re-raise it if it is a bug."""
        if failures.is_out_of_memory(failure):
            log.warning("out of memory: voice activity detection of %d recordings", count)
        elif failures.is_device_failure(failure):
            self._failed = True
            reason = f"in voice activity detection: {failure}"
            log.error("voice activity detection runs on the CPU from now on: %s", reason)
            if self._on_device_failure is not None:
                self._on_device_failure(reason)
        else:
            raise failure
        # Tensors referenced by the traceback would occupy memory of the next batch.
        failures.clear_tracebacks(failure)

    @torch.inference_mode()
    def _compute(
        self, blocks: Sequence[Samples], states: Sequence[NetworkState | None]
    ) -> list[Inference]:
        device, initial = self._network.window.device, self._network.initial_state()
        before = zip(*(_tensors(state) if state else initial for state in states), strict=True)
        hidden, cell = (torch.cat([part.to(device) for part in parts], dim=1) for parts in before)
        rows = pad_sequence([torch.from_numpy(block) for block in blocks], batch_first=True)
        frames = [(len(block) - CONTEXT_SAMPLES) // FRAME_SAMPLES for block in blocks]
        probabilities, after = self._network(rows.to(device), (hidden, cell), frames)
        result: Probabilities = probabilities.cpu().numpy()
        # Copied to the host: a state on a device that fails afterwards would be lost with it.
        hiddens, cells = (part.cpu().numpy() for part in after)
        return [
            (result[row, :count], (hiddens[:, row : row + 1], cells[:, row : row + 1]))
            for row, count in enumerate(frames)
        ]

    def _own_stream(self) -> AbstractContextManager[object]:
        return torch.cuda.stream(self._stream) if self._stream else nullcontext()


def _tensors(state: NetworkState) -> silero.State:
    hidden, cell = state
    return torch.from_numpy(hidden), torch.from_numpy(cell)
