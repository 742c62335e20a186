"""The GPU's bench runs end to end on a CPU, and a part that fails costs that part alone."""

import hashlib
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from bench.gpu import comparing, stand_ins
from bench.gpu.figures import Figure, Report
from bench.gpu.kernels import chunks_of, laid_out
from bench.gpu.parts import PARTS
from parakeet_worker.engine.native import checkpoint

ROOT = Path(__file__).resolve().parent.parent
DEMO = ROOT / "src" / "parakeet_worker" / "checkpoints" / "demo.nemo"
ELSEWHERE = {"nemo", "transformers"}


def run(out: Path, work: Path, *options: str) -> tuple[int, str, dict[str, Any]]:
    """Exit status, standard output, and the JSON."""
    command = [ROOT / "scripts" / "bench", "gpu", "--device=cpu", "--size=small"]
    ran = subprocess.run(
        [*command, f"--work={work}", *options],
        env=os.environ | {"PYTHON": sys.executable, "OUT": str(out)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode in (0, 1), ran.stderr
    (path,) = out.glob("gpu-*.json")
    return ran.returncode, ran.stdout, json.loads(path.read_text())


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the random model, which the first run makes."""
    return tmp_path_factory.mktemp("work")


@pytest.mark.slow
def test_every_part_runs_on_a_cpu_and_writes_its_figures(work: Path, tmp_path: Path) -> None:
    """What is right is right there too; speed has no goal."""
    status, table, written = run(tmp_path, work, "--minutes=60", "--limit=600")
    assert status == 0, table
    assert written["passed"] is True
    assert written["hardware"]["cpu"]
    assert written["versions"]["torch"]
    assert written["versions"]["commit"]
    assert written["arguments"] == {
        "device": "cpu",
        "size": "small",
        "quick": False,
        "parts": [part.name for part in PARTS],
    }
    for part in written["parts"]:
        absent = part["name"] in ELSEWHERE and part["status"] == "absent"
        assert absent or part["status"] == "done", part
        assert absent or part["figures"], part
        for figure in part["figures"]:
            assert isinstance(figure["value"], int | float), figure
            assert figure["name"] in table
            assert figure["required"] or figure["goal"] is None, "a goal of speed on a CPU"
    assert str(work) not in json.dumps(written)


@pytest.mark.slow
def test_a_part_that_is_killed_hangs_or_is_wrong_does_not_end_the_others(
    work: Path, tmp_path: Path
) -> None:
    """Its figures from before are kept, it is named, and the exit status says so."""
    named = ("--part=crash", "--part=hang", "--part=wrong", "--part=latency")
    status, table, written = run(tmp_path, work, *named, "--minutes=60")
    assert status == 1
    assert written["passed"] is False
    parts = {part["name"]: part for part in written["parts"]}
    assert list(parts) == ["model", "crash", "hang", "wrong", "latency"]
    assert parts["crash"]["status"] == "failed"
    assert "SIGKILL" in parts["crash"]["reason"]
    assert parts["hang"]["status"] == "timed out"
    assert parts["wrong"]["status"] == "done"
    assert [figure["holds"] for figure in parts["wrong"]["figures"]] == [False]
    assert parts["latency"]["status"] == "done"
    assert len(parts["latency"]["figures"]) == 5
    for name in ("crash", "hang"):
        assert [figure["value"] for figure in parts[name]["figures"]] == [1.0]
        assert f"{name} failed" in table


def test_a_part_without_time_is_skipped_and_the_run_fails(work: Path, tmp_path: Path) -> None:
    status, _, written = run(tmp_path, work, "--part=latency", "--minutes=0.01")
    assert status == 1
    assert [part["status"] for part in written["parts"]] == ["skipped", "skipped"]


@pytest.mark.parametrize(
    ("value", "bounds", "holds"),
    [
        (2.0, {"at_least": 2.0}, True),
        (1.9, {"at_least": 2.0}, False),
        (2.0, {"at_most": 2.0}, True),
        (2.1, {"at_most": 2.0}, False),
        (float("nan"), {"at_most": 2.0}, False),
        (float("inf"), {"at_least": 2.0}, False),
        (2.0, {}, None),
    ],
)
def test_a_goal_is_reached_or_missed(
    value: float, bounds: dict[str, float], holds: bool | None
) -> None:
    """What is not a finite number reaches none, and is no invalid JSON."""
    lines: list[str] = []
    Report(lines.append, judged=True).check("it", value, "s", **bounds)
    (line,) = lines
    found = Figure.read(json.loads(line))
    assert found.holds is holds
    assert json.loads(line)["holds"] is holds


def test_differences_between_texts_are_counted() -> None:
    right = [(("a", 0, 1), ("b", 1, 1)), (("c", 0, 1), ("d", 4, 1))]
    assert comparing.differing_tokens(right, right) == 0
    assert comparing.differing_tokens([right[0], (("c", 0, 1),)], right) == 250
    assert comparing.differing_tokens([right[0], ()], right) == 500
    assert comparing.per_thousand(["x", "y"], ["x", "z"]) == 500


def test_empty_rows_and_single_samples_are_laid_out() -> None:
    chunks = chunks_of((0, 1, 160, 1280))
    _, rows = laid_out(chunks, torch.device("cpu"))
    assert rows.offsets.tolist() == [0, 0, 0, 1, 2]


def test_the_demo_checkpoint_is_read_without_pyyaml() -> None:
    """What is kept of its configuration is what PyYAML reads in it."""
    with tarfile.open(DEMO) as archive:
        (member,) = (one for one in archive if one.name.endswith("model_config.yaml"))
        opened = archive.extractfile(member)
        assert opened is not None
        content = opened.read()
    known = json.loads(stand_ins.CONFIGURATION.read_text())
    assert known["sha256"] == hashlib.sha256(content).hexdigest()
    assert stand_ins.load_yaml(content) == yaml.safe_load(content)
    assert stand_ins.load_yaml(b'{"rate": 1e-05}') == {"rate": 1e-05}
    with pytest.raises(stand_ins.YAMLError):
        stand_ins.load_yaml(b"a: [1, 2")


def test_the_engine_loads_and_keeps_a_model_without_pyyaml_and_safetensors(tmp_path: Path) -> None:
    """In a process that has neither; what it converts is what one with both converts."""
    code = """
import sys
from importlib.abc import MetaPathFinder
class Missing(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("yaml", "safetensors", "pydantic", "boto3", "httpx", "aiohttp"):
            raise ModuleNotFoundError(name, name=name)
        return None
sys.meta_path.insert(0, Missing())
import bench.gpu.stand_ins as stand_ins
stand_ins.find_spec = lambda name: None
stand_ins.install()
import torch
from pathlib import Path
from parakeet_worker.engine.native import prepacked
from parakeet_worker.engine.native.precision import Precision
demo, folder = Path(sys.argv[1]), Path(sys.argv[2])
made = prepacked.open_prepacked(demo, Precision.BF16, folder)
(kept,) = folder.iterdir()
again = prepacked.open_prepacked(demo, Precision.BF16, folder)
assert made.tensors.keys() == again.tensors.keys()
assert all(torch.equal(made.tensors[name], again.tensors[name]) for name in made.tensors)
print(len(again.tensors), again.vocabulary.pieces[5])
"""
    ran = subprocess.run(
        [sys.executable, "-c", code, str(DEMO), str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    pieces = checkpoint.read_checkpoint(DEMO).vocabulary.pieces
    assert ran.stdout.split()[-1] == pieces[5]
