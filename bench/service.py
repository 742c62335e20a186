"""How much of the engine's own throughput is left behind RunPod's job loop, for many callers.

A worker is started as RunPod starts it, with so many jobs in flight: clips of all lengths, in
many formats, inside the job or behind a URL, with all kinds of options. Every answer is compared
with what the same clip is answered alone. The engine's own throughput is measured on the same
clips before and after, cut as the worker cuts them, in batches of its own choice.
"""

import argparse
import asyncio
import os
import random
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from bench import clips, harness, random_model
from bench.clips import Clip
from bench.serving import Serving, files_at, serving
from parakeet_worker import answers
from parakeet_worker.audio.decoding import SAMPLE_RATE, Decoding, find_ffmpeg
from parakeet_worker.batcher import Batcher, plan
from parakeet_worker.engine.base import Engine, Samples
from parakeet_worker.pipeline import Pipeline
from parakeet_worker.recognition import chunks
from parakeet_worker.request import Request
from parakeet_worker.settings import Settings
from parakeet_worker.wire.native import parse
from parakeet_worker.worker import VARIABLES, batch_capacity, open_detectors, open_engine

_LENGTHS_SECONDS = (0.0, 5.0, 15.0, 60.0, 180.0)
_LOOK_SECONDS = 0.2
_PATIENCE_SECONDS = 1800.0
_BATCHES_SECONDS = (15.0, 30.0, 60.0, 120.0, None)
"""Clips of all lengths in one batch are mostly padding: the engine's best is not its largest."""


@dataclass(frozen=True, slots=True)
class Latency:
    """From the moment that the worker took a job to its answer, for clips of some length."""

    from_seconds: float
    to_seconds: float
    jobs: int
    p50_seconds: float
    p95_seconds: float


@dataclass(frozen=True, slots=True)
class Pace:
    """How fast it went, and what it cost."""

    audio_seconds: float
    wall_seconds: float
    processor_seconds: float

    @property
    def audio_seconds_per_second(self) -> float:
        return self.audio_seconds / self.wall_seconds

    @property
    def processor_milliseconds(self) -> float:
        """Of all threads, per second of audio."""
        return 1000 * self.processor_seconds / self.audio_seconds


@dataclass(frozen=True, slots=True)
class Figure:
    """One run."""

    model: str
    jobs: int
    unanswered: int
    answered_twice: int
    different: tuple[str, ...]
    """Jobs that were not answered as their clip is alone."""
    service: Pace
    jobs_per_second: float
    audio_seconds_per_second: float
    ffmpeg_processor_seconds: float
    bench_processor_seconds: float
    engine: tuple[Pace, ...]
    engine_audio_seconds_per_second: float
    share_of_engine: float
    processor_share_of_engine: float
    """The same in seconds of the processors, which neighbours cannot take."""
    stage_milliseconds: Mapping[str, float]
    """Processor time per second of audio, by stage: see `stages_of`."""
    latency: tuple[Latency, ...]


def stages_of(
    *, worker: float, ffmpeg: float, engine: float, cutting: float
) -> Mapping[str, float]:
    """What each stage of the service costs, in processor milliseconds per second of audio.

    `worker` is all of its own process; the engine and the cutting (detection with it) are measured
    separately; the rest of the worker is transport, batching, words and JSON.
    """
    rest = worker - engine - cutting
    return {"ffmpeg": ffmpeg, "detection and cutting": cutting, "engine": engine, "rest": rest}


def show_stages(stages: Mapping[str, float]) -> None:
    """A line with the share of each."""
    total = sum(stages.values())
    shares = (f"{name} {cost:.3f} ({cost / total:.0%})" for name, cost in stages.items())
    print("cpu ms per audio second: " + ", ".join(shares))


