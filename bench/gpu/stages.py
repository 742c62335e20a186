"""Part `stages`: where the time of one large batch goes, one thing after the other.

Nothing overlaps here, so that the sum is more than a served batch takes.
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
    """Milliseconds on the device between marks in the current stream, by name."""

    def __init__(self, *, cuda: bool) -> None:
        self._cuda = cuda
        self._spans: list[tuple[str, Any, Any]] = []

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Count what is launched within."""
        before = self._mark()
        yield
        self._spans.append((name, before, self._mark()))

    def around(self, name: str, operation: Callable[..., Any]) -> Callable[..., Any]:
        """The operation, counted at every call."""

        def call(*given: Any, **named: Any) -> Any:
            with self.timed(name):
                return operation(*given, **named)

        return call

    def milliseconds(self) -> dict[str, float]:
        """Of each name in all calls since the last time; waits for the device."""
        if self._cuda:
            torch.cuda.synchronize()
        spent: dict[str, float] = {}
        for name, before, after in self._spans:
            one = before.elapsed_time(after) if self._cuda else 1000 * (after - before)
            spent[name] = spent.get(name, 0.0) + one
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
    """Staging, features, subsampling, the layers by kernel, and the search."""
    count, seconds = (2, 2.0) if setup.small else (_CHUNKS, CHUNK_SECONDS)
    batch = sounds.chunks(seconds, count)
    runs = spent(setup, batch, repeats=setup.count(5, 3, 2))
    for name in runs[0]:
        values = [one[name] for one in runs]
        report.measure(f"{name}, {count} x {seconds:g} s", median(values), "ms", values=values)


def spent(setup: Setup, batch: list[Pcm], repeats: int) -> list[dict[str, float]]:
    """Milliseconds by stage of each repeat, after one that does not count."""
    model = loaded(setup, random_nemo(setup), "bf16")
    clock = Clock(cuda=setup.cuda)
    features, encoder = chain(model, _timed(model.kernels, clock))
    # What the subsampling calls is counted as a whole, too.
    inner: Any = encoder
    inner._subsampling = clock.around("subsampling", inner._subsampling)  # noqa: SLF001
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
    """Kernels of which each call is counted; those of the features are part of `features`."""
    beside: dict[str, Any] = {
        name: clock.around(f"kernel {name}", getattr(kernels, name)) for name in OPERATIONS
    }
    return replace(kernels, **beside)
