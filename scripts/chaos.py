"""Runs real workers under signals, pauses and platform faults, and reports lost jobs.

Every run has its own worker and job API on loopback. A job is lost if it was taken and has no
result, a result with the words of another job, or two different results.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from base64 import b64encode
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil

import recordings
from job_api import Fault, JobApi, running_worker
from wheelhouse import Site

_VARIABLES = {"PARAKEET_ENGINE": "tones"}
_TIMEOUT_SECONDS = 120.0
_FAULTS: tuple[Fault, ...] = (400, 429, 500, 502, 503, "drop", "lose", "garbage")
_ANSWER_FAULTS: tuple[Fault, ...] = (408, 429, 500, 503, 302, "drop", "lose")


@dataclass(slots=True)
class Report:
    """Results of one kind of disturbance."""

    name: str
    runs: int = 0
    jobs: int = 0
    answered: int = 0
    queued: int = 0
    lost: list[str] = field(default_factory=list)
    longest_seconds: float = 0.0
    peak_mebibytes: float = 0.0
    outcomes: Counter[str] = field(default_factory=Counter)

    def row(self) -> str:
        """A line of the table."""
        outcomes = ", ".join(f"{count} {what}" for what, count in sorted(self.outcomes.items()))
        return (
            f"| {self.name} | {self.runs} | {self.jobs} | {self.answered} | {self.queued} "
            f"| {len(self.lost)} | {self.longest_seconds:.1f} | {self.peak_mebibytes:.0f} "
            f"| {outcomes} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    kinds: dict[str, Callable[[argparse.Namespace, random.Random], Report]] = {
        "signals": signals, "pauses": pauses, "leases": leases, "faults": faults,
    }  # fmt: skip
    parser.add_argument("kinds", nargs="*", metavar="KIND", help=f"of {', '.join(kinds)}")
    parser.add_argument("--runs", type=int, default=5, help="of each kind  [default: 5]")
    parser.add_argument("--jobs", type=int, default=40, help="of each run  [default: 40]")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--pause-seconds", type=float, default=5.0, help="[default: 5]")
    options = parser.parse_args()
    unknown = set(options.kinds) - set(kinds)
    if unknown:
        parser.error(f"no such kind: {', '.join(unknown)}")
    generator = random.Random(options.seed)  # noqa: S311  # reproducible
    reports = [kinds[name](options, generator) for name in options.kinds or kinds]
    sys.stdout.write(
        "\n| kind | runs | jobs | answered | left queued | lost | longest end, s "
        "| peak memory, MiB | ends |\n|---|--:|--:|--:|--:|--:|--:|--:|---|\n"
    )
    for report in reports:
        sys.stdout.write(report.row() + "\n")
    lost = [job for report in reports for job in report.lost]
    sys.exit(f"lost: {', '.join(lost)}" if lost else 0)


def signals(options: argparse.Namespace, generator: random.Random) -> Report:
    """Send SIGTERM or SIGINT to the process or its group, during start or work."""
    report = Report("signals")
    for run in range(options.runs):
        with worker_at_jobs(options.jobs, report) as (api, worker, names):
            if generator.random() < 0.7:  # else during its start
                api.wait_until(lambda api=api: any(one.taken for one in api.deliveries.values()))
            time.sleep(generator.uniform(0.0, 0.5))
            number = generator.choice([signal.SIGTERM, signal.SIGINT])
            started = time.monotonic()
            if generator.random() < 0.5:
                os.killpg(worker.pid, number)
            else:
                worker.send_signal(number)
            status = worker.wait(_TIMEOUT_SECONDS)
            report.longest_seconds = max(report.longest_seconds, time.monotonic() - started)
            report.outcomes[f"status {status}"] += 1
            account(api, names, report, run)
    return report


def pauses(options: argparse.Namespace, generator: random.Random) -> Report:
    """Send SIGSTOP to the process group with jobs in flight, and SIGCONT later."""
    report = Report("pauses")
    for run in range(options.runs):
        with worker_at_jobs(options.jobs, report) as (api, worker, names):
            api.wait_until(lambda api=api: any(one.taken for one in api.deliveries.values()))
            time.sleep(generator.uniform(0.0, 0.3))
            os.killpg(worker.pid, signal.SIGSTOP)
            time.sleep(generator.uniform(0.2, 1.0) * options.pause_seconds)
            os.killpg(worker.pid, signal.SIGCONT)
            started = time.monotonic()
            api.answered(names, _TIMEOUT_SECONDS)
            report.longest_seconds = max(report.longest_seconds, time.monotonic() - started)
            end(worker, report)
            account(api, names, report, run)
    return report


def faults(options: argparse.Namespace, generator: random.Random) -> Report:
    """Fail requests of the platform at random, on every route, while jobs are processed."""
    report = Report("faults")
    for run in range(options.runs):
        with worker_at_jobs(options.jobs, report) as (api, worker, names):
            for route in ("job-take", "job-stop"):
                api.faults[route].extend(generator.choices(_FAULTS, k=4))
            api.faults["job-done"].extend(generator.choices(_ANSWER_FAULTS, k=options.jobs))
            started = time.monotonic()
            api.answered(names, 2 * _TIMEOUT_SECONDS)
            report.longest_seconds = max(report.longest_seconds, time.monotonic() - started)
            end(worker, report)
            account(api, names, report, run)
    return report


def leases(options: argparse.Namespace, generator: random.Random) -> Report:
    """Pause an installing worker past its lease at a random moment; another takes over."""
    report = Report("leases")
    for run in range(options.runs):
        with tempfile.TemporaryDirectory() as folder:
            site = Site.at(Path(folder))
            holder, other = booting(site), None
            try:
                time.sleep(generator.uniform(0.1, 1.5))
                holder.send_signal(signal.SIGSTOP)
                other = booting(site)
                other.wait(_TIMEOUT_SECONDS)
                holder.send_signal(signal.SIGCONT)
                started = time.monotonic()
                holder.wait(_TIMEOUT_SECONDS)
                report.longest_seconds = max(report.longest_seconds, time.monotonic() - started)
                ran = [json.loads(one.communicate()[0] or "{}").get("ear") for one in
                       (holder, other)]  # fmt: skip
            finally:
                for one in (holder, other):
                    if one is not None and one.poll() is None:
                        one.kill()
            report.runs += 1
            report.outcomes[f"{ran.count('1.0')} of 2 run"] += 1
            if ran != ["1.0", "1.0"]:
                report.lost.append(f"leases {run}: {ran}")
    return report


def booting(site: Site) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        site.command, env=site.environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        text=True,
    )  # fmt: skip


@contextmanager
def worker_at_jobs(
    count: int, report: Report, variables: Mapping[str, str] = _VARIABLES
) -> Iterator[tuple[JobApi, "subprocess.Popen[str]", dict[str, str]]]:
    """Start a worker with jobs in its queue; yields also the text of each job."""
    pitches = [300 + 50 * (number % 20) for number in range(count)]
    names = {f"job-{number}": f"{pitch}." for number, pitch in enumerate(pitches)}
    with (
        tempfile.TemporaryDirectory() as home,
        (Path(home) / "log").open("w") as log,
        JobApi(hold_seconds=5) as api,
    ):
        for (name, _), pitch in zip(names.items(), pitches, strict=True):
            tone = b64encode(recordings.wav(recordings.tone(pitch, 0.8))).decode()
            api.submit(name, {"audio_base64": tone})
        scratch = Path(home) / "scratch"
        scratch.mkdir()
        chosen = {**variables, "PARAKEET_SCRATCH": str(scratch)}
        with running_worker(api, Path(home), chosen, log=log) as worker:
            yield api, worker, names
        report.outcomes["folders left"] += sum(1 for _ in scratch.iterdir())
        report.outcomes += Counter()  # drops zero counts
    report.runs += 1
    report.jobs += count


def end(worker: "subprocess.Popen[str]", report: Report) -> None:
    memory = psutil.Process(worker.pid).memory_info().rss / 2**20
    report.peak_mebibytes = max(report.peak_mebibytes, memory)
    worker.send_signal(signal.SIGTERM)
    report.outcomes[f"status {worker.wait(_TIMEOUT_SECONDS)}"] += 1


def account(api: JobApi, names: Mapping[str, str], report: Report, run: int) -> None:
    """Count the result of each job."""
    for name, words in names.items():
        bodies = api.deliveries[name].bodies
        if bodies and all(body == {"output": {"text": words}} for body in bodies):
            report.answered += 1
        elif not bodies and api.withdraw(name):
            report.queued += 1
        else:
            report.lost.append(f"{report.name} {run}: {name} {bodies}")


if __name__ == "__main__":
    main()
