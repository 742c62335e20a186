"""Part `model`: creates the random model that the other parts measure."""

import time

from bench import random_model
from bench.gpu import sounds
from bench.gpu.figures import Report
from bench.gpu.opening import random_nemo
from bench.gpu.parts import Setup
from bench.random_model import CALIBRATION_PIECES, CALIBRATION_SECONDS, Files
from parakeet_worker.engine.base import as_float


def run(setup: Setup, report: Report) -> None:
    """Write the model if it is missing; report its size and its rate of tokens."""
    path = random_nemo(setup)
    started = time.perf_counter()
    if not path.exists():
        seconds = 6.0 if setup.small else CALIBRATION_SECONDS
        chunks = sounds.chunks(seconds, CALIBRATION_PIECES)
        random_model.write_nemo(setup.size, path.parent, [as_float(chunk) for chunk in chunks])
    facts = Files(path.parent).facts
    report.measure("random model made in", time.perf_counter() - started, "s")
    report.measure("parameters", facts["parameters"], "weights")
    report.measure("tokens per second", facts["calibrated_tokens_per_second"], "tokens/s")
