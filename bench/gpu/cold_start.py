"""Part `cold_start`: from the start of a process to its first transcript, by stage.

First with an empty cache of compiled kernels, then with the kernels of that first start.
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench.gpu.figures import Report
from bench.gpu.parts import Setup

_GOAL = 5.0
_STAGES = ("start", "imports", "weights", "warm", "transcript")


def run(setup: Setup, report: Report) -> None:
    """Measure after a warm-up start, which prepacks the model and caches its file in memory."""
    with tempfile.TemporaryDirectory(dir=setup.work) as folder:
        if not setup.small:
            measure_start(setup, None)
        for name in ("cold", "warm"):
            stages = measure_start(setup, Path(folder) / "counted")
            for stage in _STAGES:
                report.measure(f"{name} kernels, {stage}", stages[stage], "s")
            goal = _GOAL if name == "warm" else None
            total = sum(stages[stage] for stage in _STAGES)
            report.measure(f"{name} kernels, process to transcript", total, "s", at_most=goal)


def measure_start(setup: Setup, kernel_cache: Path | None) -> dict[str, float]:
    """Seconds by stage of a process that transcribes one clip of 8 s.

    Compiled kernels are cached in `kernel_cache`, or with None in the folder of the other parts.
    """
    kernels = None if kernel_cache is None else str(kernel_cache)
    request = {"setup": setup.document(), "kernels": kernels, "requested_at": time.time()}
    process = subprocess.run(
        [sys.executable, "-m", "bench.gpu.starting", json.dumps(request)],
        stdout=subprocess.PIPE,
        check=True,
    )
    seconds: dict[str, float] = json.loads(process.stdout.splitlines()[-1])
    return seconds