class Alone:
    """The engine in this process, without load."""

    def __init__(self, engine: Engine, settings: Settings, clips: Sequence[Clip]) -> None:
        self._engine = engine
        self._settings = settings
        self._clips = clips
        engine.warm_up(settings.segment_seconds)
        self._capacity = batch_capacity(engine, settings)
        self._pieces: list[Samples] = []
        self._cutting_seconds = 0.0

    def answers(self) -> dict[str, Any]:
        """What every clip is answered, by the name of its file."""
        with Batcher(
            self._engine,
            capacity=self._capacity,
            queue_seconds=self._settings.queue_seconds,
        ) as batcher:
            detectors = open_detectors(self._settings)
            pipeline = Pipeline(self._settings, batcher, find_ffmpeg(), detectors)
            return asyncio.run(self._answers(pipeline))

    async def _answers(self, pipeline: Pipeline) -> dict[str, Any]:
        results = {}
        for number, clip in enumerate(self._clips, 1):
            print(f"\ralone: {number} of {len(self._clips)}", end="", file=sys.stderr, flush=True)
            results[clip.path.name] = await answers.answer(pipeline, clip.whole())
            self._pieces += await asyncio.to_thread(self._cut, pipeline, clip)
        print(file=sys.stderr)
        return results

    def _cut(self, pipeline: Pipeline, clip: Clip) -> list[Samples]:
        """The chunks of a clip, without overlaps."""
        (request,) = parse(clip.whole()).requests
        assert isinstance(request, Request)
        decoding = Decoding(
            clip.path, ffmpeg=pipeline.ffmpeg, max_seconds=3600, timeout_seconds=600,
            clip=request.clip, channels=request.channels,
        )  # fmt: skip
        pieces = chunks.split(
            decoding.blocks(),
            partial(pipeline.detector, request.vad),
            max_seconds=self._settings.segment_seconds,
        )
        started = time.thread_time()
        samples = [chunk.samples for chunk in pieces]
        self._cutting_seconds += time.thread_time() - started
        return samples

    @property
    def cutting_milliseconds(self) -> float:
        """Processor time of reading, detecting and cutting, per second of audio."""
        return 1000 * self._cutting_seconds / sum(clip.seconds for clip in self._clips)

    def best_pace(self) -> Pace:
        """The same in the batches in which it is fastest."""
        paces = [self.pace(batch_seconds) for batch_seconds in _BATCHES_SECONDS]
        return max(paces, key=lambda pace: pace.audio_seconds_per_second)

    def pace(self, batch_seconds: float | None = None) -> Pace:
        """Every piece straight through the engine, in batches that are as alike as can be."""
        capacity = replace(self._capacity, seconds=batch_seconds or self._capacity.seconds)
        waiting = sorted(self._pieces, key=len)
        started, processor_started = time.perf_counter(), time.process_time()
        while waiting:
            lengths = [len(piece) / SAMPLE_RATE for piece in waiting]
            chosen = set(plan(lengths, capacity))
            self._engine.transcribe([waiting[index] for index in chosen])
            waiting = [piece for index, piece in enumerate(waiting) if index not in chosen]
        return Pace(
            audio_seconds=sum(clip.seconds for clip in self._clips),
            wall_seconds=time.perf_counter() - started,
            processor_seconds=time.process_time() - processor_started,
        )


@contextmanager
def alone(settings: Settings, clips: Sequence[Clip]) -> Iterator[Alone]:
    with closing(open_engine(settings)) as engine:
        yield Alone(engine, settings, clips)


@dataclass(frozen=True, slots=True, eq=False)
class Run:
    """The submitted jobs, and the cost until the last result."""

    sent: Mapping[str, Clip]
    wall_seconds: float
    worker_seconds: float
    ffmpeg_seconds: float
    bench_seconds: float


