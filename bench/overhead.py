"""Cost of the service around an engine without computation.

Requests use the worker's pipeline with a worker's concurrency; the engine returns immediately, with
as many tokens as in speech, and so does the detector's network. Measured are the CPU time of the
event loop's thread and the delay of a timer on it; the same timer in an idle process measures the
scheduling delay of the machine. The baseline is one ffmpeg per core that decodes the same files.
"""

import asyncio
import multiprocessing
import os
import random
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import BinaryIO

import numpy as np
import psutil

import recordings
from bench import clips, harness
from parakeet_worker import answers, outcome
from parakeet_worker.audio.decoding import SAMPLE_RATE, find_ffmpeg
from parakeet_worker.batcher import Batcher
from parakeet_worker.engine.base import (
    Capacity,
    Hypothesis,
    Outcome,
    Samples,
    SynchronousEngine,
    Token,
    Waveform,
)
from parakeet_worker.pipeline import Pipeline
from parakeet_worker.request import FileSource, JobInput, Request
from parakeet_worker.settings import Settings
from parakeet_worker.vad.base import (
    CONTEXT_SAMPLES,
    FRAME_SAMPLES,
    Inference,
    NetworkState,
)
from parakeet_worker.vad.detectors import Detectors
from parakeet_worker.worker import gc_frozen, ingest_processes, open_detectors

_FRAME_SECONDS = 0.08
_FRAMES_PER_TOKEN = 4
_TOKENS_PER_WORD = 3
_LOUD = 0.003
_INSPECTED = 8  # one of so many samples
_TICK_SECONDS = 0.005
_CLIPS = 200
_SHORT_SECONDS = 8.0
_LONG_SECONDS = 3 * 3600.0
_FULL_SECONDS = 20 * 60.0

_FORMATS: dict[str, tuple[str, tuple[str, ...]]] = {
    "wav 16 kHz": ("wav", ("-ar", "16000", "-ac", "1")),
    "flac 16 kHz": ("flac", ("-ar", "16000", "-ac", "1")),
    "mp3 44.1 kHz stereo": ("mp3", ("-ar", "44100", "-ac", "2", "-b:a", "128k")),
    "aac 44.1 kHz stereo": ("m4a", ("-ar", "44100", "-ac", "2", "-b:a", "128k")),
    "opus 48 kHz": ("opus", ("-c:a", "libopus", "-b:a", "32k")),
    "vorbis 44.1 kHz stereo": ("ogg", ("-c:a", "libvorbis", "-ar", "44100", "-ac", "2")),
}


@dataclass(frozen=True, slots=True)
class Figure:
    """One case."""

    case: str
    detector: str
    recordings: int
    audio_seconds: float
    wall_seconds: float
    audio_seconds_per_second: float
    audio_seconds_per_second_per_core: float
    """Of the processor time of the worker, its ingest processes and its ffmpegs."""
    ffmpeg_alone_audio_seconds_per_second: float
    worker_milliseconds_per_audio_second: float
    """Processor time of the worker's own process."""
    ingest_milliseconds_per_audio_second: float
    """Of its ingest processes; 0 if threads decode and cut."""
    ffmpeg_milliseconds_per_audio_second: float
    loop_milliseconds_per_audio_second: float
    longest_block_milliseconds: float
    """How late a timer on the loop fired at worst, without the time in which its thread could have
    run and the machine gave it no core."""
    longest_late_milliseconds: float
    """The same with that time."""
    longest_late_elsewhere_milliseconds: float
    """The same in an idle process: the scheduling delay of the machine."""
    peak_mebibytes: float
    """Highest resident memory of the worker and its ingest processes, over that before the case."""
    p50_seconds: float
    p95_seconds: float


