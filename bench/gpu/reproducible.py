"""Part `reproducible`: what results that do not depend on the batch cost in speed."""

from bench.gpu import sounds
from bench.gpu.figures import Report
from bench.gpu.opening import CHUNK_SECONDS, random_nemo, served
from bench.gpu.parts import Setup
from bench.gpu.throughput import cut, measured
from bench.harness import median

_GOAL = 0.8


def run(setup: Setup, report: Report) -> None:
    """Both modes on the same batch, one after the other in one process."""
    count, seconds = (2, 2.0) if setup.small else (128, CHUNK_SECONDS)
    batches = cut(sounds.chunks(seconds, count))
    found = {}
    for name in ("default", "reproducible"):
        with served(
            setup, random_nemo(setup), "bf16", reproducible=name == "reproducible"
        ) as engine:
            rates, _ = measured(setup, engine, batches)
        found[name] = median(rates)
        report.measure(f"{name}, {count} x {seconds:g} s", found[name], "audio s/s", values=rates)
    ratio = found["reproducible"] / found["default"]
    report.measure("reproducible over default", ratio, "x", at_least=_GOAL)
