"""Figures for Prometheus."""

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
    """Counts what one server does."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._jobs = Counter(
            "parakeet_jobs", "Requests for a transcript, those that were refused with them.",
            ["door"], registry=self._registry,
        )  # fmt: skip
        self._recordings = Counter(
            "parakeet_recordings", "Recordings that were taken in hand, by how they ended: 'ok', "
            "'cancelled' or the code of an error.", ["outcome"], registry=self._registry,
        )  # fmt: skip
        self._errors = Counter(
            "parakeet_errors", "Errors that were answered, by their code.", ["code"],
            registry=self._registry,
        )  # fmt: skip
        self._running = Gauge(
            "parakeet_jobs_running", "Requests that are being answered.", registry=self._registry
        )
        self._audio_seconds = Counter(
            "parakeet_audio_seconds", "Audio that was transcribed.", registry=self._registry
        )
        self._stage_seconds = Histogram(
            "parakeet_stage_seconds", "What a recording waited for each stage, and in all.",
            ["stage"], buckets=_STAGE_SECONDS, registry=self._registry,
        )  # fmt: skip
        self._rtfx = Histogram(
            "parakeet_rtfx", "Audio seconds per second that a recording took.",
            buckets=_RTFX, registry=self._registry,
        )  # fmt: skip

    def watch(self, batcher: Batcher) -> None:
        """Show the batcher's load from now on."""
        self._registry.register(_Load(batcher))

    def running(self, change: int) -> None:
        self._running.inc(change)

    def asked(self, door: str) -> None:
        self._jobs.labels(door).inc()

    def failed(self, code: str) -> None:
        self._errors.labels(code).inc()

    def listed(self, answer: Document | list[Document]) -> None:
        """Count the errors that stand in the answer to a list."""
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

    def written(self) -> bytes:
        """The page that Prometheus reads."""
        return generate_latest(self._registry)


class _Load(Collector):
    """The batcher's own counts, read whenever the page is."""

    def __init__(self, batcher: Batcher) -> None:
        self._batcher = batcher

    def collect(self) -> Iterable[Metric]:
        load = self._batcher.load
        gauges = {
            "parakeet_queue_seconds": ("Audio that waits for the engine.", load.waiting_seconds),
            "parakeet_batch_budget_seconds": (
                "What a batch has room for, padding counted where the engine pads.",
                load.budget_seconds,
            ),
            "parakeet_engine_lost": (
                "Whether the engine has failed for good.", float(self._batcher.lost),
            ),
        }  # fmt: skip
        counters = {
            "parakeet_batches": ("Batches that the engine was given.", load.batches),
            "parakeet_batch_pieces": ("Pieces in all batches.", load.chunks),
            "parakeet_batch_padded_seconds": (
                "Audio in all batches, padding counted where the engine pads; over batches and "
                "budget: how full they were.", load.computed_seconds,
            ),
            "parakeet_engine_busy_seconds": ("How long the engine worked.", load.busy_seconds),
        }  # fmt: skip
        fallbacks = GaugeMetricFamily(
            "parakeet_kernel_fallbacks",
            "Whether plain PyTorch serves in the place of a GPU's kernel, which differed from it.",
            labels=["kernel"],
        )
        for report in self._batcher.engine.reports:
            fallbacks.add_metric([report.name], float(report.replaced))
        yield fallbacks
        for name, (meaning, value) in gauges.items():
            yield GaugeMetricFamily(name, meaning, value)
        for name, (meaning, value) in counters.items():
            yield CounterMetricFamily(name, meaning, value)