class FreeEngine(SynchronousEngine):
    """Emits a token every 0.32 s without computing."""

    def __init__(self) -> None:
        self._tokens: tuple[Token, ...] = ()

    def transcribe(
        self,
        batch: Sequence[Waveform],
        scripts: Sequence[object] = (),  # noqa: ARG002
    ) -> list[Outcome]:
        return [self._hypothesis(len(samples)) for samples in batch]

    def _hypothesis(self, samples: int) -> Hypothesis:
        count = round(samples / SAMPLE_RATE / _FRAME_SECONDS) // _FRAMES_PER_TOKEN
        if count > len(self._tokens):
            self._tokens = tuple(map(_token, range(count)))
        return Hypothesis(self._tokens[:count], _FRAME_SECONDS)

    def warm_up(self, chunk_seconds: float) -> None:
        """There is nothing to do once."""

    def capacity(self, chunk_seconds: float) -> Capacity:
        return Capacity(64 * chunk_seconds, 64, packed=True)

    def close(self) -> None:
        """There is nothing to give back."""


def _token(number: int) -> Token:
    begins = number % _TOKENS_PER_WORD == 0
    piece = f"▁w{number % 97}" if begins else "ab"
    if number % 36 == 35:
        piece = "."
    return Token(piece, number * _FRAMES_PER_TOKEN, _FRAMES_PER_TOKEN, -0.01)


class FreeNetwork:
    """Detects every sound as speech, at almost no cost, within the worker's detector."""

    _state = (np.zeros(0, dtype=np.float32), np.zeros(0, dtype=np.float32))

    def probabilities(
        self,
        block: Samples,
        state: NetworkState | None,  # noqa: ARG002
    ) -> Inference:
        """See `VadBackend.probabilities`."""
        frames = block[CONTEXT_SAMPLES:].reshape(-1, FRAME_SAMPLES)
        loud = np.abs(frames[:, ::_INSPECTED]).max(axis=1) > _LOUD
        return np.where(loud, np.float32(0.9), np.float32(0.01)), self._state


@dataclass(frozen=True, slots=True)
class Case:
    """Recordings that are transcribed at the same time."""

    name: str
    paths: tuple[Path, ...]
    seconds: tuple[float, ...]
    attention: str = "pieces"


def made(folder: Path, minutes: float) -> list[Case]:
    """The cases' files, made once."""
    folder.mkdir(parents=True, exist_ok=True)
    files = {name: _file(folder, name, 300.0) for name in _FORMATS}
    count = max(1, round(minutes / 5))
    cases = [Case(name, (path,) * count, (300.0,) * count) for name, path in files.items()]
    shorts = [_file(folder, name, _SHORT_SECONDS) for name in _FORMATS]
    count = max(6, round(minutes * 60 / _SHORT_SECONDS / 8))
    each = tuple(shorts[number % len(shorts)] for number in range(count))
    cases.append(Case("8 s clips, all formats", each, (_SHORT_SECONDS,) * count))
    mixed, lengths = _mixed(files, shorts, minutes)
    cases.append(Case("mix of all", mixed, lengths))
    full = _repeated(folder, files["flac 16 kHz"], _FULL_SECONDS)
    cases.append(Case("20 minutes, attention full", (full,), (_FULL_SECONDS,), attention="full"))
    for name in ("mp3 44.1 kHz stereo", "wav 16 kHz", "aac 44.1 kHz stereo"):
        path = _repeated(folder, files[name], _LONG_SECONDS)
        cases.append(Case(f"one file of 3 h, {name}", (path,), (_LONG_SECONDS,)))
    return cases


def _mixed(
    files: dict[str, Path], shorts: Sequence[Path], minutes: float
) -> tuple[tuple[Path, ...], tuple[float, ...]]:
    """A long file for every ten short ones."""
    chance = random.Random(1)  # noqa: S311
    paths, lengths = list[Path](), list[float]()
    for number in range(max(1, round(minutes / 6.3))):
        paths += [list(files.values())[number % len(files)], *chance.choices(shorts, k=10)]
        lengths += [300.0, *[_SHORT_SECONDS] * 10]
    return tuple(paths), tuple(lengths)


def _file(folder: Path, name: str, seconds: float) -> Path:
    ending, options = _FORMATS[name]
    path = folder / f"{name.replace(' ', '-')}-{seconds:g}.{ending}"
    if not path.exists():
        spoken = clips.row(seconds, seed=1)
        partial = path.with_name(f"partial-{path.name}")
        recordings.encode(partial, *options, samples=spoken)
        partial.rename(path)
    return path


