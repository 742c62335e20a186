"""Prometheus metrics."""

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from parakeet_worker.batcher import Batcher
from parakeet_worker.formats.render import Document
from parakeet_worker.outcome import Outcome

_STAGE_SECONDS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0)
_RTFX = (1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0)


class Metrics:
    """Metrics of one server."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._jobs = Counter(
            "parakeet_jobs", "Transcription requests, including rejected ones.",
            ["route"], registry=self._registry,
        )  # fmt: skip
        self._recordings = Counter(
            "parakeet_recordings", "Recordings by outcome: 'ok', 'cancelled' or an error code.",
            ["outcome"], registry=self._registry,
        )  # fmt: skip
        self._errors = Counter(
            "parakeet_errors", "Error responses by code.", ["code"],
            registry=self._registry,
        )  # fmt: skip
        self._running = Gauge(
            "parakeet_jobs_running", "Requests in progress.", registry=self._registry
        )
        self._audio_seconds = Counter(
            "parakeet_audio_seconds", "Seconds of transcribed audio.", registry=self._registry
        )
        self._stage_seconds = Histogram(
            "parakeet_stage_seconds", "Seconds per recording and stage, and in total.",
            ["stage"], buckets=_STAGE_SECONDS, registry=self._registry,
        )  # fmt: skip
        self._rtfx = Histogram(
            "parakeet_rtfx", "Seconds of audio per second of processing, per recording.",
            buckets=_RTFX, registry=self._registry,
        )  # fmt: skip

    def watch(self, batcher: Batcher) -> None:
        """Export the batcher's load."""
        self._registry.register(_Load(batcher))

    def running(self, change: int) -> None:
        self._running.inc(change)

    def requested(self, route: str) -> None:
        self._jobs.labels(route).inc()

    def failed(self, code: str) -> None:
        self._errors.labels(code).inc()

    def observe_list(self, answer: Document | list[Document]) -> None:
        """Count the errors in the answer to a list."""
        for document in answer if isinstance(answer, list) else []:
            if "error" in document:
                self.failed(str(document["code"]))

    def observe(self, outcome: Outcome) -> None:
        """Count one recording."""
        self._recordings.labels(outcome.code or "ok").inc()
        if outcome.transcript is None:
            return
        audio_seconds = outcome.transcript.seconds
        self._audio_seconds.inc(audio_seconds)
        for stage, seconds in outcome.stage_seconds.items():
            self._stage_seconds.labels(stage).observe(seconds)
        self._rtfx.observe(audio_seconds / max(outcome.stage_seconds["total"], 1e-6))

    def exposition(self) -> bytes:
        """The metrics in Prometheus' text format."""
        return generate_latest(self._registry)


class _Load(Collector):
    """The batcher's counters, read at each scrape."""

    def __init__(self, batcher: Batcher) -> None:
        self._batcher = batcher

    def collect(self) -> Iterable[Metric]:
        load = self._batcher.load
        gauges = {
            "parakeet_queue_seconds": ("Seconds of queued audio.", load.waiting_seconds),
            "parakeet_batch_budget_seconds": (
                "Maximum seconds per batch, including padding.",
                load.budget_seconds,
            ),
            "parakeet_engine_lost": (
                "Whether the engine has failed permanently.", float(self._batcher.lost),
            ),
        }  # fmt: skip
        counters = {
            "parakeet_batches": ("Batches submitted to the engine.", load.batches),
            "parakeet_batch_chunks": ("Chunks in all batches.", load.chunks),
            "parakeet_batch_padded_seconds": (
                "Seconds in all batches, including padding; divided by batches and budget: how "
                "full they were.", load.computed_seconds,
            ),
            "parakeet_engine_busy_seconds": ("Seconds of engine work.", load.busy_seconds),
        }  # fmt: skip
        fallbacks = GaugeMetricFamily(
            "parakeet_kernel_fallbacks",
            "Whether plain PyTorch replaces a GPU kernel whose results differed.",
            labels=["kernel"],
        )
        for report in self._batcher.engine.reports:
            fallbacks.add_metric([report.name], float(report.replaced))
        yield fallbacks
        for name, (meaning, value) in gauges.items():
            yield GaugeMetricFamily(name, meaning, value)
        for name, (meaning, value) in counters.items():
            yield CounterMetricFamily(name, meaning, value)
