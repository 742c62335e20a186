"""The one pipeline behind every door: warming, ready or lost; and how many are inside."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Literal, TypeAlias

from parakeet_worker.engine.kernel_report import KernelReport
from parakeet_worker.entrypoints.http.keys import Keys
from parakeet_worker.entrypoints.http.metrics import Metrics
from parakeet_worker.errors import Busy, EngineLost, Warming
from parakeet_worker.pipeline import Pipeline
from parakeet_worker.scratch import scratch_of
from parakeet_worker.settings import Settings

State: TypeAlias = Literal["warming", "ready", "full", "lost"]
"""`full`: its disk has no room for another request."""


class Service:
    """What all doors share."""

    def __init__(self, settings: Settings, on_lost: Callable[[], None] = lambda: None) -> None:
        """`on_lost` is called when the engine has failed for good."""
        self.settings = settings
        self.scratch = scratch_of(settings)
        self.metrics = Metrics()
        self.keys = Keys(settings.api_keys)
        self._on_lost = on_lost
        self._pipeline: Pipeline | None = None
        self._inside = 0

    def open(self, pipeline: Pipeline) -> None:
        """From now on requests are answered."""
        self.metrics.watch(pipeline.batcher)
        self._pipeline = pipeline

    @property
    def state(self) -> State:
        if self._pipeline is None:
            return "warming"
        if self._pipeline.batcher.lost:
            return "lost"
        return "full" if self.scratch.shortage() else "ready"

    @property
    def kernels(self) -> Sequence[KernelReport]:
        """What comparisons of the engine's kernels found, once it is loaded."""
        return () if self._pipeline is None else self._pipeline.batcher.engine.reports

    @contextmanager
    def admitted(self, authorization: str | None) -> Iterator[Pipeline]:
        """A place for one request while it is answered.

        Before its body is read it raises `InvalidApiKey`, `Warming`, `EngineLost`, `Busy`,
        `ScratchFull` or `ScratchUnusable`.
        """
        self.keys.check(authorization)
        if self._pipeline is None:
            raise Warming
        if self._pipeline.batcher.lost:
            raise EngineLost("this worker is being replaced")
        try:
            with self._place():
                yield self._pipeline
        finally:
            # Only work can lose an engine, so here is where it shows.
            if self._pipeline.batcher.lost:
                self._on_lost()

    @contextmanager
    def admitted_without_engine(self, authorization: str | None) -> Iterator[None]:
        """A place for a request that needs no model; raises `InvalidApiKey` or `Busy`."""
        self.keys.check(authorization)
        with self._place():
            yield

    @contextmanager
    def _place(self) -> Iterator[None]:
        if self._inside >= self.settings.max_requests:
            raise Busy(self.settings.max_requests)
        if (shortage := self.scratch.shortage()) is not None:
            raise shortage
        self._inside += 1
        self.metrics.running(1)
        try:
            yield
        finally:
            self._inside -= 1
            self.metrics.running(-1)
