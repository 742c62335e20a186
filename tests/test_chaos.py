"""`scripts/chaos` detects lost jobs, and runs."""

import importlib.util
import random
import subprocess
import sys
from argparse import Namespace
from pathlib import Path
from types import ModuleType

import pytest

from job_api import JobApi

SCRIPT = Path(__file__).resolve().parent.parent / "scripts" / "chaos.py"


@pytest.fixture(scope="module")
def chaos() -> ModuleType:
    spec = importlib.util.spec_from_file_location("chaos", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["chaos"] = module
    spec.loader.exec_module(module)
    return module


def test_lost_jobs_and_wrong_results_are_detected(chaos: ModuleType) -> None:
    report = chaos.Report("signals")
    with JobApi() as api:
        for name in ("good", "twice", "other", "failed", "taken", "waiting"):
            api.submit(name, None)
        right, wrong = {"output": {"text": "440."}}, {"output": {"text": "450."}}
        api.deliveries["good"].bodies = [right]
        api.deliveries["twice"].bodies = [right, right]
        api.deliveries["other"].bodies = [right, wrong]
        api.deliveries["failed"].bodies = [{"error": "internal_error", "output": {}}]
        for name in ("good", "twice", "other", "failed", "taken"):
            api.withdraw(name)
        chaos.account(api, dict.fromkeys(api.deliveries, "440."), report, 0)
    assert (report.answered, report.queued) == (2, 1)
    assert [line.split()[2] for line in report.lost] == ["other", "failed", "taken"]


def test_a_paused_worker_loses_nothing(chaos: ModuleType) -> None:
    options = Namespace(runs=1, jobs=8, pause_seconds=1.0)
    report = chaos.pauses(options, random.Random(1))  # noqa: S311  # reproducible
    assert (report.answered, report.lost) == (8, [])
    assert report.outcomes == {"status 0": 1}


def test_an_unknown_kind_is_rejected() -> None:
    command = [sys.executable, str(SCRIPT), "storms"]
    environment = {"PYTHONPATH": str(Path(__file__).parent)}
    ran = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert ran.returncode == 2
    assert "no such kind: storms" in ran.stderr