def _repeated(folder: Path, path: Path, seconds: float) -> Path:
    target = folder / f"long-{seconds:g}-{path.name}"
    if not target.exists():
        partial = target.with_name(f"partial-{target.name}")
        recordings.repeat(path, partial, -(-round(seconds) // 300))
        partial.rename(target)
    return target


class Loop:
    """What one event loop's thread spends, and how long it is not there for others."""

    def __init__(self) -> None:
        self.longest_late_seconds = 0.0
        self.longest_block_seconds = 0.0
        self.ticking_seconds = 0.0
        """Processor time of looking at it, which is none of the service's."""

    async def tick(self) -> None:
        """Measure repeatedly how late a timer fires."""
        with _schedstat() as stat:
            while True:
                started, waited = time.monotonic(), _waited_seconds(stat)
                await asyncio.sleep(_TICK_SECONDS)
                began = time.thread_time()
                late = time.monotonic() - started - _TICK_SECONDS
                block = late - (_waited_seconds(stat) - waited)
                self.longest_late_seconds = max(self.longest_late_seconds, late)
                self.longest_block_seconds = max(self.longest_block_seconds, block)
                self.ticking_seconds += time.thread_time() - began


def _schedstat() -> BinaryIO:
    """What the kernel counts of this thread: `sched.rst` of its documentation."""
    return Path(f"/proc/self/task/{threading.get_native_id()}/schedstat").open("rb", buffering=0)


def _waited_seconds(stat: BinaryIO) -> float:
    """How long the thread has been waiting for a core, ever."""
    return int(os.pread(stat.fileno(), 100, 0).split()[1]) / 1e9


def _tick_elsewhere(connection: Connection) -> None:
    """The same timer in an idle process, until it is stopped."""
    longest = 0.0
    while not connection.poll(0):
        started = time.monotonic()
        time.sleep(_TICK_SECONDS)
        longest = max(longest, time.monotonic() - started - _TICK_SECONDS)
    connection.send(longest)


@contextmanager
def _elsewhere() -> Iterator[Connection]:
    receiver, sender = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(
        target=_tick_elsewhere, args=(sender,), daemon=True
    )
    process.start()
    try:
        yield receiver
    finally:
        process.terminate()
        process.join()


def _ffmpeg_alone(ffmpeg: Path, case: Case) -> float:
    """Audio seconds a second of as many ffmpegs as there are cores, on the case's files."""
    cores = len(os.sched_getaffinity(0))
    files = list(zip(case.paths, case.seconds, strict=True))
    if len(files) < cores:
        files *= cores

    def decode(path: Path) -> None:
        command = [
            str(ffmpeg), "-nostdin", "-v", "error", "-i", f"file:{path}", "-map", "0:a:0",
            "-ac", "1", "-ar", str(SAMPLE_RATE), "-f", "f32le", "-flush_packets", "0", "pipe:1",
        ]  # fmt: skip
        subprocess.run(command, stdout=subprocess.DEVNULL, check=True)

    started = time.monotonic()
    with ThreadPoolExecutor(cores) as pool:
        list(pool.map(decode, [path for path, _ in files]))
    return sum(seconds for _, seconds in files) / (time.monotonic() - started)


async def _transcribed(pipeline: Pipeline, case: Case, at_a_time: int) -> list[float]:
    """How long each took, with so many inside."""
    turns, took = asyncio.Semaphore(at_a_time), list[float]()

    def seen(ended: outcome.Outcome) -> None:
        if ended.code is not None:
            raise RuntimeError(f"{case.name}: {ended.code}")

    async def one(path: Path) -> None:
        request = Request(
            FileSource(path),
            format="verbose_json",
            attention=case.attention,  # type: ignore[arg-type]
        )
        async with turns:
            started = time.monotonic()
            await answers.answer_job(pipeline, JobInput((request,), listed=False), seen)
            took.append(time.monotonic() - started)

    async with asyncio.TaskGroup() as group:
        for path in case.paths:
            group.create_task(one(path))
    return took


@dataclass(frozen=True, slots=True)
class _Processors:
    """Seconds of processor time."""

    worker: float
    ingest: float
    ffmpeg: float

    @classmethod
    def used(cls, ingest: Sequence[psutil.Process]) -> "_Processors":
        """By this process, by the ingest processes, and by the ended children of all."""
        own, *others = [process.cpu_times() for process in (psutil.Process(), *ingest)]
        return cls(
            own.user + own.system,
            sum(other.user + other.system for other in others),
            sum(each.children_user + each.children_system for each in (own, *others)),
        )

    def since(self, before: "_Processors") -> "_Processors":
        return _Processors(
            self.worker - before.worker, self.ingest - before.ingest, self.ffmpeg - before.ffmpeg
        )

    @property
    def total(self) -> float:
        return self.worker + self.ingest + self.ffmpeg


def measured(pipeline: Pipeline, case: Case, detector: str, at_a_time: int) -> Figure:
    """One case, and what ffmpeg alone does before it."""
    alone = _ffmpeg_alone(pipeline.ffmpeg, case)
    loop = Loop()
    ingest = [psutil.Process(process.pid) for process in pipeline.processes or ()]
    pids = (os.getpid(), *(process.pid for process in ingest))
    idle_mebibytes = sum(map(harness.reset_peak, pids))

    async def run() -> tuple[list[float], float, float]:
        ticking = asyncio.create_task(loop.tick())
        started, cpu = time.monotonic(), time.thread_time()
        took = await _transcribed(pipeline, case, at_a_time)
        spent = time.monotonic() - started, time.thread_time() - cpu - loop.ticking_seconds
        ticking.cancel()
        return took, *spent

    before = _Processors.used(ingest)
    with _elsewhere() as elsewhere:
        took, wall_seconds, loop_seconds = asyncio.run(run())
        elsewhere.send(None)
        late_elsewhere: float = elsewhere.recv()
    spent = _Processors.used(ingest).since(before)
    audio_seconds = sum(case.seconds)
    peak_mebibytes = sum(harness.resident_mebibytes("VmHWM", pid) for pid in pids)
    return Figure(
        case=case.name,
        detector=detector,
        recordings=len(case.paths),
        audio_seconds=audio_seconds,
        wall_seconds=wall_seconds,
        audio_seconds_per_second=audio_seconds / wall_seconds,
        audio_seconds_per_second_per_core=audio_seconds / spent.total,
        ffmpeg_alone_audio_seconds_per_second=alone,
        worker_milliseconds_per_audio_second=1000 * spent.worker / audio_seconds,
        ingest_milliseconds_per_audio_second=1000 * spent.ingest / audio_seconds,
        ffmpeg_milliseconds_per_audio_second=1000 * spent.ffmpeg / audio_seconds,
        loop_milliseconds_per_audio_second=1000 * loop_seconds / audio_seconds,
        longest_block_milliseconds=1000 * loop.longest_block_seconds,
        longest_late_milliseconds=1000 * loop.longest_late_seconds,
        longest_late_elsewhere_milliseconds=1000 * late_elsewhere,
        peak_mebibytes=peak_mebibytes - idle_mebibytes,
        p50_seconds=harness.percentile(took, 0.5),
        p95_seconds=harness.percentile(took, 0.95),
    )


def _warming(cases: Sequence[Case]) -> Case:
    """A clip of every format: the first answer of all loads what finds the language."""
    clips = next(case for case in cases if case.name.startswith("8 s"))
    return Case("warming", clips.paths[: len(_FORMATS)], clips.seconds[: len(_FORMATS)])


def clip_latency(pipeline: Pipeline, cases: Sequence[Case]) -> tuple[float, float]:
    """p95 seconds of an 8 s clip, alone and while a file of 3 h is transcribed."""
    clip = next(case for case in cases if case.name.startswith("8 s"))
    long = next(case for case in cases if "3 h, mp3" in case.name)
    each = tuple(clip.paths[number % len(clip.paths)] for number in range(_CLIPS))
    some = Case("8 s", each, (_SHORT_SECONDS,) * _CLIPS)

    async def run() -> tuple[list[float], list[float]]:
        alone = await _transcribed(pipeline, some, 1)
        running = asyncio.create_task(_transcribed(pipeline, long, 1))
        await asyncio.sleep(1.0)
        together = await _transcribed(pipeline, some, 1)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        return alone, together

    alone, together = asyncio.run(run())
    return harness.percentile(alone, 0.95), harness.percentile(together, 0.95)


def detectors(name: str) -> Detectors:
    """The worker's own, around a network that costs nothing or its own."""
    if name == "free":
        return Detectors(FreeNetwork())
    return open_detectors(Settings(model="demo", device="cpu"))


def main() -> None:
    parser = harness.options(__doc__ or "")
    parser.add_argument("--minutes", type=float, default=120.0, help="of audio in each case")
    parser.add_argument("--at-a-time", type=int, default=16, help="recordings")
    parser.add_argument("--detector", choices=("free", "silero"), default="free")
    parser.add_argument("--only", default="", help="cases whose name holds this")
    arguments = harness.resolved(parser.parse_args())
    cases = made(arguments.work / "overhead", arguments.minutes)
    fields = dict(setting.split("=", 1) for setting in arguments.setting)
    settings = Settings.of({"engine": "tones", **fields})
    engine = FreeEngine()
    with (
        Batcher(
            engine,
            capacity=engine.capacity(settings.segment_seconds),
            queue_seconds=settings.queue_seconds,
        ) as batcher,
        ExitStack() as stack,
    ):
        speech = detectors(arguments.detector)
        processes = stack.enter_context(ingest_processes(settings, engine, speech.backend))
        pipeline = Pipeline(settings, batcher, find_ffmpeg(), speech, processes=processes)
        selected = [case for case in cases if arguments.only in case.name]
        results = []
        asyncio.run(_transcribed(pipeline, _warming(cases), 1))
        with gc_frozen():
            for case in selected:
                results.append(measured(pipeline, case, arguments.detector, arguments.at_a_time))
                show(results[-1:])
            alone, together = clip_latency(pipeline, cases)
    show(results)
    print(f"\np95 of an 8 s clip: alone {alone:.3f} s, with a file of 3 h {together:.3f} s")
    facts = {
        "clip_p95_alone_seconds": alone,
        "clip_p95_beside_3_h_seconds": together,
        "ffmpeg": _version(pipeline.ffmpeg),
    }
    harness.write("overhead", arguments, facts, results)


def _version(ffmpeg: Path) -> str:
    """Such as `5.1.9`, `5.1.9-0+deb12u1` of Debian or `7.0.2-static` of a package."""
    shown = subprocess.run([ffmpeg, "-version"], capture_output=True, text=True, check=True)
    return shown.stdout.split()[2]


def show(results: Sequence[Figure]) -> None:
    """A line for each case."""
    harness.table(
        ("case", "audio s/s", "per core", "ffmpeg alone", "share", "worker ms", "ingest ms",
         "ffmpeg ms", "loop ms", "block ms", "late ms", "elsewhere", "peak MiB",
         "p95 s"),
        [
            (
                one.case, one.audio_seconds_per_second, one.audio_seconds_per_second_per_core,
                one.ffmpeg_alone_audio_seconds_per_second,
                one.audio_seconds_per_second / one.ffmpeg_alone_audio_seconds_per_second,
                one.worker_milliseconds_per_audio_second,
                one.ingest_milliseconds_per_audio_second,
                one.ffmpeg_milliseconds_per_audio_second,
                one.loop_milliseconds_per_audio_second, one.longest_block_milliseconds,
                one.longest_late_milliseconds, one.longest_late_elsewhere_milliseconds,
                one.peak_mebibytes, one.p95_seconds,
            )
            for one in results
        ],
    )  # fmt: skip


if __name__ == "__main__":
    main()
