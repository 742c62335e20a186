"""Listening through Silero's network: each recording for itself, or all that wait at once."""

import logging
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import cache
from typing import Literal, Protocol

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

from parakeet_worker.container import Container
from parakeet_worker.engine import failures
from parakeet_worker.engine.base import Samples
from parakeet_worker.vad import silero
from parakeet_worker.vad.base import BLOCK_SAMPLES, FRAME_SAMPLES, Detector, Probabilities
from parakeet_worker.vad.level import Raised
from parakeet_worker.vad.silero import CONTEXT_SAMPLES, Silero, State

log = logging.getLogger(__name__)

MOST_TOGETHER = 64
"""Recordings in one batch, with up to 33 s each."""

MOST_BLOCKS = 8
"""Blocks of one recording at once: 33 s."""

_AGREES_WITHIN = 1e-3


class Listener(Protocol):
    """Hears blocks of many recordings, from many threads."""

    def hear(self, block: Samples, state: State | None) -> tuple[Probabilities, State]:
        """The (T,) probabilities of (64 + 512 T) samples, and the state after them.

        Without a `state` a recording begins.
        """
        ...


class SileroDetector(Detector):
    """One recording; very quiet speech in it is raised."""

    is_sure = True
    most_blocks = MOST_BLOCKS

    def __init__(self, listener: Listener) -> None:
        super().__init__(CONTEXT_SAMPLES)
        self._listener = listener
        self._state: State | None = None
        self._raised = Raised(CONTEXT_SAMPLES)

    def _hear(self, blocks: Samples) -> Probabilities:
        whole = [
            blocks[begin : begin + CONTEXT_SAMPLES + BLOCK_SAMPLES]
            for begin in range(0, len(blocks) - CONTEXT_SAMPLES, BLOCK_SAMPLES)
        ]
        raised = [self._raised.block(block) for block in whole]
        if all(now is before for now, before in zip(raised, whole, strict=True)):
            return self._listened(blocks)
        parts = [raised[0], *(block[CONTEXT_SAMPLES:] for block in raised[1:])]
        return self._listened(np.concatenate(parts))

    def _listened(self, samples: Samples) -> Probabilities:
        found, self._state = self._listener.hear(samples, self._state)
        return found


def open_listener(
    device: Literal["auto", "cpu", "cuda"],
    on_device_failure: Callable[[str], None] | None = None,
) -> Listener:
    """The packaged network for `device`, for the processor where a GPU fails or errs.

    `on_device_failure` is called, from any thread and at most once, with the reason of a CUDA
    error: nothing else in the process can use the device any more. Raises `WeightsMissing` or
    `WeightsCorrupt`.
    """
    alone = Alone(silero.load())
    if device == "cpu" or (device == "auto" and not torch.cuda.is_available()):
        return alone
    try:
        together = Together(silero.load("cuda"), alone, on_device_failure)
        apart = _difference(together, alone)
    except (RuntimeError, AssertionError) as failure:  # the latter where torch has no CUDA
        log.warning("speech is detected on the processor, the GPU fails at it: %s", failure)
        return alone
    if not apart <= _AGREES_WITHIN:
        log.warning("speech is detected on the processor, the GPU is %.4f off", apart)
        return alone
    return together


def _difference(together: "Together", alone: "Alone") -> float:
    """By how much both differ on noise, in as large a batch as there will ever be."""
    noise = np.random.default_rng(1).normal(0, 0.1, CONTEXT_SAMPLES + MOST_BLOCKS * BLOCK_SAMPLES)
    block = noise.astype(np.float32)
    found = together.on_device([_Waiting(block, None)] * MOST_TOGETHER)
    expected, _ = alone.hear(block, None)
    return max(float(np.abs(probabilities - expected).max()) for probabilities, _ in found)


