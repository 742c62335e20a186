"""State of the model (warming, ready, full, lost) and the number of open requests."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Literal, TypeAlias

from parakeet_worker.engine.kernel_report import KernelReport
from parakeet_worker.entrypoints.http.keys import ApiKeys
from parakeet_worker.entrypoints.http.metrics import Metrics
from parakeet_worker.errors import Busy, EngineLost, Warming
from parakeet_worker.pipeline import Pipeline
from parakeet_worker.scratch import scratch_of
from parakeet_worker.settings import Settings

State: TypeAlias = Literal["warming", "ready", "full", "lost"]
"""`full`: the disk has no room for another request."""


class Service:
    """State shared by all routes."""

    def __init__(self, settings: Settings, on_lost: Callable[[], None] = lambda: None) -> None:
        """`on_lost` is called when the engine has failed permanently."""
        self.settings = settings
        self.scratch = scratch_of(settings)
        self.metrics = Metrics()
        self.api_keys = ApiKeys(settings.api_keys)
        self._on_lost = on_lost
        self._pipeline: Pipeline | None = None
        self._open_requests = 0

    def open(self, pipeline: Pipeline) -> None:
        """Start accepting requests."""
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
        """Results of the kernel comparison, once the engine is loaded."""
        return () if self._pipeline is None else self._pipeline.batcher.engine.reports

    @contextmanager
    def admitted(self, authorization: str | None) -> Iterator[Pipeline]:
        """Admit one request before its body is read.

        Raises `InvalidApiKey`, `Warming`, `EngineLost`, `Busy`,
        `ScratchFull` or `ScratchUnusable`.
        """
        self.api_keys.check(authorization)
        if self._pipeline is None:
            raise Warming
        if self._pipeline.batcher.lost:
            raise EngineLost("the worker is being replaced")
        try:
            with self._slot():
                yield self._pipeline
        finally:
            # Only work can lose an engine, so this is checked after each request.
            if self._pipeline.batcher.lost:
                self._on_lost()

    @contextmanager
    def admitted_without_engine(self, authorization: str | None) -> Iterator[None]:
        """Admit a request that needs no model; raises `InvalidApiKey` or `Busy`."""
        self.api_keys.check(authorization)
        with self._slot():
            yield

    @contextmanager
    def _slot(self) -> Iterator[None]:
        if self._open_requests >= self.settings.max_requests:
            raise Busy(self.settings.max_requests)
        if (shortage := self.scratch.shortage()) is not None:
            raise shortage
        self._open_requests += 1
        self.metrics.running(1)
        try:
            yield
        finally:
            self._open_requests -= 1
            self.metrics.running(-1)
