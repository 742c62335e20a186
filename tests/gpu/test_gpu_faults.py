"""Outcomes of a worker's jobs after a device fault or with insufficient memory.

Each in a separate process, since a CUDA error ends all use of the device in its process.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.gpu.parts import Setup

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("cuda")]

HERE = Path(__file__).parent
ROOT = HERE.parent.parent


def run_case(setup: Setup, case: str) -> dict[str, Any]:
    """Result of a case of `failing.py`, in a separate process."""
    command = [sys.executable, str(HERE / "failing.py"), case, json.dumps(setup.document())]
    paths = ":".join(str(path) for path in (ROOT, ROOT / "src", ROOT / "tests"))
    process = subprocess.run(
        command,
        env=os.environ | {"PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert process.returncode == 0, process.stderr
    result: dict[str, Any] = json.loads(process.stdout.splitlines()[-1])
    return result


def test_a_device_fault_is_engine_lost(setup: Setup) -> None:
    """Earlier results remain valid; later chunks fail with `engine_lost`; none hangs."""
    result = run_case(setup, "fault")
    assert result["before"] > 0
    assert result["provoked"]
    assert result["codes"]
    assert set(result["codes"]) == {"engine_lost"}
    assert result["lost"] is True
    # The device itself works: this process still computes on it.
    assert float(torch.ones(3, device="cuda").sum()) == 3.0


def test_a_batch_beyond_the_memory_is_halved_until_it_fits(setup: Setup) -> None:
    """With a real memory limit, between the needs of 8 and of 64 chunks of 30 s."""
    result = run_case(setup, "memory")
    assert result["whole_fails"] is True
    assert result["transcribed"] == result["submitted"]
    assert result["batches"] > 1
    assert result["lost"] is False
