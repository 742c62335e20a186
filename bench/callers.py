"""Load on the HTTP server: `python -m bench.service --transport http`.

Concurrent clients upload clips to `POST /transcribe`, each the next one after its response. Every
response is compared with the transcript of the same clip alone, and throughput with
that of the engine by itself on the same pieces, before and after.
"""

import argparse
import itertools
import json
import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx
import psutil

from bench import clips, harness
from bench.clips import Clip
from http_server import Process, figure, running_server
from parakeet_worker.settings import Settings, variable

_CLIENT_COUNTS = (1, 8, 32)
_PATIENCE_SECONDS = 1800.0
_MIN_REQUESTS = 4
"""Default minimum number of requests per client, if time permits."""


@dataclass(frozen=True, slots=True)
class Crowd:
    """The result of one number of concurrent clients."""

    model: str
    clients: int
    requests: int
    different: tuple[str, ...]
    """Requests whose response differs from that of the clip alone."""
    audio_seconds: float
    wall_seconds: float
    processor_seconds: float
    """CPU time of the server and its ffmpeg processes."""
    engine_audio_seconds_per_second: float
    engine_processor_milliseconds: float
    stage_milliseconds: Mapping[str, float]
    """Processor time per second of audio, by stage."""
    p50_seconds: float
    p95_seconds: float
    batches: int
    pieces: int
    fill: float
    """Used share of the batch capacity, including padding."""

    @property
    def audio_seconds_per_second(self) -> float:
        return self.audio_seconds / self.wall_seconds

    @property
    def share_of_engine(self) -> float:
        return self.audio_seconds_per_second / self.engine_audio_seconds_per_second

    @property
    def processor_share_of_engine(self) -> float:
        """The same in seconds of the processors, which neighbours cannot take."""
        cost = 1000 * self.processor_seconds / self.audio_seconds
        return self.engine_processor_milliseconds / cost


@dataclass(frozen=True, slots=True)
class Call:
    """One request with its response and latency."""

    clip: Clip
    answer: Any
    took_seconds: float


@contextmanager
def server(fields: Mapping[str, str], threads: int) -> Iterator[Process]:
    """A server with those settings that is ready."""
    chosen = {variable(field): value for field, value in fields.items()}
    chosen["OMP_NUM_THREADS"] = str(threads)
    with TemporaryDirectory() as home, running_server(Path(home), chosen) as process:
        process.wait_until_ready()
        yield process


def crowd(
    process: Process,
    clips: Sequence[Clip],
    clients: int,
    arguments: argparse.Namespace,
    load: "Load",
) -> list[Call]:
    """Run `clients` concurrent clients for the configured time and minimum number of requests."""
    chance = random.Random(arguments.seed)  # noqa: S311
    order = itertools.chain.from_iterable(
        chance.sample(clips, len(clips)) for _ in itertools.count()
    )
    taking = threading.Lock()
    left = max(len(clips), clients * load.min_requests)
    ends = time.monotonic() + 60 * arguments.minutes

    def take() -> Clip | None:
        nonlocal left
        with taking:
            left -= 1
            return next(order) if left >= 0 and time.monotonic() < ends else None

    def client() -> list[Call]:
        calls = []
        with httpx.Client(base_url=process.url, timeout=_PATIENCE_SECONDS) as session:
            while clip := take():
                calls.append(load.send(session, clip))
        return calls

    with ThreadPoolExecutor(clients) as pool:
        turns = [pool.submit(client) for _ in range(clients)]
        return [call for turn in turns for call in turn.result()]


def send(client: httpx.Client, clip: Clip) -> Call:
    fields = {
        name: value if isinstance(value, str) else json.dumps(value)
        for name, value in clip.options.items()
    }
    started = time.monotonic()
    with clip.path.open("rb") as file:
        answer = client.post("/transcribe", files={"file": file}, data=fields)
    return Call(clip, answer.json(), time.monotonic() - started)


@dataclass(frozen=True, slots=True)
class Load:
    """The load on the server."""

    client_counts: Sequence[int] = _CLIENT_COUNTS
    min_requests: int = _MIN_REQUESTS
    """Per client, if time permits."""
    send: Callable[[httpx.Client, Clip], Call] = send


