"""The benchmarks run and write the documented fields; timings are not tested."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the random model, which the first measurement makes."""
    return tmp_path_factory.mktemp("bench")


def measured(measurement: str, work: Path, *options: str) -> dict[str, Any]:
    """The JSON and the table of one measurement of the native engine on a toy model."""
    common = ("--size=small", "--device=cpu", "--threads=1", f"--work={work}")
    ran = subprocess.run(
        [sys.executable, "-m", f"bench.{measurement}", *common, *options],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": "tests"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    (path,) = (work / "results").glob(f"{measurement}-*.json")
    assert str(ROOT) not in path.read_text()
    written: dict[str, Any] = json.loads(path.read_text())
    for figure in written["figures"]:
        assert figure["engine"] in ran.stdout
    return written


def test_throughput_writes_its_hardware_and_every_repeat(work: Path) -> None:
    options = ("--engines=native-fp32", "--batches=1,2", "--repeats=2", "--seconds=10")
    written = measured("throughput", work, *options)
    assert written["hardware"]["cpu"]
    assert written["hardware"]["cores"] >= 1
    assert written["versions"]["torch"]
    assert written["versions"]["commit"]
    assert written["arguments"]["size"] == "small"
    assert 3 < written["model"]["calibrated_tokens_per_second"] < 4
    (figure,) = written["figures"]
    assert figure["audio_seconds_per_second"] > 0
    assert [(batch["pieces"], len(batch["seconds"])) for batch in figure["batches"]] == [
        (1, 2),
        (2, 2),
    ]
    stages = figure["stage_milliseconds_per_audio_second"]
    assert set(stages) == {"features", "encoder", "decoder", "rest"}
    assert all(spent >= 0 for spent in stages.values())


def test_cold_start_writes_every_stage_of_a_cached_and_of_a_new_model(work: Path) -> None:
    written = measured("cold_start", work, "--engines=worker-auto", "--runs=1", "--seconds=2")
    known, new = written["figures"]
    assert (known["engine"], new["engine"]) == ("worker-auto", "worker-auto, new model")
    stages = ("start", "imports", "weights", "warm", "first_transcript")
    for figure in (known, new):
        assert figure["total_seconds"] == sum(figure["start"][stage] for stage in stages)
        assert figure["start"]["first_transcript"] > 0