def served(
    worker: Serving, clips: Sequence[Clip], address: str, arguments: argparse.Namespace
) -> Run:
    """Send jobs, so that some always wait, until there have been enough; wait for the answers."""
    order = random.Random(arguments.seed)  # noqa: S311
    sent: dict[str, Clip] = {}
    payloads = {clip.path: clip.payload(address) for clip in clips}
    api, turn = worker.api, list[Clip]()
    cost, bench_cost = worker.processor_seconds(), time.process_time()
    started = time.monotonic()
    ends = started + 60 * arguments.minutes
    while len(sent) < arguments.jobs and time.monotonic() < ends:
        if api.queued >= arguments.in_flight:
            time.sleep(_LOOK_SECONDS)
            continue
        turn = turn or order.sample(clips, len(clips))
        job, clip = f"job-{len(sent)}", turn.pop()
        sent[job] = clip
        api.submit(job, payloads[clip.path])
    api.answered(list(sent), _PATIENCE_SECONDS)
    ended = max(delivery.done for delivery in api.deliveries.values())
    own, ffmpeg = worker.processor_seconds()
    return Run(
        sent=sent,
        wall_seconds=ended - started,
        worker_seconds=own - cost[0],
        ffmpeg_seconds=ffmpeg - cost[1],
        bench_seconds=time.process_time() - bench_cost,
    )


def figure(
    model: str,
    run: Run,
    worker: Serving,
    answers: Mapping[str, Any],
    engine: Sequence[Pace],
    cutting_milliseconds: float,
) -> Figure:
    """Everything counted."""
    bodies = {job: worker.api.deliveries[job].bodies for job in run.sent}
    audio_seconds = sum(clip.seconds for clip in run.sent.values())
    service = Pace(audio_seconds, run.wall_seconds, run.worker_seconds + run.ffmpeg_seconds)
    engine_pace = harness.median([pace.audio_seconds_per_second for pace in engine])
    engine_cost = harness.median([pace.processor_milliseconds for pace in engine])
    return Figure(
        model=model,
        jobs=len(run.sent),
        unanswered=sum(not posted for posted in bodies.values()),
        answered_twice=sum(len(posted) > 1 for posted in bodies.values()),
        different=tuple(
            f"{job}: {clip.path.name} {dict(clip.options)}"
            for job, clip in run.sent.items()
            for body in bodies[job]
            if body != {"output": answers[clip.path.name]}
        ),
        service=service,
        jobs_per_second=len(run.sent) / run.wall_seconds,
        audio_seconds_per_second=service.audio_seconds_per_second,
        ffmpeg_processor_seconds=run.ffmpeg_seconds,
        bench_processor_seconds=run.bench_seconds,
        engine=tuple(engine),
        engine_audio_seconds_per_second=engine_pace,
        share_of_engine=service.audio_seconds_per_second / engine_pace,
        processor_share_of_engine=engine_cost / service.processor_milliseconds,
        stage_milliseconds=stages_of(
            worker=1000 * run.worker_seconds / audio_seconds,
            ffmpeg=1000 * run.ffmpeg_seconds / audio_seconds,
            engine=engine_cost,
            cutting=cutting_milliseconds,
        ),
        latency=tuple(_latencies(run, worker)),
    )


def _latencies(run: Run, worker: Serving) -> Iterator[Latency]:
    edges = [*_LENGTHS_SECONDS, float("inf")]
    for begin, end in pairwise(edges):
        took = [
            delivery.done - delivery.taken
            for job, clip in run.sent.items()
            if begin <= clip.seconds < end and (delivery := worker.api.deliveries[job]).bodies
        ]
        if took:
            longest = max(clip.seconds for clip in run.sent.values() if begin <= clip.seconds < end)
            p50, p95 = (harness.percentile(took, share) for share in (0.5, 0.95))
            yield Latency(begin, longest, len(took), p50, p95)


def model_of(arguments: argparse.Namespace) -> tuple[dict[str, str], Mapping[str, Any]]:
    """The settings of the requested model, and its properties."""
    chosen = dict(setting.split("=", 1) for setting in arguments.setting)
    common = {"device": arguments.device, **chosen}
    if arguments.model != "random":
        converted = str(arguments.work / "converted")
        return {"model": arguments.model, "converted": converted, **common}, {}
    files = random_model.made(arguments.size, arguments.work, ("nemo",))
    return {"model": str(files.nemo), "converted": str(files.converted), **common}, files.facts