@dataclass(frozen=True, slots=True)
class _Count:
    """Totals of the server since its start."""

    batches: float
    pieces: float
    padded_seconds: float
    budget_seconds: float
    processor_seconds: float
    ffmpeg_seconds: float

    @classmethod
    def of(cls, process: Process) -> "_Count":
        page = httpx.get(f"{process.url}/metrics").text
        used = psutil.Process(process.process.pid).cpu_times()
        return cls(
            figure(page, "parakeet_batches_total"),
            figure(page, "parakeet_batch_chunks_total"),
            figure(page, "parakeet_batch_padded_seconds_total"),
            figure(page, "parakeet_batch_budget_seconds"),
            used.user + used.system + used.children_user + used.children_system,
            used.children_user + used.children_system,
        )


def measured(
    fields: Mapping[str, str], arguments: argparse.Namespace, load: "Load | None" = None
) -> list[Crowd]:
    """Measure the engine, the server with each number of clients, and the engine again."""
    from bench.service import alone

    load = load or Load()
    with TemporaryDirectory() as kept:
        lengths = clips.lengths(arguments.clips, arguments.shortest, arguments.longest)
        selected = clips.made(Path(kept), lengths, arguments.seed)
        runs = []
        with alone(Settings.of(fields), selected) as engine:
            answers, paces = engine.answers(), [engine.best_pace()]
            with server(fields, arguments.threads) as process:
                crowd(process, selected[:2], 1, arguments, load)
                for clients in load.client_counts:
                    before, started = _Count.of(process), time.monotonic()
                    calls = crowd(process, selected, clients, arguments, load)
                    wall_seconds = time.monotonic() - started
                    runs.append((clients, calls, wall_seconds, before, _Count.of(process)))
            paces.append(engine.best_pace())
    engine_pace = harness.median([pace.audio_seconds_per_second for pace in paces])
    engine_cost = harness.median([pace.processor_milliseconds for pace in paces])
    cost = _Cost(engine_pace, engine_cost, engine.cutting_milliseconds)
    return [_crowd(arguments.model, run, answers, cost) for run in runs]


@dataclass(frozen=True, slots=True)
class _Cost:
    """Cost of the engine alone, and of cutting."""

    engine_audio_seconds_per_second: float
    engine_milliseconds: float
    cutting_milliseconds: float


def _crowd(
    model: str,
    run: tuple[int, list[Call], float, _Count, _Count],
    answers: Mapping[str, Any],
    cost: _Cost,
) -> Crowd:
    from bench.service import stages_of

    clients, calls, wall_seconds, before, after = run
    took = [call.took_seconds for call in calls]
    audio_seconds = sum(call.clip.seconds for call in calls)
    both = after.processor_seconds - before.processor_seconds
    ffmpeg = after.ffmpeg_seconds - before.ffmpeg_seconds
    batches = after.batches - before.batches
    padded_seconds = after.padded_seconds - before.padded_seconds
    return Crowd(
        model=model,
        clients=clients,
        requests=len(calls),
        different=tuple(
            f"{call.clip.path.name} {dict(call.clip.options)}"
            for call in calls
            if call.answer != answers[call.clip.path.name]
        ),
        audio_seconds=audio_seconds,
        wall_seconds=wall_seconds,
        processor_seconds=both,
        engine_audio_seconds_per_second=cost.engine_audio_seconds_per_second,
        engine_processor_milliseconds=cost.engine_milliseconds,
        stage_milliseconds=stages_of(
            worker=1000 * (both - ffmpeg) / audio_seconds,
            ffmpeg=1000 * ffmpeg / audio_seconds,
            engine=cost.engine_milliseconds,
            cutting=cost.cutting_milliseconds,
        ),
        p50_seconds=harness.percentile(took, 0.5),
        p95_seconds=harness.percentile(took, 0.95),
        batches=round(batches),
        pieces=round(after.pieces - before.pieces),
        fill=padded_seconds / (batches * after.budget_seconds),
    )


def show(results: Sequence[Crowd]) -> None:
    """A line for each number of clients."""
    harness.table(
        ("clients", "requests", "p50 s", "p95 s", "audio s/s", "engine", "share", "share, cpu",
         "pieces/batch", "fill", "not as alone"),
        [
            (
                one.clients, one.requests, one.p50_seconds, one.p95_seconds,
                one.audio_seconds_per_second, one.engine_audio_seconds_per_second,
                one.share_of_engine, one.processor_share_of_engine,
                one.pieces / one.batches, one.fill, len(one.different),
            )
            for one in results
        ],
    )  # fmt: skip
    from bench.service import show_stages

    for one in results:
        print(f"{one.clients} clients, ", end="")
        show_stages(one.stage_milliseconds)
        for line in one.different[:3]:
            print(line)
