"""What a run cost: seconds of audio, seconds of workers, and RunPod's price for them."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from parakeet_worker.client import manifest
from parakeet_worker.client.manifest import Line

PRICED = "August 2026"
"""When these prices stood in RunPod's documents; the console has today's."""

DOLLARS_PER_SECOND = {
    "RTX 4000": 0.00016,
    "RTX A4000": 0.00016,
    "RTX A4500": 0.00016,
    "L4": 0.00019,
    "RTX 3090": 0.00019,
    "RTX A5000": 0.00019,
    "RTX 4090": 0.00031,
    "A40": 0.00034,
    "RTX A6000": 0.00034,
    "L40": 0.00053,
    "L40S": 0.00053,
    "RTX 6000 Ada": 0.00053,
    "A100": 0.00076,
    "RTX PRO 6000": 0.00111,
    "H100": 0.00116,
    "H200": 0.00155,
    "B200": 0.00240,
}
"""Serverless, flex workers."""


@dataclass(frozen=True, slots=True)
class Account:
    """What the manifests say of all that was ever transcribed there."""

    results: int
    failures: int
    unfinished: int
    audio_seconds: float
    job_seconds: float
    """Jobs one by one, though a worker works on many at a time."""
    worker_seconds: float
    """At least this is billed: the time in which a worker had any job at all."""
    untold: int
    """Results of which nobody told how long they took."""

    def dollars(self, gpu: str) -> float:
        """The price of that on a GPU type; raises `KeyError`."""
        return self.worker_seconds * DOLLARS_PER_SECOND[gpu]


def find(folders: Sequence[Path]) -> list[Path]:
    """The manifests in these folders and below."""
    found = [path for folder in folders for path in sorted(folder.rglob(manifest.NAME))]
    return list(dict.fromkeys(found))


def account(manifests: Iterable[Path]) -> Account:
    """Add up every result that was paid for, also one that was replaced later."""
    done: list[Line] = []
    failures = unfinished = 0
    for path in manifests:
        last: dict[str, str] = {}
        for line in manifest.read(path):
            last[line["target"]] = line["event"]
            if line["event"] == "done":
                done.append(line)
        failures += sum(event == "failed" for event in last.values())
        unfinished += sum(event == "sent" for event in last.values())
    return Account(
        len(done),
        failures,
        unfinished,
        sum(line.get("audio_seconds") or 0.0 for line in done),
        sum(line.get("executed_seconds") or 0.0 for line in done),
        _busy(done),
        sum(line.get("executed_seconds") is None for line in done),
    )


def _busy(lines: Iterable[Line]) -> float:
    """Seconds in which a worker had a job: what overlaps on one counts once."""
    spans: dict[object, list[tuple[float, float]]] = defaultdict(list)
    for line in lines:
        started, seconds = line.get("started"), line.get("executed_seconds")
        if seconds is not None:
            # Without a start nothing is known to overlap with it.
            where = line.get("worker") if started is not None else object()
            spans[where].append((started or 0.0, (started or 0.0) + seconds))
    return sum(_union(each) for each in spans.values())


def _union(spans: list[tuple[float, float]]) -> float:
    total, reached = 0.0, float("-inf")
    for start, end in sorted(spans):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total
