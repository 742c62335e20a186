"""Strategies to transcribe a long recording, each run in its own process."""

import asyncio
import resource
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from bench import harness, spoken
from bench.spoken import LongRecording, plain
from parakeet_worker.audio.decoding import SAMPLE_RATE, Decoding
from parakeet_worker.engine.base import Samples
from parakeet_worker.pipeline import MAX_FULL_ATTENTION_SECONDS, Pipeline
from parakeet_worker.recognition import chunks, transcript
from parakeet_worker.recognition.chunks import Chunk, Span
from parakeet_worker.recognition.transcript import Word
from parakeet_worker.request import FileSource, Request
from parakeet_worker.settings import Settings
from parakeet_worker.worker import open_pipeline

WINDOW_SECONDS = 30.0
OVERLAP_SECONDS = 15.0
# Chunks in flight, as in the worker for one recording.
_CONCURRENT_CHUNKS = 16
_ALONE_EDGE_SECONDS = 0.25
_COMMON_WORD_SECONDS = 0.4


@dataclass(frozen=True, slots=True)
class HypothesisWord:
    """A word without case and punctuation, with its start time."""

    text: str
    start_seconds: float


Words = list[HypothesisWord]


@dataclass(frozen=True, slots=True)
class StrategyResult:
    """Output of a strategy."""

    words: Words
    stats: dict[str, float] | None = None
    """Statistics of the worker, if it was used."""
    uncovered_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Cuts:
    """Cut points in seconds."""

    in_speech: tuple[float, ...] = ()
    in_pauses: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Run:
    """Output and cost of a strategy."""

    output: StrategyResult
    cuts: Cuts
    wall_seconds: float
    processor_seconds: float
    """CPU time of the process and of ffmpeg."""
    idle_mebibytes: float
    peak_over_idle_mebibytes: float


@dataclass(frozen=True, slots=True)
class RunRequest:
    """A strategy by name, and the recording."""

    strategy: str
    path: Path
    recording: LongRecording
    settings: dict[str, Any]


def run(request: RunRequest) -> Run:
    """Transcribe the recording in a fresh process."""
    harness.die_first()
    strategy = STRATEGIES[request.strategy]
    with open_pipeline(Settings.of(request.settings)) as pipeline:
        # Mapped weights become resident on first use.
        pipeline.batcher.submit([np.zeros(2 * SAMPLE_RATE, np.float32)])[0].result()
        idle = harness.reset_peak()
        started, cpu_started = time.perf_counter(), _processor_seconds()
        output = strategy.transcribe(pipeline, request.path, request.recording)
        wall_seconds = time.perf_counter() - started
        processor_seconds = _processor_seconds() - cpu_started
        over_idle = harness.resident_mebibytes("VmHWM") - idle
        cuts = strategy.cuts(pipeline, request.path, request.recording)
    return Run(output, cuts, wall_seconds, processor_seconds, idle, over_idle)


def _processor_seconds() -> float:
    own = resource.getrusage(resource.RUSAGE_SELF)
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime


def _plain(words: Iterable[Word]) -> Words:
    return [
        HypothesisWord(plain(word.text), word.start_seconds) for word in words if plain(word.text)
    ]


def worker(pipeline: Pipeline, path: Path, _: LongRecording, **options: Any) -> StrategyResult:
    """Transcribe as for a job."""
    result = asyncio.run(pipeline.transcribe(Request(source=FileSource(path), **options)))
    uncovered = sum(span.seconds for span in result.uncovered)
    return StrategyResult(_plain(result.words), asdict(result.stats), uncovered)


def worker_cuts(pipeline: Pipeline, path: Path, _: LongRecording, **options: Any) -> Cuts:
    """The cuts of the worker, recomputed."""
    return _worker_cuts(pipeline, path, Request(FileSource(path), **options))


def _worker_cuts(pipeline: Pipeline, path: Path, request: Request) -> Cuts:
    in_speech: list[float] = []
    in_pauses: list[float] = []
    settings = pipeline.settings
    decoding = Decoding(
        path,
        ffmpeg=pipeline.ffmpeg,
        max_seconds=settings.max_audio_seconds,
        timeout_seconds=settings.decode_timeout_seconds,
    )
    pieces = chunks.split(
        decoding.blocks(),
        partial(pipeline.detector, request.vad),
        max_seconds=settings.segment_seconds,
    )
    for chunk in pieces:
        (in_speech if chunk.cut_in_speech else in_pauses).append(chunk.end_seconds)
    return Cuts(tuple(in_speech), tuple(in_pauses))


def alone(pipeline: Pipeline, path: Path, recording: LongRecording) -> StrategyResult:
    """Transcribe each utterance separately, with its background from the recording."""
    pieces = _alone(path, recording)
    words = [word for _, decoded in _transcribed(pipeline, pieces) for word in decoded]
    return StrategyResult(sorted(words, key=lambda word: word.start_seconds))


