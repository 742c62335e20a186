"""`parakeet verify`: check the files of a model, transcribe a clip, and measure the engine."""

import asyncio
import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import numpy as np

from parakeet_worker import weights
from parakeet_worker.audio.decoding import Decoding, find_ffmpeg
from parakeet_worker.engine.base import SAMPLE_RATE, Engine, Hypothesis, Outcome, Samples
from parakeet_worker.engine.kernel_report import KernelReport
from parakeet_worker.model import open_model
from parakeet_worker.settings import Settings
from parakeet_worker.weights.digests import FileCheck, check_files
from parakeet_worker.worker import open_engine

CLIP = Path(str(files("parakeet_worker") / "checkpoints" / "clip.ogg"))
"""A clip in the package: one sentence of clear English."""


@dataclass(frozen=True, slots=True)
class ClipResult:
    """Transcription of `CLIP` by a model that was just opened."""

    engine: str
    ready_seconds: float
    """Imports, loading the weights and warm-up."""
    clip_seconds: float
    transcribe_seconds: float
    expected: str
    text: str
    kernels: tuple[KernelReport, ...]
    """Results of comparing GPU kernels with plain PyTorch."""


def check_weights(settings: Settings) -> Iterator[FileCheck]:
    """Check the files of the configured model; raises `WeightsMissing`."""
    kinds: tuple[weights.Kind, ...] = ("nemo",) if settings.engine == "nemo" else weights.ANY_KIND
    checkpoint = weights.find(settings.model, kinds, revision=settings.model_revision)
    return check_files(checkpoint)


def transcribe_clip(settings: Settings) -> ClipResult:
    """Open the model as a worker does and transcribe `CLIP`; raises `SetupError`."""
    started = time.monotonic()
    with open_model(**settings.model_dump()) as model:
        ready = time.monotonic()
        transcript = model.transcribe(CLIP)
        return ClipResult(
            engine=model.engine,
            ready_seconds=ready - started,
            clip_seconds=transcript.seconds,
            transcribe_seconds=time.monotonic() - ready,
            expected=CLIP.with_suffix(".txt").read_text(encoding="utf-8").strip(),
            text=transcript.text,
            kernels=model.kernels,
        )


@dataclass(frozen=True, slots=True)
class Workload:
    """Amount of work for a measurement."""

    compared: int
    """Number of chunks transcribed both alone and in batches."""
    batch: int
    """Number of chunks of 30 s in the measured batch."""
    repeats: int
    seconds: float
    """Upper limit for all repeats."""


ON_GPU = Workload(compared=1000, batch=32, repeats=100, seconds=20.0)
ON_CPU = Workload(compared=12, batch=2, repeats=5, seconds=20.0)

_BATCH = 64
_SHORT_SECONDS = 8.0
_FULL_SECONDS = 30.0
_MEBIBYTE = 2**20


@dataclass(frozen=True, slots=True)
class Performance:
    """Measured accuracy, speed and memory of an engine on its device."""

    engine: str
    comparisons: tuple[str, ...]
    """One line per kernel or chain compared with plain PyTorch at start; empty without kernels."""
    replaced: int
    """Number of these that were replaced by plain PyTorch."""
    compared: int
    """Number of chunks transcribed both alone and in batches."""
    different: int
    """Number of these whose text in a batch differs from the text alone."""
    alone_seconds: float
    """Median latency of one chunk of 8 s."""
    alone_p95_seconds: float
    batch: int
    """Number of chunks of 30 s in the measured batch."""
    audio_seconds_per_second: float
    """Throughput of that batch."""
    peak_mebibytes: float
    """Peak of reserved GPU memory, or of resident memory on a CPU."""


def measure(settings: Settings, workload: Workload | None = None) -> Performance:
    """Open the engine as a worker does and measure it; raises `SetupError` and `EngineError`.

    Takes one to two minutes on a GPU. `workload` defaults to that of the device.
    """
    from parakeet_worker.engine import device as devices  # which imports torch

    clip = asyncio.run(_decoded(CLIP, settings))
    device = devices.select(settings.device)
    with closing(open_engine(settings)) as engine:
        engine.warm_up(settings.segment_seconds)
        chosen = workload or (ON_GPU if device.type == "cuda" else ON_CPU)
        alone, rate = _speed(engine, clip, chosen)
        reports = engine.reports
        return Performance(
            engine=str(engine),
            comparisons=tuple(str(report) for report in reports),
            replaced=sum(report.replaced for report in reports),
            compared=chosen.compared,
            different=_different(engine, clip, chosen.compared),
            alone_seconds=statistics.median(alone),
            alone_p95_seconds=sorted(alone)[math.ceil(0.95 * len(alone)) - 1],
            batch=chosen.batch,
            audio_seconds_per_second=rate,
            peak_mebibytes=devices.peak_memory_bytes(device) / _MEBIBYTE,
        )


async def _decoded(path: Path, settings: Settings) -> Samples:
    recording = Decoding(
        path,
        ffmpeg=find_ffmpeg(settings.ffmpeg),
        max_seconds=60,
        timeout_seconds=60,
        precision=settings.resampling_precision,
    )
    return np.concatenate([samples async for samples in recording.samples()])


def _speed(engine: Engine, clip: Samples, workload: Workload) -> tuple[list[float], float]:
    """Latencies of one chunk of 8 s, in seconds, and audio seconds per second of a batch."""
    short, full = (_repeat_to_length(clip, seconds) for seconds in (_SHORT_SECONDS, _FULL_SECONDS))
    alone = _durations(lambda: engine.transcribe([short]), workload)
    batch = [full] * workload.batch
    together = _durations(lambda: engine.transcribe(batch), workload)
    return alone, workload.batch * _FULL_SECONDS / statistics.median(together)


def _durations(run: Callable[[], Sequence[Outcome]], workload: Workload) -> list[float]:
    """Durations of runs in seconds, after a warm-up run; raises `EngineError`."""
    durations: list[float] = []
    for outcome in run():
        _hypothesis(outcome)
    while not durations or (
        len(durations) < workload.repeats and sum(durations) < workload.seconds
    ):
        started = time.perf_counter()
        run()
        durations.append(time.perf_counter() - started)
    return durations


def _different(engine: Engine, clip: Samples, count: int) -> int:
    """Count chunks, of `count`, whose text in a batch differs from the text alone."""
    generator = np.random.default_rng(0)
    chunks = []
    for _ in range(count):
        start = int(generator.uniform(0, len(clip) / 2))
        noise = generator.normal(0, clip.std() * generator.uniform(0.01, 0.2), len(clip) - start)
        chunks.append(((clip[start:] + noise) * generator.uniform(0.2, 0.9)).astype(np.float32))
    different = 0
    for first in range(0, count, _BATCH):
        batch = chunks[first : first + _BATCH]
        together = [_text(outcome) for outcome in engine.transcribe(batch)]
        alone = [_text(engine.transcribe([chunk])[0]) for chunk in batch]
        different += sum(one != other for one, other in zip(alone, together, strict=True))
    return different


def _text(outcome: Outcome) -> str:
    return "".join(token.piece for token in _hypothesis(outcome).tokens)


def _hypothesis(outcome: Outcome) -> Hypothesis:
    if isinstance(outcome, Hypothesis):
        return outcome
    raise outcome


def _repeat_to_length(samples: Samples, seconds: float) -> Samples:
    return np.resize(samples, round(seconds * SAMPLE_RATE))