def options(description: str) -> argparse.ArgumentParser:
    """Command line options of the service benchmarks."""
    parser = harness.options(description)
    parser.add_argument("--model", default="demo", help="demo, random, or as PARAKEET_MODEL")
    parser.add_argument("--in-flight", type=int, default=64, help="jobs at the worker at a time")
    parser.add_argument("--seed", type=int, default=1)
    return parser


def main() -> None:
    parser = options(__doc__ or "")
    parser.add_argument("--transport", choices=("queue", "http"), default="queue")
    parser.add_argument("--jobs", type=int, default=1000, help="at most")
    parser.add_argument("--minutes", type=float, default=30.0, help="no job is sent after them")
    parser.add_argument("--clips", type=int, default=56, help="different recordings")
    parser.add_argument("--shortest", type=float, default=2.0, help="clip, in seconds")
    parser.add_argument("--longest", type=float, help="clip; default 600 s, for http 30 s")
    arguments = harness.resolved(parser.parse_args())
    if arguments.longest is None:
        arguments.longest = 30.0 if arguments.transport == "http" else 600.0
    # Before torch is loaded, for the engine alone to compute as it does in the worker.
    os.environ["OMP_NUM_THREADS"] = str(arguments.threads)
    for variable, value in VARIABLES.items():
        os.environ.setdefault(variable, value)
    fields, facts = model_of(arguments)
    if arguments.transport == "http":
        _main_http(fields, facts, arguments)
        return
    answers = measured(fields, arguments)
    _show(answers)
    name = "random" if arguments.model == "random" else Path(arguments.model).stem
    harness.write(f"service-{name}", arguments, facts, [answers])
    if answers.unanswered or answers.answered_twice or answers.different:
        sys.exit(1)


def _main_http(
    fields: Mapping[str, str], facts: Mapping[str, Any], arguments: argparse.Namespace
) -> None:
    import torch

    from bench import callers

    torch.set_num_threads(arguments.threads)
    answers = callers.measured(fields, arguments)
    callers.show(answers)
    name = "random" if arguments.model == "random" else Path(arguments.model).stem
    harness.write(f"service-http-{name}", arguments, facts, answers)
    if any(crowd.different for crowd in answers):
        sys.exit(1)


def measured(fields: Mapping[str, str], arguments: argparse.Namespace) -> Figure:
    """The engine, the service, and the engine again."""
    import torch

    torch.set_num_threads(arguments.threads)
    log = arguments.work / "log" / "service.txt"
    with TemporaryDirectory() as kept, files_at(Path(kept)) as address:
        lengths = clips.lengths(arguments.clips, arguments.shortest, arguments.longest)
        selected = clips.made(Path(kept), lengths, arguments.seed)
        with alone(Settings.of(fields), selected) as engine:
            answers = engine.answers()
            before = engine.best_pace()
            with serving(
                fields, in_flight=arguments.in_flight, threads=arguments.threads, log=log
            ) as worker:
                run = served(worker, selected, address, arguments)
            paces = (before, engine.best_pace())
            cutting = engine.cutting_milliseconds
            return figure(arguments.model, run, worker, answers, paces, cutting)


def _show(answers: Figure) -> None:
    harness.table(
        ("model", "jobs", "jobs/s", "service audio s/s", "engine audio s/s", "share", "share, cpu"),
        [
            (
                answers.model,
                answers.jobs,
                answers.jobs_per_second,
                answers.audio_seconds_per_second,
                answers.engine_audio_seconds_per_second,
                answers.share_of_engine,
                answers.processor_share_of_engine,
            )
        ],
    )
    print()
    show_stages(answers.stage_milliseconds)
    print(
        f"unanswered {answers.unanswered}, answered twice {answers.answered_twice}, "
        f"not as alone {len(answers.different)}\n"
    )
    for line in answers.different[:5]:
        print(line)
    rows = [
        (
            f"{one.from_seconds:g} to {one.to_seconds:g} s",
            one.jobs,
            one.p50_seconds,
            one.p95_seconds,
        )
        for one in answers.latency
    ]
    harness.table(("clips of", "jobs", "p50 s", "p95 s"), rows)


if __name__ == "__main__":
    main()