def _compute_alone(started: threading.Barrier) -> None:
    """Limit torch to one thread in this thread only.

    The network is small: torch's threads wait for each other longer than they work, and as many
    recordings are listened to at once as there are processors.
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
    """The threads that compute, all started before the first recording is.

    Not the threads of recordings, which are many: torch keeps for each thread what it has made for
    every length of audio there, 3 MB in all. And not one by one: a recording's thread that comes to
    torch while the default is 1 would keep that limit.
    """
    count = Container.read().threads
    pool = ThreadPoolExecutor(count, thread_name_prefix="listening")
    started = threading.Barrier(count)
    wait([pool.submit(_compute_alone, started) for _ in range(count)])
    return pool


def _computing() -> ThreadPoolExecutor:
    with _starting_pool:
        return _pool()


_starting_pool = threading.Lock()


@dataclass(frozen=True, slots=True)
class Alone:
    """For a processor: each recording by itself, as many at once as there are processors."""

    network: Silero

    def hear(self, block: Samples, state: State | None) -> tuple[Probabilities, State]:
        """As `Listener` says."""
        return _computing().submit(self._heard, block, state).result()

    @torch.inference_mode()
    def _heard(self, block: Samples, state: State | None) -> tuple[Probabilities, State]:
        hidden, cell = state or self.network.silence()
        after = hidden.cpu(), cell.cpu()
        found: list[Probabilities] = []
        # Block by block: what does not fit into a core's cache takes longer, and the last bits of
        # a probability do not depend on how much has come at once.
        for begin in range(0, len(block) - CONTEXT_SAMPLES, BLOCK_SAMPLES):
            part = torch.from_numpy(block[begin : begin + CONTEXT_SAMPLES + BLOCK_SAMPLES])
            probabilities, after = self.network(part[None], after)
            found.append(probabilities[0].numpy())
        return np.concatenate(found), after


@dataclass(frozen=True, slots=True, eq=False)
class _Waiting:
    block: Samples
    state: State | None
    heard: "Future[tuple[Probabilities, State]]" = field(default_factory=Future)


class Together:
    """For a GPU: blocks that wait at the same time are heard in one batch, beside the engine.

    Who comes while nobody listens does it for all that wait; they find it done. A batch that the
    GPU has no memory for is heard by `alone`; so is every batch from the one on in which the
    device fails.
    """

    def __init__(
        self,
        network: Silero,
        alone: Alone,
        on_device_failure: Callable[[str], None] | None = None,
    ) -> None:
        self._network = network
        self._alone = alone
        self._on_device_failure = on_device_failure
        self._failed = False
        self._waiting: list[_Waiting] = []
        self._arriving = threading.Lock()
        self._listening = threading.Lock()
        # CUDA's libraries keep a workspace for each thread that has ever called them.
        self._computing = ThreadPoolExecutor(1, thread_name_prefix="listening")
        self._stream: torch.cuda.Stream | None = None
        if network.window.is_cuda:
            # The engine's kernels are long: these would wait for all of them in the same stream.
            self._stream = torch.cuda.Stream(priority=-1)
            torch.cuda.synchronize()  # the weights came in another

    def hear(self, block: Samples, state: State | None) -> tuple[Probabilities, State]:
        """As `Listener` says."""
        mine = _Waiting(block, state)
        with self._arriving:
            self._waiting.append(mine)
        while not mine.heard.done():
            with self._listening:
                if not mine.heard.done():
                    self._hear_those_that_wait()
        return mine.heard.result()

    def _hear_those_that_wait(self) -> None:
        with self._arriving:
            batch, self._waiting = self._waiting[:MOST_TOGETHER], self._waiting[MOST_TOGETHER:]
        try:
            found = self.heard(batch)
        except Exception as failure:  # noqa: BLE001  # whose block it was nobody knows: all are told
            for each in batch:
                each.heard.set_exception(failure)
        else:
            for each, answer in zip(batch, found, strict=True):
                each.heard.set_result(answer)

    def heard(self, batch: Sequence[_Waiting]) -> list[tuple[Probabilities, State]]:
        """Each of a batch."""
        if not self._failed:
            try:
                return self.on_device(batch)
            except (RuntimeError, MemoryError) as failure:
                self._fall_back(failure, len(batch))
        return [self._alone.hear(each.block, self._reachable(each.state)) for each in batch]

    def on_device(self, batch: Sequence[_Waiting]) -> list[tuple[Probabilities, State]]:
        """The same on the network's own device, raising what it raises."""
        return self._computing.submit(self._heard_on_device, batch).result()

    def _heard_on_device(self, batch: Sequence[_Waiting]) -> list[tuple[Probabilities, State]]:
        with self._beside():
            return self._heard([each.block for each in batch], [each.state for each in batch])

    def _fall_back(self, failure: Exception, count: int) -> None:
        """Prepare to hear a batch without the device; raises the failure if it is a bug."""
        if failures.is_out_of_memory(failure):
            log.warning("no memory to detect speech in %d recordings at once", count)
        elif failures.is_device_failure(failure):
            self._failed = True
            reason = f"in voice activity detection: {failure}"
            log.error("speech is detected on the processor from here on: %s", reason)
            if self._on_device_failure is not None:
                self._on_device_failure(reason)
        else:
            raise failure
        # What the traceback holds on the device would be in the way of the next batch.
        failures.clear_tracebacks(failure)

    def _reachable(self, state: State | None) -> State | None:
        """The state, or None to begin anew where it lies on a device that has failed.

        Nothing can be copied from there any more. A recording in the middle of which that happens
        loses what the network remembers of the seconds before, and no sample: the block brings
        its own context.
        """
        if self._failed and state is not None and state[0].device.type != "cpu":
            return None
        return state

    @torch.inference_mode()
    def _heard(
        self, blocks: Sequence[Samples], states: Sequence[State | None]
    ) -> list[tuple[Probabilities, State]]:
        device, silence = self._network.window.device, self._network.silence()
        before = zip(*(state or silence for state in states), strict=True)
        hidden, cell = (torch.cat([part.to(device) for part in parts], dim=1) for parts in before)
        rows = pad_sequence([torch.from_numpy(block) for block in blocks], batch_first=True)
        frames = [(len(block) - CONTEXT_SAMPLES) // FRAME_SAMPLES for block in blocks]
        probabilities, (hidden, cell) = self._network(rows.to(device), (hidden, cell), frames)
        found: Probabilities = probabilities.cpu().numpy()
        return [
            (found[row, :count], (hidden[:, row : row + 1], cell[:, row : row + 1]))
            for row, count in enumerate(frames)
        ]

    def _beside(self) -> AbstractContextManager[object]:
        return torch.cuda.stream(self._stream) if self._stream else nullcontext()
