"""Cost of earlier runs: seconds of audio, seconds of workers, and RunPod's price for them."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from parakeet_worker.client import manifest
from parakeet_worker.client.manifest import Line
from parakeet_worker.client.prices import DOLLARS_PER_SECOND, is_billed


@dataclass(frozen=True, slots=True)
class Account:
    """Totals of manifests."""

    results: int
    failures: int
    unfinished: int
    unbilled: int
    """Results of this machine, and of servers that are not RunPod's."""
    audio_seconds: float
    billed_audio_seconds: float
    """Of that, what RunPod's workers transcribed."""
    job_seconds: float
    """Sum over jobs, although a worker runs many at a time."""
    worker_seconds: float
    """Seconds in which a worker had at least one job: the least that is billed."""
    unknown: int
    """Results of endpoints that did not report a duration."""

    def dollars(self, gpu: str) -> float:
        """The price of that on a GPU type; raises `KeyError`."""
        return self.worker_seconds * DOLLARS_PER_SECOND[gpu]


def find(folders: Sequence[Path]) -> list[Path]:
    """The manifests in these folders and below."""
    paths = [path for folder in folders for path in sorted(folder.rglob(manifest.NAME))]
    return list(dict.fromkeys(paths))


def account(manifests: Iterable[Path]) -> Account:
    """Totals over every result, including those that were replaced later."""
    done: list[Line] = []
    failures = unfinished = 0
    for path in manifests:
        last: dict[str, str] = {}
        for line in manifest.read(path):
            last[line["target"]] = line["event"]
            if line["event"] == "done" and "same_job_as" not in line:
                done.append(line)
        failures += sum(event == "failed" for event in last.values())
        unfinished += sum(event == "sent" for event in last.values())
    billed = [line for line in done if is_billed(line.get("worker"))]
    return Account(
        results=len(done),
        failures=failures,
        unfinished=unfinished,
        unbilled=len(done) - len(billed),
        audio_seconds=_audio_seconds(done),
        billed_audio_seconds=_audio_seconds(billed),
        job_seconds=sum(line.get("executed_seconds") or 0.0 for line in billed),
        worker_seconds=_busy(billed),
        unknown=sum(line.get("executed_seconds") is None for line in billed),
    )


def _audio_seconds(lines: Iterable[Line]) -> float:
    return sum(line.get("audio_seconds") or 0.0 for line in lines)


def _busy(lines: Iterable[Line]) -> float:
    """Seconds in which a worker had at least one job."""
    spans: dict[object, list[tuple[float, float]]] = defaultdict(list)
    for line in lines:
        started, seconds = line.get("started"), line.get("executed_seconds")
        if seconds is not None:
            # Without a start, no overlap can be paths.
            where = line.get("worker") if started is not None else object()
            spans[where].append((started or 0.0, (started or 0.0) + seconds))
    return sum(_union(each) for each in spans.values())


def _union(spans: list[tuple[float, float]]) -> float:
    total, reached = 0.0, float("-inf")
    for start, end in sorted(spans):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total
