"""Part `mix`: chunks of 1 to 30 s in random order, all queued together, through the batcher."""

import time

from bench.gpu import sounds
from bench.gpu.figures import Report
from bench.gpu.opening import CHUNK_SECONDS, check_in_use, random_nemo, served, settle
from bench.gpu.parts import Setup
from bench.gpu.sounds import seconds_of
from bench.harness import median
from parakeet_worker.batcher import Batcher

_CHUNKS = 1000
_GOAL = 20_000.0


def run(setup: Setup, report: Report) -> None:
    """Seconds of audio per second, from the submission to the last answer."""
    count = setup.count(_CHUNKS, _CHUNKS, 5)
    chunks = sounds.mixed(count, *((0.5, 2.0) if setup.small else (1.0, CHUNK_SECONDS)))
    with served(setup, random_nemo(setup), "bf16") as engine:
        check_in_use(report, engine)
        capacity = engine.capacity(CHUNK_SECONDS)
        report.measure("capacity of a batch", capacity.seconds, "audio s")
        rates = []
        with Batcher(engine, capacity=capacity, queue_seconds=1e9) as batcher:
            for _ in range(setup.count(5, 3, 1)):
                settle(setup)
                started = time.perf_counter()
                answers = batcher.submit(chunks)
                for answer in answers:
                    answer.result()
                rates.append(seconds_of(chunks) / (time.perf_counter() - started))
            batches = batcher.load.batches
        report.measure("batches", batches / len(rates), "batches")
        report.measure(
            f"{count} mixed chunks", median(rates), "audio s/s", at_least=_GOAL, values=rates
        )
