"""The GPU benchmark runs end to end on a CPU, and a failing part does not affect the others."""

import hashlib
import json
import os
import subprocess
import sys
import tarfile
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from bench.gpu import comparing, stubs
from bench.gpu.__main__ import options, selected
from bench.gpu.figures import Figure, Report
from bench.gpu.kernels import chunks_of, laid_out
from bench.gpu.parts import PARTS, Setup
from bench.gpu.running import ABSENT
from parakeet_worker.engine.native import checkpoint

ROOT = Path(__file__).resolve().parent.parent
DEMO = ROOT / "src" / "parakeet_worker" / "checkpoints" / "demo.nemo"
OPTIONAL = {"nemo", "transformers"}


def run(out: Path, work: Path, *options: str) -> tuple[int, str, dict[str, Any]]:
    """Exit status, standard output, and the JSON."""
    command = [ROOT / "scripts" / "bench", "gpu", "--device=cpu", "--size=small"]
    process = subprocess.run(
        [*command, f"--work={work}", *options],
        env=os.environ | {"PYTHON": sys.executable, "OUT": str(out)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode in (0, 1), process.stderr
    (path,) = out.glob("gpu-*.json")
    return process.returncode, process.stdout, json.loads(path.read_text())


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the random model, which the first part creates."""
    return tmp_path_factory.mktemp("work")


def test_a_run_writes_the_figures_of_every_part(work: Path, tmp_path: Path) -> None:
    """Each part is a process."""
    named = ("--part=latency", "--part=nemo")
    status, table, document = run(tmp_path, work, *named, "--minutes=60", "--limit=600")
    assert status == 0, table
    assert document["passed"] is True
    assert document["hardware"]["cpu"]
    assert document["versions"]["torch"]
    assert document["versions"]["commit"]
    names = ["model", "latency", "nemo"]
    assert document["arguments"] == {
        "device": "cpu", "size": "small", "quick": False, "parts": names,
    }  # fmt: skip
    parts = {part["name"]: part for part in document["parts"]}
    assert list(parts) == names
    assert parts["nemo"]["status"] == ("done" if find_spec("nemo") else "absent")
    assert [parts[name]["status"] for name in names[:2]] == ["done", "done"]
    for name in names[:2]:
        assert parts[name]["figures"]
        for figure in parts[name]["figures"]:
            assert isinstance(figure["value"], int | float), figure
            assert figure["name"] in table
            assert figure["required"] or figure["goal"] is None, "a speed goal on a CPU"
    assert str(work) not in json.dumps(document)


def test_all_parts_are_selected_if_none_is_named() -> None:
    parse = options().parse_args
    assert selected(parse([])) == list(PARTS)
    assert selected(parse(["--quick"])) == [part for part in PARTS if part.quick]
    assert [part.name for part in selected(parse(["--part=mix", "--part=crash"]))] == [
        "model", "crash", "mix",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def setup(work: Path) -> Setup:
    """The part `model` has run."""
    small = Setup("cpu", "small", quick=False, work=work)
    assert figures_of("model", small)
    return small


def figures_of(part: str, setup: Setup) -> list[Figure]:
    """Run a part in this process."""
    lines: list[str] = []
    module = import_module(f"bench.gpu.{part}")
    module.run(setup, Report(lines.append, judged=False))
    return [Figure.read(json.loads(line)) for line in lines]


@pytest.mark.parametrize("part", [part.name for part in PARTS[1:]])
def test_each_part_runs_on_a_cpu(setup: Setup, part: str) -> None:
    """Results must be correct there as well; speed has no goal."""
    if part in OPTIONAL and find_spec(part) is None:
        with pytest.raises(SystemExit) as ended:
            figures_of(part, setup)
        assert ended.value.code == ABSENT
        return
    figures = figures_of(part, setup)
    assert figures
    assert [figure for figure in figures if figure.value is None] == []
    assert [figure for figure in figures if figure.required and figure.holds is False] == []
    assert [figure for figure in figures if not figure.required and figure.goal] == []


def test_a_part_that_crashes_hangs_or_is_incorrect_does_not_end_the_others(
    work: Path, tmp_path: Path
) -> None:
    """Its earlier figures are preserved, it is named, and the exit status is 1."""
    named = ("--part=crash", "--part=hang", "--part=wrong", "--part=latency")
    status, table, document = run(tmp_path, work, *named, "--minutes=60")
    assert status == 1
    assert document["passed"] is False
    parts = {part["name"]: part for part in document["parts"]}
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


def test_a_part_without_remaining_time_is_skipped_and_the_run_fails(
    work: Path, tmp_path: Path
) -> None:
    status, _, document = run(tmp_path, work, "--part=latency", "--minutes=0.01")
    assert status == 1
    assert [part["status"] for part in document["parts"]] == ["skipped", "skipped"]


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
    """A non-finite value reaches no goal, and is written as valid JSON."""
    lines: list[str] = []
    Report(lines.append, judged=True).check("it", value, "s", **bounds)
    (line,) = lines
    assert Figure.read(json.loads(line)).holds is holds
    assert json.loads(line)["holds"] is holds


def test_differences_between_texts_are_counted() -> None:
    expected = [(("a", 0, 1), ("b", 1, 1)), (("c", 0, 1), ("d", 4, 1))]
    assert comparing.differing_tokens(expected, expected) == 0
    assert comparing.differing_tokens([expected[0], (("c", 0, 1),)], expected) == 250
    assert comparing.differing_tokens([expected[0], ()], expected) == 500
    assert comparing.per_thousand(["x", "y"], ["x", "z"]) == 500


def test_empty_rows_and_single_samples_have_a_layout() -> None:
    chunks = chunks_of((0, 1, 160, 1280))
    _, rows = laid_out(chunks, torch.device("cpu"))
    assert rows.offsets.tolist() == [0, 0, 0, 1, 2]


def test_the_demo_checkpoint_is_read_without_pyyaml() -> None:
    """Its stored configuration equals the one that PyYAML reads."""
    with tarfile.open(DEMO) as archive:
        (member,) = (entry for entry in archive if entry.name.endswith("model_config.yaml"))
        opened = archive.extractfile(member)
        assert opened is not None
        content = opened.read()
    stored = json.loads(stubs.CONFIGURATION.read_text())
    assert stored["sha256"] == hashlib.sha256(content).hexdigest()
    assert stubs.load_yaml(content) == yaml.safe_load(content)
    assert stubs.load_yaml(b'{"rate": 1e-05}') == {"rate": 1e-05}
    with pytest.raises(stubs.YAMLError):
        stubs.load_yaml(b"a: [1, 2")


def test_a_model_is_prepacked_and_loaded_without_pyyaml_and_safetensors(tmp_path: Path) -> None:
    """In a process without both; the result equals that of a process with both."""
    code = """
import sys
from importlib.abc import MetaPathFinder
class Missing(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("yaml", "safetensors", "pydantic", "boto3", "httpx", "aiohttp"):
            raise ModuleNotFoundError(name, name=name)
        return None
sys.meta_path.insert(0, Missing())
import bench.gpu.stubs as stubs
stubs.find_spec = lambda name: None
stubs.install()
import torch
from pathlib import Path
from parakeet_worker.engine.native import prepacked
from parakeet_worker.engine.native.precision import Precision
demo, folder = Path(sys.argv[1]), Path(sys.argv[2])
made = prepacked.open_prepacked(demo, Precision.BF16, folder)
(file,) = folder.iterdir()
again = prepacked.open_prepacked(demo, Precision.BF16, folder)
assert made.tensors.keys() == again.tensors.keys()
assert all(torch.equal(made.tensors[name], again.tensors[name]) for name in made.tensors)
print(len(again.tensors), again.vocabulary.pieces[5])
"""
    process = subprocess.run(
        [sys.executable, "-c", code, str(DEMO), str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    pieces = checkpoint.read_checkpoint(DEMO).vocabulary.pieces
    assert process.stdout.split()[-1] == pieces[5]
