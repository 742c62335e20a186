"""Part `cold_start`: from the start of a process to its first transcript, by stage.

Once with an empty cache of compiled kernels, then with what that start has compiled.
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
    """A start that does not count comes first: the model is converted, its file in memory."""
    with tempfile.TemporaryDirectory(dir=setup.work) as folder:
        if not setup.small:
            started(setup, None)
        for name in ("cold", "warm"):
            stages = started(setup, Path(folder) / "counted")
            for stage in _STAGES:
                report.measure(f"{name} kernels, {stage}", stages[stage], "s")
            goal = _GOAL if name == "warm" else None
            total = sum(stages[stage] for stage in _STAGES)
            report.measure(f"{name} kernels, process to transcript", total, "s", at_most=goal)


def started(setup: Setup, kernel_cache: Path | None) -> dict[str, float]:
    """Seconds by stage of a process that transcribes one clip of 8 s.

    Compiled kernels are kept in `kernel_cache`, or with None where the other parts keep them.
    """
    kernels = None if kernel_cache is None else str(kernel_cache)
    asked = {"setup": setup.document(), "kernels": kernels, "asked_at": time.time()}
    ran = subprocess.run(
        [sys.executable, "-m", "bench.gpu.starting", json.dumps(asked)],
        stdout=subprocess.PIPE,
        check=True,
    )
    found: dict[str, float] = json.loads(ran.stdout.splitlines()[-1])
    return found
