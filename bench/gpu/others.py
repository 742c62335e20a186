"""Shared by the parts `nemo` and `transformers`: another library on the same model and audio."""

import os
import sys
import time
from importlib.util import find_spec

from bench.engines import Engine, Place, named
from bench.gpu import sounds
from bench.gpu.figures import Report
from bench.gpu.opening import random_nemo, settle
from bench.gpu.parts import Setup
from bench.gpu.running import ABSENT
from bench.harness import median, percentile
from bench.random_model import Files
from parakeet_worker.engine.base import as_float


def exit_if_absent(package: str) -> None:
    """Exit with status `ABSENT` if the package is not installed."""
    if find_spec(package) is None:
        print(f"{package} is not installed")
        sys.exit(ABSENT)


def measure(setup: Setup, report: Report, engine: str, label: str, chunks: int) -> None:
    """Measure the start, throughput with `chunks` of 30 s, and one clip of 8 s alone."""
    files = Files(random_nemo(setup).parent)
    place = Place(files, engine.rsplit("-", 1)[1], setup.device, os.cpu_count() or 1, {})
    other = named(engine, place)
    for stage, step in (("imports", other.import_libraries), ("weights", other.load)):
        started = time.perf_counter()
        step()
        settle(setup)
        report.measure(f"{label}, {stage}", time.perf_counter() - started, "s")
    seconds, clip = (2.0, 1.0) if setup.small else (30.0, 8.0)
    spent = _spent(setup, other, seconds, chunks, repeats=setup.count(3, 2, 1))
    report.measure(
        f"{label}, {chunks} x {seconds:g} s", chunks * seconds / median(spent), "audio s/s",
        values=[chunks * seconds / seconds_spent for seconds_spent in spent],
    )  # fmt: skip
    alone = [
        1000 * seconds_spent
        for seconds_spent in _spent(setup, other, clip, 1, repeats=setup.count(20, 10, 1))
    ]
    report.measure(f"{label}, {clip:g} s alone, p50", median(alone), "ms", values=alone)
    report.measure(f"{label}, {clip:g} s alone, p95", percentile(alone, 0.95), "ms")


def _spent(setup: Setup, engine: Engine, seconds: float, count: int, repeats: int) -> list[float]:
    """Seconds of each repeat, after one warm-up run."""
    batch = [as_float(chunk) for chunk in sounds.chunks(seconds, count)]
    spent = []
    for _ in range(repeats + 1):
        started = time.perf_counter()
        engine.transcribe(batch)
        settle(setup)
        spent.append(time.perf_counter() - started)
    return spent[1:]
