"""Windows of all recordings in flight through both networks, in batches."""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from parakeet_worker.engine import failures
from parakeet_worker.engine.base import Samples
from parakeet_worker.errors import EngineLost, OutOfMemory
from parakeet_worker.speakers import embedding, segmentation
from parakeet_worker.speakers.embedding import Embedding, Filterbank
from parakeet_worker.speakers.pitch import Pitch
from parakeet_worker.speakers.segmentation import Segmentation
from parakeet_worker.speakers.windows import (
    CLASSES,
    EMBEDDING_SIZE,
    LONG,
    SAMPLE_RATE,
    Span,
    Window,
    cut,
    feature_span,
    slide,
)

MAX_WINDOWS = 16
"""Windows in one batch."""

_CLASSES = np.array(CLASSES, dtype=bool)
# Spans in one batch; on a processor as many as stay in its caches.
_MAX_EMBEDDED = {"cpu": 16, "cuda": 64}


def default_device(device: str) -> str:
    """`cuda` where the engine uses it, otherwise `cpu`."""
    return "cuda" if device in ("auto", "cuda") and torch.cuda.is_available() else "cpu"


@dataclass(frozen=True, slots=True, eq=False)
class _Submitted:
    samples: Samples
    used: tuple[int, int]
    result: "Future[Window]" = field(default_factory=Future)


class Networks:
    """Both networks on one device; one thread computes for all recordings."""

    def __init__(
        self,
        device: str = "cpu",
        folder: Path | None = None,
        on_device_failure: Callable[[str], None] | None = None,
    ) -> None:
        """`on_device_failure` is called, from any thread, with the reason of a CUDA error.

        Raises `ExtraMissing`, `WeightsMissing` or `WeightsCorrupt`.
        """
        self._device = device
        self._on_device_failure = on_device_failure
        self._segmentation: Segmentation = segmentation.load(device, folder)
        self._embedding: Embedding = embedding.load(device, folder)
        self._filterbank = Filterbank().to(device)
        self._pitch = Pitch().to(device)
        self._queue: list[_Submitted] = []
        self._lock = threading.Lock()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="speakers")
        self._stream = torch.cuda.Stream() if device.startswith("cuda") else None
        if self._stream is not None:
            torch.cuda.synchronize()  # the weights were copied in another stream

    def submit(self, samples: Samples, used: tuple[int, int]) -> "Future[Window]":
        """Queue a window of 160,000 samples; what is outside the frames `used` is not embedded."""
        submitted = _Submitted(samples, used)
        with self._lock:
            self._queue.append(submitted)
        self._thread.submit(self._run)
        return submitted.result

    def _run(self) -> None:
        """Compute one batch; windows that an earlier call computed leave nothing to do."""
        with self._lock:
            batch, self._queue = self._queue[:MAX_WINDOWS], self._queue[MAX_WINDOWS:]
        batch = [each for each in batch if each.result.set_running_or_notify_cancel()]
        if not batch:
            return
        try:
            results = self._fitting(batch)
        except Exception as failure:  # noqa: BLE001  # passed to all that wait for the batch
            for each in batch:
                each.result.set_exception(failure)
        else:
            for each, result in zip(batch, results, strict=True):
                each.result.set_result(result)

    def _fitting(self, batch: Sequence[_Submitted]) -> list[Window]:
        """The windows of a batch, in halves if the device has no memory for all of them.

        Raises `OutOfMemory` or `EngineLost`.
        """
        try:
            return self._windows(batch)
        except (RuntimeError, MemoryError) as failure:
            if failures.is_out_of_memory(failure):
                if len(batch) == 1:
                    raise OutOfMemory(len(batch[0].samples) / SAMPLE_RATE) from failure
                failures.clear_tracebacks(failure)
            elif failures.is_device_failure(failure):
                reason = f"in speaker diarization: {failure}"
                if self._on_device_failure is not None:
                    self._on_device_failure(reason)
                raise EngineLost(reason) from failure
            else:
                raise
        half = len(batch) // 2
        return [*self._fitting(batch[:half]), *self._fitting(batch[half:])]

    @torch.inference_mode()
    def _windows(self, batch: Sequence[_Submitted]) -> list[Window]:
        with torch.cuda.stream(self._stream):
            stacked = np.stack([each.samples for each in batch])
            samples = torch.from_numpy(stacked).to(self._device)
            classes = self._segmentation(samples).argmax(dim=-1).cpu().numpy()
            active = _CLASSES[classes]
            pitch = self._pitch(samples).half().cpu().numpy()
            used = [each.used for each in batch]
            pieces = [cut(frames, LONG, each) for frames, each in zip(active, used, strict=True)]
            steps = [slide(frames, each) for frames, each in zip(active, used, strict=True)]
            both = [(*one, *other) for one, other in zip(pieces, steps, strict=True)]
            embeddings = self._embedded(self._filterbank(samples), both)
        return [
            Window(
                active[row],
                pitch[row],
                pieces[row],
                vectors[: len(pieces[row])],
                np.array([step.number for step in steps[row]], dtype=np.int64),
                vectors[len(pieces[row]) :].astype(np.float16),
                used[row],
            )
            for row, vectors in enumerate(embeddings)
        ]

    def _embedded(
        self, features: Tensor, spans: Sequence[Sequence[Span]]
    ) -> list[npt.NDArray[np.float32]]:
        """One embedding per span of each window; equal ones are computed once."""
        results = [np.zeros((len(each), EMBEDDING_SIZE), dtype=np.float32) for each in spans]
        limit = _MAX_EMBEDDED[features.device.type]
        by_length: dict[int, dict[tuple[int, int], list[int]]] = {}
        for row, of_window in enumerate(spans):
            for index, span in enumerate(of_window):
                first, length = feature_span(span, features.shape[1])
                by_length.setdefault(length, {}).setdefault((row, first), []).append(index)
        for length, of_length in by_length.items():
            ordered = list(of_length.items())
            for begin in range(0, len(ordered), limit):
                part = ordered[begin : begin + limit]
                spoken = torch.stack(
                    [features[row, first : first + length] for (row, first), _ in part]
                )
                vectors = functional.normalize(self._embedding(spoken)).cpu().numpy()
                for ((row, _), indices), vector in zip(part, vectors, strict=True):
                    results[row][indices] = vector
        return results

    def close(self) -> None:
        """Cancel queued windows, and let the thread end after its batch without waiting for it.

        A lost device may block a batch forever.
        """
        with self._lock:
            queued, self._queue = self._queue, []
        for each in queued:
            each.result.cancel()
        self._thread.shutdown(wait=False, cancel_futures=True)
