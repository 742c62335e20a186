"""What becomes of a worker's jobs when the device fails or has no memory left.

Each in a process of its own, since a CUDA error ends all use of the device in its process.
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


def answered(setup: Setup, case: str) -> dict[str, Any]:
    """What `failing.py` found in a process of its own."""
    command = [sys.executable, str(HERE / "failing.py"), case, json.dumps(setup.document())]
    paths = ":".join(str(path) for path in (ROOT, ROOT / "src", ROOT / "tests"))
    ran = subprocess.run(
        command,
        env=os.environ | {"PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert ran.returncode == 0, ran.stderr
    found: dict[str, Any] = json.loads(ran.stdout.splitlines()[-1])
    return found


def test_a_fault_of_the_device_is_the_loss_of_the_engine(setup: Setup) -> None:
    """What was answered before stays answered; later chunks get `engine_lost`, none waits."""
    found = answered(setup, "fault")
    assert found["before"] > 0
    assert found["provoked"]
    assert found["codes"]
    assert set(found["codes"]) == {"engine_lost"}
    assert found["lost"] is True
    # The device itself is well: this process still computes on it.
    assert float(torch.ones(3, device="cuda").sum()) == 3.0


def test_a_batch_without_room_is_halved_until_it_fits(setup: Setup) -> None:
    """With a real limit on memory, between what 8 and what 64 chunks of 30 s take."""
    found = answered(setup, "memory")
    assert found["whole_fails"] is True
    assert found["answered"] == found["asked"]
    assert found["batches"] > 1
    assert found["lost"] is False
