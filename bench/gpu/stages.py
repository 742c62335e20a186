"""Part `stages`: time of each stage of one large batch, in sequence.

The stages do not overlap here: their sum exceeds the time of a batch in service.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from bench.gpu import sounds
from bench.gpu.figures import Report
from bench.gpu.kernels import chain
from bench.gpu.opening import CHUNK_SECONDS, loaded, random_nemo, settle
from bench.gpu.parts import Setup
from bench.gpu.sounds import Pcm
from bench.harness import median
from parakeet_worker.engine.native.kernels.kernel_set import OPERATIONS, Kernels
from parakeet_worker.engine.native.packed_encoder import GROUP_TOKENS
from parakeet_worker.engine.native.rows import Plan
from parakeet_worker.engine.native.staging import Shape, Staging

_CHUNKS = 128
_HOP = 160


class Clock:
    """Milliseconds on the device between events in the current stream, by name."""

    def __init__(self, *, cuda: bool) -> None:
        self._cuda = cuda
        self._spans: list[tuple[str, Any, Any]] = []

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Time the launches within the context."""
        before = self._mark()
        yield
        self._spans.append((name, before, self._mark()))

    def wrap(self, name: str, operation: Callable[..., Any]) -> Callable[..., Any]:
        """The operation, timed at every call."""

        def call(*arguments: Any, **options: Any) -> Any:
            with self.timed(name):
                return operation(*arguments, **options)

        return call

    def milliseconds(self) -> dict[str, float]:
        """Totals by name since the previous call. Synchronises with the device."""
        if self._cuda:
            torch.cuda.synchronize()
        spent: dict[str, float] = {}
        for name, before, after in self._spans:
            duration = before.elapsed_time(after) if self._cuda else 1000 * (after - before)
            spent[name] = spent.get(name, 0.0) + duration
        self._spans.clear()
        return spent

    def _mark(self) -> Any:
        if not self._cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


@torch.inference_mode()
def run(setup: Setup, report: Report) -> None:
    """Measure staging, features, subsampling, the layers by kernel, and the search."""
    count, seconds = (2, 2.0) if setup.small else (_CHUNKS, CHUNK_SECONDS)
    batch = sounds.chunks(seconds, count)
    runs = spent(setup, batch, repeats=setup.count(5, 3, 2))
    for name in runs[0]:
        values = [stages[name] for stages in runs]
        report.measure(f"{name}, {count} x {seconds:g} s", median(values), "ms", values=values)


def spent(setup: Setup, batch: list[Pcm], repeats: int) -> list[dict[str, float]]:
    """Milliseconds by stage of each repeat, after one warm-up run."""
    model = loaded(setup, random_nemo(setup), "bf16")
    clock = Clock(cuda=setup.cuda)
    features, encoder = chain(model, _timed(model.kernels, clock))
    # The subsampling is timed as a whole as well.
    untyped: Any = encoder
    untyped._subsampling = clock.wrap("subsampling", untyped._subsampling)  # noqa: SLF001
    search = model.search()
    search.capture()
    plan = Plan(tuple(len(chunk) for chunk in batch), _HOP)
    shape = Shape(len(batch), sum(plan.tokens), max(plan.tokens))
    staging = Staging(model.device, samples=sum(plan.samples), rows=shape.rows, tokens=shape.tokens)
    runs = []
    for _ in range(repeats + 1):
        settle(setup)
        started = time.perf_counter()
        staged = staging.stage(batch, plan, shape, GROUP_TOKENS)
        settle(setup)
        staged_in = 1000 * (time.perf_counter() - started)
        with clock.timed("features"):
            mels = features(staged.samples, staged.rows)
        with clock.timed("encoder"):
            states: Tensor = encoder(mels, staged.rows)
        staging.release(staged)
        settle(setup)
        started = time.perf_counter()
        search.decode(states, plan.tokens)
        searched = 1000 * (time.perf_counter() - started)
        runs.append({"staging": staged_in, "search": searched, **clock.milliseconds()})
    return runs[1:]


def _timed(kernels: Kernels, clock: Clock) -> Kernels:
    """Kernels with every call timed; those of the features are part of `features` as well."""
    timed: dict[str, Any] = {
        name: clock.wrap(f"kernel {name}", getattr(kernels, name)) for name in OPERATIONS
    }
    return replace(kernels, **timed)
