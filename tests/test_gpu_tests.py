"""The tests that need a GPU run without the project's environment, and can be tried on a CPU."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def run(device: str, *options: str) -> subprocess.CompletedProcess[str]:
    """`scripts/test --gpu` in this environment, on a machine that shows no GPU."""
    variables = {"PYTHON": sys.executable, "GPU_TESTS_DEVICE": device, "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(
        [ROOT / "scripts" / "test", "--gpu", "-p", "no:cacheprovider", *options],
        env=os.environ | variables,
        capture_output=True,
        text=True,
        check=False,
    )


def test_without_a_gpu_they_are_skipped_with_a_reason() -> None:
    ran = run("")
    assert ran.returncode == 0, ran.stdout
    assert "no GPU with CUDA" in ran.stdout
    summary = ran.stdout.strip().splitlines()[-1]
    assert "skipped" in summary
    assert "passed" not in summary
    assert "failed" not in summary


def test_on_a_cpu_they_pass_but_for_those_of_the_device_itself() -> None:
    """So that none of them is broken before it meets a GPU."""
    ran = run("cpu")
    assert ran.returncode == 0, ran.stdout
    summary = ran.stdout.strip().splitlines()[-1]
    assert "2 skipped" in summary
    assert int(summary.split(" passed")[0].split()[-1]) > 20


def test_a_wrong_kernel_fails_them(tmp_path: Path) -> None:
    """One returns half of its input. Words stay right, as the engine falls back and reports it."""
    plugin = tmp_path / "spoiled.py"
    plugin.write_text(
        "from parakeet_worker.engine.native.kernels import glu\n"
        "from parakeet_worker.engine.native.kernels.kernel_set import Kernels\n"
        "from dataclasses import replace\n"
        "import bench.gpu.opening as opening\n"
        "right = opening.loaded\n"
        "def loaded(*given, **named):\n"
        "    model = right(*given, **named)\n"
        "    half = lambda states, **_: states[:, : states.shape[1] // 2].contiguous()\n"
        "    return replace(model, kernels=replace(model.kernels, glu=half))\n"
        "opening.loaded = loaded\n"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(map(str, (tmp_path, ROOT, ROOT / "src"))))
        ran = run("cpu", "-p", "spoiled", "-k", "encoder or packed_rows or replaced or words")
    assert ran.returncode == 1, ran.stdout
    failed = ran.stdout.split("short test summary info")[-1]
    for name in ("each_kernel_of_the_encoder", "packed_rows_are_as_exact", "nothing_is_replaced"):
        assert name in failed
    assert "words_are_those" not in failed
