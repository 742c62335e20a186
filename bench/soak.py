"""Does a worker that has done thousands of jobs hold more than it did after the first hundreds?

A worker as RunPod starts it, short clips in many formats, bad input and stopped jobs among them.
Its memory, descriptors, threads, processes and temporary files are counted while it has nothing
to do: after the first jobs, and at intervals to the end.
"""

import argparse
import random
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from bench import clips, harness
from bench.clips import Clip
from bench.service import model_of, options
from bench.serving import Serving, files_at, serving

_MOST_GROWTH_PERCENT = 2.0
_SETTLE_SECONDS = 20.0  # idle connections stay open for 15 s
_PATIENCE_SECONDS = 3600.0
_BAD_SHARE = 0.05
_STOPPED_SHARE = 0.02
_LONGEST_SECONDS = 12.0


@dataclass(frozen=True, slots=True)
class Held:
    """What the worker holds while it has nothing to do."""

    jobs: int
    """That it has done by then."""
    resident_mebibytes: float
    descriptors: int
    threads: int
    processes: int
    files: int
    """Left in its scratch folder."""


@dataclass(frozen=True, slots=True)
class Figure:
    """One run."""

    model: str
    jobs: int
    in_flight: int
    """At a time; the thread pool keeps as many threads as its peak concurrency."""
    unanswered: int
    answered_twice: int
    stopped: int
    refused: int
    seconds: float
    growth_percent: float
    held: tuple[Held, ...]

    @property
    def leaks(self) -> bool:
        """Whether it holds more at the end than after the first jobs."""
        first, last = self.held[0], self.held[-1]
        return (
            self.growth_percent >= _MOST_GROWTH_PERCENT
            or last.descriptors > first.descriptors
            or last.threads > first.threads + self.in_flight
            or last.processes > first.processes
            or last.files > 0
        )


def held(worker: Serving, jobs: int) -> Held:
    """Counted now."""
    process = worker.process
    return Held(
        jobs=jobs,
        resident_mebibytes=process.memory_info().rss / 2**20,
        descriptors=process.num_fds(),
        threads=process.num_threads(),
        processes=len(process.children(recursive=True)),
        files=len(list(worker.scratch.iterdir())),
    )


def payloads(clips: Sequence[Clip], address: str, chance: random.Random) -> Iterator[Any]:
    """Jobs without end: good ones, and some that must be refused."""
    bad: tuple[object, ...] = (
        {"audio_base64": "?"},
        {"audio_base64": "bm8gc291bmQgYXQgYWxs"},
        {"audio_url": f"{address}/nothing.wav"},
        {"audio_url": f"{address}/0.wav", "format": "docx"},
    )
    good = [clip.payload(address) for clip in clips]
    while True:
        yield chance.choice(bad if chance.random() < _BAD_SHARE else good)


def soaked(worker: Serving, jobs: Iterator[Any], counts: Sequence[int], seed: int) -> list[Held]:
    """Send jobs up to each of `counts`, and count what is held when all of them are done."""
    chance = random.Random(seed)  # noqa: S311
    api, samples, sent = worker.api, [], 0
    for count in counts:
        kept = []
        while sent < count:
            job = f"job-{sent}"
            api.submit(job, next(jobs))
            sent += 1
            if chance.random() < _STOPPED_SHARE:
                api.taken(job, _PATIENCE_SECONDS)
                api.stop(job)
            else:
                kept.append(job)
        api.answered(kept, _PATIENCE_SECONDS)
        time.sleep(_SETTLE_SECONDS)
        samples.append(held(worker, count))
        print(samples[-1], file=sys.stderr, flush=True)
    return samples


def main() -> None:
    parser = options(__doc__ or "")
    parser.add_argument("--jobs", type=int, default=5000)
    parser.add_argument("--first", type=int, default=500, help="jobs before the first count")
    parser.add_argument("--counts", type=int, default=9, help="after that")
    arguments = harness.resolved(parser.parse_args())
    fields, facts = model_of(arguments)
    log = arguments.work / "log" / "soak.txt"
    step = (arguments.jobs - arguments.first) / arguments.counts
    counts = [arguments.first + round(step * number) for number in range(arguments.counts + 1)]
    with TemporaryDirectory() as kept, files_at(Path(kept)) as address:
        selected = clips.made(Path(kept), clips.lengths(56, 1.0, _LONGEST_SECONDS), arguments.seed)
        jobs = payloads(selected, address, random.Random(arguments.seed))  # noqa: S311
        with serving(
            fields, in_flight=arguments.in_flight, threads=arguments.threads, log=log
        ) as worker:
            started = time.monotonic()
            samples = soaked(worker, jobs, counts, arguments.seed)
            figure = counted(arguments, worker, samples, time.monotonic() - started)
    _show(figure)
    harness.write(f"soak-{Path(arguments.model).stem}", arguments, facts, [figure])
    if figure.unanswered or figure.answered_twice or figure.leaks:
        sys.exit(1)


def counted(
    arguments: argparse.Namespace, worker: Serving, samples: Sequence[Held], seconds: float
) -> Figure:
    """Everything about one run."""
    bodies = [delivery.bodies for delivery in worker.api.deliveries.values()]
    stopped = worker.api.stopped
    first, last = samples[0].resident_mebibytes, samples[-1].resident_mebibytes
    return Figure(
        model=arguments.model,
        jobs=len(bodies),
        in_flight=arguments.in_flight,
        unanswered=sum(
            not delivery.bodies
            for job, delivery in worker.api.deliveries.items()
            if job not in stopped
        ),
        answered_twice=sum(len(posted) > 1 for posted in bodies),
        stopped=len(stopped),
        refused=sum("error" in posted[0] for posted in bodies if posted),
        seconds=seconds,
        growth_percent=100 * (last / first - 1),
        held=tuple(samples),
    )


def _show(figure: Figure) -> None:
    heads = ("jobs", "resident MiB", "descriptors", "threads", "processes", "files")
    rows = [
        (one.jobs, one.resident_mebibytes, one.descriptors, one.threads, one.processes, one.files)
        for one in figure.held
    ]
    harness.table(heads, rows)
    print(
        f"\n{figure.model}: {figure.jobs} jobs in {figure.seconds:.0f} s, "
        f"{figure.refused} refused, {figure.stopped} stopped, {figure.unanswered} unanswered, "
        f"{figure.answered_twice} answered twice; memory {figure.growth_percent:+.2f} %"
    )


if __name__ == "__main__":
    main()
