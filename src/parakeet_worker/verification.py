"""An operator's first command: are these the weights that were meant, do they hear, how fast?"""

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
from parakeet_worker.weights import FileCheck
from parakeet_worker.worker import open_engine, warmed_up

CLIP = Path(str(files("parakeet_worker") / "checkpoints" / "clip.ogg"))
"""A sentence of clear English, which comes with the package."""


@dataclass(frozen=True, slots=True)
class Hearing:
    """What an engine made of the clip that comes with the package."""

    engine: str
    ready_seconds: float
    """From nothing to warm: imports, weights, first inference."""
    clip_seconds: float
    hear_seconds: float
    said: str
    heard: str
    kernels: tuple[KernelReport, ...]
    """What comparisons of a GPU's kernels with plain PyTorch found."""


def check_weights(settings: Settings) -> Iterator[FileCheck]:
    """The files of the model that the settings name; raises `WeightsMissing`."""
    kinds: tuple[weights.Kind, ...] = ("nemo",) if settings.engine == "nemo" else weights.ANY_KIND
    found = weights.find(settings.model, kinds, revision=settings.model_revision)
    return weights.check_files(found)


def hear_clip(settings: Settings) -> Hearing:
    """Open the model as a worker does and give it the clip; raises `SetupError`s."""
    started = time.monotonic()
    with open_model(**settings.model_dump()) as model:
        ready = time.monotonic()
        heard = model.transcribe(CLIP)
        return Hearing(
            engine=model.engine,
            ready_seconds=ready - started,
            clip_seconds=heard.seconds,
            hear_seconds=time.monotonic() - ready,
            said=CLIP.with_suffix(".txt").read_text(encoding="utf-8").strip(),
            heard=heard.text,
            kernels=model.kernels,
        )


@dataclass(frozen=True, slots=True)
class Workload:
    """What an engine is measured with."""

    compared: int
    """Chunks that are transcribed alone and in batches."""
    together: int
    """Chunks of 30 s at once."""
    repeats: int
    seconds: float
    """No more repeats after this time."""


ON_GPU = Workload(compared=1000, together=32, repeats=100, seconds=20.0)
ON_CPU = Workload(compared=12, together=2, repeats=5, seconds=20.0)

_BATCH = 64
_ALONE_SECONDS = 8.0
_FULL_SECONDS = 30.0
_MEBIBYTE = 2**20


@dataclass(frozen=True, slots=True)
class Performance:
    """How the engine that serves computes on its device."""

    engine: str
    comparisons: tuple[str, ...]
    """What its comparison with plain PyTorch at start found, a line for each kernel and chain;
    empty where plain PyTorch serves."""
    replaced: int
    """Of them, those that plain PyTorch serves in place of."""
    compared: int
    """Chunks that were transcribed alone and in batches."""
    different: int
    """Of them, those with another text in a batch."""
    alone_seconds: float
    """Median for one chunk of 8 s."""
    alone_p95_seconds: float
    together: int
    """Chunks of 30 s at once."""
    audio_seconds_per_second: float
    """For these."""
    peak_mebibytes: float
    """On a GPU what was reserved there at most, on a CPU resident memory."""


def measure(settings: Settings, workload: Workload | None = None) -> Performance:
    """Open the engine as a worker does and measure it; raises `SetupError`s and `EngineError`s.

    Takes a minute or two on a GPU. By default the workload is that of the device.
    """
    from parakeet_worker.engine import device as devices  # which imports torch

    clip = asyncio.run(_decoded(CLIP, settings))
    device = devices.select(settings.device)
    with closing(open_engine(settings)) as engine:
        warmed_up(engine, settings)
        chosen = workload or (ON_GPU if device.type == "cuda" else ON_CPU)
        alone, rate = _speed(engine, clip, chosen)
        # Engines without kernels compare nothing.
        reports = engine.reports
        return Performance(
            engine=str(engine),
            comparisons=tuple(str(report) for report in reports),
            replaced=sum(report.replaced for report in reports),
            compared=chosen.compared,
            different=_different(engine, clip, chosen.compared),
            alone_seconds=statistics.median(alone),
            alone_p95_seconds=sorted(alone)[math.ceil(0.95 * len(alone)) - 1],
            together=chosen.together,
            audio_seconds_per_second=rate,
            peak_mebibytes=devices.peak_memory_bytes(device) / _MEBIBYTE,
        )


async def _decoded(path: Path, settings: Settings) -> Samples:
    recording = Decoding(
        path, ffmpeg=find_ffmpeg(settings.ffmpeg), max_seconds=60, timeout_seconds=60
    )
    return np.concatenate([samples async for samples in recording.samples()])


def _speed(engine: Engine, clip: Samples, workload: Workload) -> tuple[list[float], float]:
    """Seconds of each chunk of 8 s alone, and audio seconds per second of many at once."""
    short, full = (_stretched(clip, seconds) for seconds in (_ALONE_SECONDS, _FULL_SECONDS))
    alone = _repeated(lambda: engine.transcribe([short]), workload)
    batch = [full] * workload.together
    together = _repeated(lambda: engine.transcribe(batch), workload)
    return alone, workload.together * _FULL_SECONDS / statistics.median(together)


def _repeated(run: Callable[[], Sequence[Outcome]], workload: Workload) -> list[float]:
    """Seconds of each run, after one that does not count; raises `EngineError`s."""
    spent: list[float] = []
    for outcome in run():
        _hypothesis(outcome)
    while not spent or (len(spent) < workload.repeats and sum(spent) < workload.seconds):
        started = time.perf_counter()
        run()
        spent.append(time.perf_counter() - started)
    return spent


def _different(engine: Engine, clip: Samples, count: int) -> int:
    """How many of so many chunks have another text in a batch than alone."""
    chance = np.random.default_rng(0)
    chunks = []
    for _ in range(count):
        begin = int(chance.uniform(0, len(clip) / 2))
        noise = chance.normal(0, clip.std() * chance.uniform(0.01, 0.2), len(clip) - begin)
        chunks.append(((clip[begin:] + noise) * chance.uniform(0.2, 0.9)).astype(np.float32))
    different = 0
    for first in range(0, count, _BATCH):
        batch = chunks[first : first + _BATCH]
        together = [_text(outcome) for outcome in engine.transcribe(batch)]
        alone = [_text(engine.transcribe([chunk])[0]) for chunk in batch]
        different += sum(mine != other for mine, other in zip(alone, together, strict=True))
    return different


def _text(outcome: Outcome) -> str:
    return "".join(token.piece for token in _hypothesis(outcome).tokens)


def _hypothesis(outcome: Outcome) -> Hypothesis:
    if isinstance(outcome, Hypothesis):
        return outcome
    raise outcome


def _stretched(samples: Samples, seconds: float) -> Samples:
    return np.resize(samples, round(seconds * SAMPLE_RATE))
