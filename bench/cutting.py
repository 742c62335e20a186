"""Ways to hear a long recording, each in a process of its own."""

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
# As many pieces at the engine as the worker has there for one recording.
_TOGETHER = 16
_ALONE_EDGE_SECONDS = 0.25
_TWIN_SECONDS = 0.4


@dataclass(frozen=True, slots=True)
class HeardWord:
    """A word without capitals and marks, and when it begins."""

    text: str
    start_seconds: float


Words = list[HeardWord]


@dataclass(frozen=True, slots=True)
class Found:
    """What a way of cutting made of a recording."""

    words: Words
    stats: dict[str, float] | None = None
    """How the worker came by the words."""
    uncovered_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Cuts:
    """Where a recording was cut, in seconds."""

    in_speech: tuple[float, ...] = ()
    in_pauses: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Run:
    """What was found, and what it cost."""

    found: Found
    cuts: Cuts
    wall_seconds: float
    processor_seconds: float
    """Of the process and of ffmpeg."""
    idle_mebibytes: float
    peak_over_idle_mebibytes: float


@dataclass(frozen=True, slots=True)
class Asked:
    """A way by its name, and the recording."""

    strategy: str
    path: Path
    recording: LongRecording
    settings: dict[str, Any]


def run(asked: Asked) -> Run:
    """Hear the recording; this process has done nothing else before."""
    harness.die_first()
    strategy = STRATEGIES[asked.strategy]
    with open_pipeline(Settings.of(asked.settings)) as pipeline:
        # What is mapped from a file is in memory once it has been used.
        pipeline.batcher.submit([np.zeros(2 * SAMPLE_RATE, np.float32)])[0].result()
        idle = _resident("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")
        started, cpu_started = time.perf_counter(), _processor_seconds()
        found = strategy.hear(pipeline, asked.path, asked.recording)
        wall_seconds = time.perf_counter() - started
        processor_seconds = _processor_seconds() - cpu_started
        over_idle = _resident("VmHWM") - idle
        cuts = strategy.cuts(pipeline, asked.path, asked.recording)
    return Run(found, cuts, wall_seconds, processor_seconds, idle, over_idle)


def _processor_seconds() -> float:
    own = resource.getrusage(resource.RUSAGE_SELF)
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime


def _resident(field: str) -> float:
    """MiB, from the kernel's own account of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(field + ":"))


def _plain(words: Iterable[Word]) -> Words:
    return [HeardWord(plain(word.text), word.start_seconds) for word in words if plain(word.text)]


def worker(pipeline: Pipeline, path: Path, _: LongRecording, **options: Any) -> Found:
    """As a job is heard."""
    request = Request(source=FileSource(path), **options)
    heard = asyncio.run(pipeline.transcribe(request))
    uncovered = sum(span.seconds for span in heard.uncovered)
    return Found(_plain(heard.words), asdict(heard.stats), uncovered)


def worker_cuts(pipeline: Pipeline, path: Path, _: LongRecording, **options: Any) -> Cuts:
    """The worker's own, found once more."""
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
        decoding.stretches(),
        partial(pipeline.detector, request.vad),
        max_seconds=settings.segment_seconds,
    )
    for chunk in pieces:
        (in_speech if chunk.cut_in_speech else in_pauses).append(chunk.end_seconds)
    return Cuts(tuple(in_speech), tuple(in_pauses))


def alone(pipeline: Pipeline, path: Path, recording: LongRecording) -> Found:
    """Every utterance by itself, with the background that it has in the recording."""
    pieces = _alone(path, recording)
    words = [word for _, heard in _heard(pipeline, pieces) for word in heard]
    return Found(sorted(words, key=lambda word: word.start_seconds))


def _alone(path: Path, recording: LongRecording) -> Iterator[Chunk]:
    """Nothing of its neighbours is in it: where they are near, the rest is a quiet room."""
    spans = recording.utterances
    ends = [0.0, *(span.end_seconds for span in spans[:-1])]
    begins = [*(span.start_seconds for span in spans[1:]), recording.seconds]
    chance = np.random.default_rng(0)
    for span, end_before, begin_after in zip(spans, ends, begins, strict=True):
        lead = min(_ALONE_EDGE_SECONDS, (span.start_seconds - end_before) / 2)
        tail = min(_ALONE_EDGE_SECONDS, (begin_after - span.end_seconds) / 2)
        cut = Span(span.start_seconds - lead, span.end_seconds + tail)
        (samples,) = spoken.stretch(path, [cut])
        rest = [_hiss(_ALONE_EDGE_SECONDS - kept, chance) for kept in (lead, tail)]
        begin = cut.start_seconds - len(rest[0]) / SAMPLE_RATE
        yield Chunk(begin, np.concatenate((rest[0], samples, rest[1])))


def _hiss(seconds: float, chance: np.random.Generator) -> Samples:
    count = round(max(0.0, seconds) * SAMPLE_RATE)
    return chance.standard_normal(count).astype(np.float32) * np.float32(1e-4)


def windows(pipeline: Pipeline, path: Path, recording: LongRecording, *, overlap: float) -> Found:
    """Cut by the clock, wherever that falls; where windows overlap, their words are merged."""
    starts = np.arange(0, max(0.1, recording.seconds - overlap), WINDOW_SECONDS - overlap)
    spans = [Span(float(start), float(start) + WINDOW_SECONDS) for start in starts]
    samples = spoken.stretch(path, spans)
    pieces = (Chunk(span.start_seconds, cut) for span, cut in zip(spans, samples, strict=True))
    merged: Words = []
    for piece, words in _heard(pipeline, pieces):
        merged = merge(merged, words, Span(piece.start_seconds, piece.start_seconds + overlap))
    return Found(merged)


def merge(left: Words, right: Words, shared: Span) -> Words:
    """Go over from one window to the next at the word that both heard alike, nearest to the
    middle of what they share; at the middle itself where there is none.
    """
    middle = (shared.start_seconds + shared.end_seconds) / 2
    first = next(
        (n for n, word in enumerate(left) if word.start_seconds >= shared.start_seconds), len(left)
    )
    twins = [
        (first + row, column)
        for row, word in enumerate(left[first:])
        for column, other in enumerate(right)
        if word.text == other.text and abs(word.start_seconds - other.start_seconds) < _TWIN_SECONDS
    ]
    if twins:
        row, column = min(twins, key=lambda twin: abs(left[twin[0]].start_seconds - middle))
        return left[:row] + right[column:]
    return [word for word in left if word.start_seconds < middle] + [
        word for word in right if word.start_seconds >= middle
    ]


def window_cuts(_: Pipeline, __: Path, recording: LongRecording, *, overlap: float) -> Cuts:
    """In the middle of what windows share."""
    step = WINDOW_SECONDS - overlap
    return Cuts(tuple(np.arange(step + overlap / 2, recording.seconds, step).tolist()))


def _heard(pipeline: Pipeline, pieces: Iterable[Chunk]) -> Iterator[tuple[Chunk, Words]]:
    rest = iter(pieces)
    while group := list(islice(rest, _TOGETHER)):
        answers = pipeline.batcher.submit([piece.samples for piece in group])
        for piece, answer in zip(group, answers, strict=True):
            yield piece, _plain(transcript.stitch(piece, answer.result()).words)


def no_cuts(_: Pipeline, __: Path, ___: LongRecording) -> Cuts:
    return Cuts()


@dataclass(frozen=True, slots=True)
class Strategy:
    """A way to hear a long recording, and where it cuts."""

    hear: Callable[[Pipeline, Path, LongRecording], Found]
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