def _alone(path: Path, recording: LongRecording) -> Iterator[Chunk]:
    """Padding that would overlap a neighbouring utterance is replaced by room noise."""
    spans = recording.utterances
    ends = [0.0, *(span.end_seconds for span in spans[:-1])]
    begins = [*(span.start_seconds for span in spans[1:]), recording.seconds]
    chance = np.random.default_rng(0)
    for span, end_before, begin_after in zip(spans, ends, begins, strict=True):
        lead = min(_ALONE_EDGE_SECONDS, (span.start_seconds - end_before) / 2)
        tail = min(_ALONE_EDGE_SECONDS, (begin_after - span.end_seconds) / 2)
        cut = Span(span.start_seconds - lead, span.end_seconds + tail)
        (samples,) = spoken.read_spans(path, [cut])
        rest = [_noise(_ALONE_EDGE_SECONDS - kept, chance) for kept in (lead, tail)]
        begin = cut.start_seconds - len(rest[0]) / SAMPLE_RATE
        yield Chunk(begin, np.concatenate((rest[0], samples, rest[1])))


def _noise(seconds: float, chance: np.random.Generator) -> Samples:
    count = round(max(0.0, seconds) * SAMPLE_RATE)
    return chance.standard_normal(count).astype(np.float32) * np.float32(1e-4)


def windows(
    pipeline: Pipeline, path: Path, recording: LongRecording, *, overlap: float
) -> StrategyResult:
    """Cut at fixed times; the words of overlapping windows are merged."""
    starts = np.arange(0, max(0.1, recording.seconds - overlap), WINDOW_SECONDS - overlap)
    spans = [Span(float(start), float(start) + WINDOW_SECONDS) for start in starts]
    samples = spoken.read_spans(path, spans)
    pieces = (Chunk(span.start_seconds, cut) for span, cut in zip(spans, samples, strict=True))
    merged: Words = []
    for piece, words in _transcribed(pipeline, pieces):
        merged = merge(merged, words, Span(piece.start_seconds, piece.start_seconds + overlap))
    return StrategyResult(merged)


def merge(left: Words, right: Words, shared: Span) -> Words:
    """Switch windows at the common word closest to the middle of the overlap, or there."""
    middle = (shared.start_seconds + shared.end_seconds) / 2
    first = next(
        (n for n, word in enumerate(left) if word.start_seconds >= shared.start_seconds), len(left)
    )
    common = [
        (first + row, column)
        for row, word in enumerate(left[first:])
        for column, other in enumerate(right)
        if word.text == other.text
        and abs(word.start_seconds - other.start_seconds) < _COMMON_WORD_SECONDS
    ]
    if common:
        row, column = min(common, key=lambda pair: abs(left[pair[0]].start_seconds - middle))
        return left[:row] + right[column:]
    return [word for word in left if word.start_seconds < middle] + [
        word for word in right if word.start_seconds >= middle
    ]


def window_cuts(_: Pipeline, __: Path, recording: LongRecording, *, overlap: float) -> Cuts:
    """In the middle of each overlap."""
    step = WINDOW_SECONDS - overlap
    return Cuts(tuple(np.arange(step + overlap / 2, recording.seconds, step).tolist()))


def _transcribed(pipeline: Pipeline, pieces: Iterable[Chunk]) -> Iterator[tuple[Chunk, Words]]:
    rest = iter(pieces)
    while group := list(islice(rest, _CONCURRENT_CHUNKS)):
        answers = pipeline.batcher.submit([piece.samples for piece in group])
        for piece, answer in zip(group, answers, strict=True):
            yield piece, _plain(transcript.stitch(piece, answer.result()).words)


def no_cuts(_: Pipeline, __: Path, ___: LongRecording) -> Cuts:
    return Cuts()


@dataclass(frozen=True, slots=True)
class Strategy:
    """How to transcribe a long recording, and its cut points."""

    transcribe: Callable[[Pipeline, Path, LongRecording], StrategyResult]
    cuts: Callable[[Pipeline, Path, LongRecording], Cuts] = no_cuts
    longest_seconds: float = np.inf


ALONE = "each utterance alone"
STRATEGIES = {
    ALONE: Strategy(alone),
    "worker": Strategy(worker, worker_cuts),
    "worker, vad off": Strategy(partial(worker, vad="off"), partial(worker_cuts, vad="off")),
    "every 30 s": Strategy(partial(windows, overlap=0.0), partial(window_cuts, overlap=0.0)),
    "30 s, 15 s overlap": Strategy(
        partial(windows, overlap=OVERLAP_SECONDS), partial(window_cuts, overlap=OVERLAP_SECONDS)
    ),
    "one pass": Strategy(
        partial(worker, attention="full"), longest_seconds=MAX_FULL_ATTENTION_SECONDS
    ),
}
