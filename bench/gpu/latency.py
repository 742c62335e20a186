"""Part `latency`: one clip alone, from an array to tokens."""

import time

from bench.gpu import sounds
from bench.gpu.figures import Report
from bench.gpu.opening import check_in_use, random_nemo, served
from bench.gpu.parts import Setup
from bench.gpu.timing import hypothesis_of
from bench.harness import median, percentile

_CLIPS = (2.0, 8.0, 30.0)
_GOALS = {8.0: 8.0}


def run(setup: Setup, report: Report) -> None:
    """Median and 95th percentile for three lengths."""
    with served(setup, random_nemo(setup), "bf16") as engine:
        check_in_use(report, engine)
        for seconds in (0.5, 1.0) if setup.small else _CLIPS:
            clips = sounds.chunks(seconds, 10)
            spent = []
            for repeat in range(setup.count(210, 60, 3)):
                clip = clips[repeat % len(clips)]
                started = time.perf_counter()
                (outcome,) = engine.transcribe([clip])
                tuple(hypothesis_of(outcome).tokens)
                spent.append(1000 * (time.perf_counter() - started))
            # The first repeats fill caches.
            counted = spent[10:] if len(spent) > 20 else spent
            report.measure(
                f"{seconds:g} s alone, p50", median(counted), "ms",
                at_most=_GOALS.get(seconds), values=counted,
            )  # fmt: skip
            report.measure(f"{seconds:g} s alone, p95", percentile(counted, 0.95), "ms")
