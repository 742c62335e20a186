"""Part `self_check`: what a worker's own comparison at start finds, and how long it takes."""

import time

from bench.gpu.figures import Report
from bench.gpu.opening import DEMO, random_nemo, served
from bench.gpu.parts import Setup

_GOAL = 0.5


def run(setup: Setup, report: Report) -> None:
    """On the random model, whose errors are the largest, and on the demo checkpoint."""
    for name, path in (("random", random_nemo(setup)), ("demo", DEMO)):
        for precision in ("bf16", "fp16"):
            with served(setup, path, precision) as engine:
                for one in engine.reports:
                    report.check(
                        f"{one.name}, {name}, {precision}",
                        one.error,
                        "of the norm",
                        at_most=one.tolerance,
                    )
                started = time.perf_counter()
                engine.compare()
                seconds = time.perf_counter() - started
            report.measure(f"comparison, {name}, {precision}", seconds, "s", at_most=_GOAL)
