"""The GPU tests run without the project's environment, and can be tested on a CPU."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def run(device: str, *options: str) -> subprocess.CompletedProcess[str]:
    """`scripts/test --gpu` in this environment, with no visible GPU."""
    variables = {"PYTHON": sys.executable, "GPU_TESTS_DEVICE": device, "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(
        [ROOT / "scripts" / "test", "--gpu", "-p", "no:cacheprovider", *options],
        env=os.environ | variables,
        capture_output=True,
        text=True,
        check=False,
    )


def test_without_a_gpu_they_are_skipped_with_a_reason() -> None:
    process = run("")
    assert process.returncode == 0, process.stdout
    assert "no GPU with CUDA" in process.stdout
    summary = process.stdout.strip().splitlines()[-1]
    assert "skipped" in summary
    assert "passed" not in summary
    assert "failed" not in summary


def test_on_a_cpu_they_pass_except_those_of_the_device_itself() -> None:
    """So that none of them is broken when a GPU is available."""
    process = run("cpu")
    assert process.returncode == 0, process.stdout
    summary = process.stdout.strip().splitlines()[-1]
    assert "2 skipped" in summary
    assert int(summary.split(" passed")[0].split()[-1]) > 20


def test_an_incorrect_kernel_fails_them(tmp_path: Path) -> None:
    """It returns half of its input. Words stay correct, since the engine falls back."""
    plugin = tmp_path / "incorrect.py"
    plugin.write_text(
        "from parakeet_worker.engine.native.kernels import glu\n"
        "from parakeet_worker.engine.native.kernels.kernel_set import Kernels\n"
        "from dataclasses import replace\n"
        "import bench.gpu.opening as opening\n"
        "original = opening.loaded\n"
        "def loaded(*arguments, **options):\n"
        "    model = original(*arguments, **options)\n"
        "    half = lambda states, **_: states[:, : states.shape[1] // 2].contiguous()\n"
        "    return replace(model, kernels=replace(model.kernels, glu=half))\n"
        "opening.loaded = loaded\n"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(map(str, (tmp_path, ROOT, ROOT / "src"))))
        process = run("cpu", "-p", "incorrect", "-k", "encoder or packed_rows or replaced or words")
    assert process.returncode == 1, process.stdout
    failed = process.stdout.split("short test summary info")[-1]
    for name in ("each_kernel_of_the_encoder", "packed_rows_are_as_exact", "nothing_is_replaced"):
        assert name in failed
    assert "words_equal_those" not in failed
