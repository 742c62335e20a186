"""Part `reproducible`: the speed of results that are independent of the batch."""

from bench.gpu import sounds
from bench.gpu.figures import Report
from bench.gpu.opening import CHUNK_SECONDS, random_nemo, served
from bench.gpu.parts import Setup
from bench.gpu.throughput import cut, measured
from bench.harness import median

_GOAL = 0.8


def run(setup: Setup, report: Report) -> None:
    """Measure both modes on the same batch in one process."""
    count, seconds = (2, 2.0) if setup.small else (128, CHUNK_SECONDS)
    batches = cut(sounds.chunks(seconds, count))
    speeds = {}
    for name in ("default", "reproducible"):
        with served(
            setup, random_nemo(setup), "bf16", reproducible=name == "reproducible"
        ) as engine:
            rates, _ = measured(setup, engine, batches)
        speeds[name] = median(rates)
        report.measure(f"{name}, {count} x {seconds:g} s", speeds[name], "audio s/s", values=rates)
    ratio = speeds["reproducible"] / speeds["default"]
    report.measure("reproducible over default", ratio, "x", at_least=_GOAL)
