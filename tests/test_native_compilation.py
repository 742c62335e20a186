"""Kernels are compiled ahead of time for absent cards; a launch then compiles nothing."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from compiled_kernels import HOPPER, SHAPE, compiled_folder
from parakeet_worker.engine.native.compilation import CompileRequest, Target, missing
from parakeet_worker.engine.native.compile_process import compile_all
from parakeet_worker.engine.native.kernels import ahead, residual_norm
from parakeet_worker.engine.native.kernels.launcher import Launch, recording
from parakeet_worker.engine.native.kernels.tiles import CAPABILITIES, shared_bytes, tiles_for
from parakeet_worker.engine.native.launches import launches
from parakeet_worker.engine.native.precision import Precision

needs_compiler = pytest.mark.skipif(
    shutil.which("gcc") is None and not os.environ.get("CI"), reason="there is no C compiler"
)


def request(folder: Path, *targets: Target, **options: bool) -> CompileRequest:
    return CompileRequest(targets, (folder,), processes=2, **options)


def test_a_compiled_target_is_complete_and_every_other_target_is_missing(tmp_path: Path) -> None:
    others = [
        replace(HOPPER, precision=Precision.FP16),
        replace(HOPPER, capability=(8, 9)),
        replace(HOPPER, shape=replace(SHAPE, max_symbols=7)),
        replace(HOPPER, reproducible=True),
    ]
    assert missing([HOPPER, *others], [tmp_path, compiled_folder()]) == others
    assert missing([HOPPER], [tmp_path]) == [HOPPER]


def test_a_target_with_a_removed_entry_is_missing(tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(compiled_folder(), copy)
    assert missing([HOPPER], [copy]) == []
    entry = next(path for path in copy.iterdir() if path.is_dir())
    shutil.rmtree(entry)
    assert missing([HOPPER], [copy]) == [HOPPER]
    # Another folder may contain it.
    assert missing([HOPPER], [copy, compiled_folder()]) == []


LAUNCHING = """
import json, sys, tempfile
from pathlib import Path

from triton import knobs
from triton.backends.nvidia.driver import CudaLauncher, CudaUtils
from triton.runtime.driver import driver

from parakeet_worker.engine.native.kernels import ahead, cache, launcher
from parakeet_worker.engine.native.kernels.tiles import tiles_for
from parakeet_worker.engine.native.launches import launches
from compiled_kernels import HOPPER

class Driver(ahead._TargetDriver):
    def __init__(self):
        super().__init__((9, 0))
        self.utils, self.launcher_cls = CudaUtils(), CudaLauncher

hits = []
knobs.compilation.listener = lambda *, cache_hit, **_: hits.append(cache_hit)
cache.activate([Path(folder) for folder in sys.argv[1:]])
driver.set_active(Driver())
recorded = launches(HOPPER.shape, HOPPER.precision, tiles_for(HOPPER.capability))
for launch in recorded:
    launcher.launch_kernel(launch.kernel, (1,), *launch.arguments, **launch.options)
print(json.dumps({"launches": len(recorded), "hits": hits}))
"""
"""Launches all kernels through Triton's own launcher, with a driver object for a fixed card."""

FAKE_DRIVER = """
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
int cuCtxGetCurrent(void **context) { *context = &cuCtxGetCurrent; return 0; }
int cuDeviceGetAttribute(int *value, int name, int device) { *value = 232448; return 0; }
int cuFuncGetAttribute(int *value, int name, void *function) { *value = 1024; return 0; }
int cuGetErrorString(int error, const char **text) { *text = "a fake"; return 0; }
int cuLaunchKernelEx(void *config, void *function, void **parameters, void **extra) {
    FILE *file = fopen(getenv("LAUNCHED"), "a");
    fputc('x', file);
    return fclose(file);
}
"""


def fake_driver(folder: Path) -> Path:
    """A CUDA driver that only counts launches."""
    folder.mkdir()
    names = {line.split()[1].rstrip(");") for line in ahead._stub_source().splitlines()}
    defined = {
        line.split()[1].partition("(")[0] for line in FAKE_DRIVER.splitlines() if "cu" in line
    }
    others = [name.partition("(")[0] for name in names if name.partition("(")[0] not in defined]
    source = FAKE_DRIVER + "".join(f"int {name}(void) {{ return 0; }}\n" for name in sorted(others))
    (folder / "cuda.c").write_text(source)
    library = folder / "libcuda.so.1"
    command = ["gcc", "-w", "-shared", "-fPIC", "-Wl,-soname,libcuda.so.1", "-o", str(library)]
    subprocess.run([*command, str(folder / "cuda.c")], check=True)
    (folder / "libcuda.so").symlink_to(library.name)
    return folder


def launch_all(
    folders: list[Path], driver: Path, *, compiler: bool
) -> subprocess.CompletedProcess[str]:
    variables = {
        "PATH": os.environ["PATH"] if compiler else "/nonexistent",
        "PYTHONPATH": f"{Path(__file__).parent}",
        "HOME": str(driver),
        "LD_LIBRARY_PATH": str(driver),
        "TRITON_LIBCUDA_PATH": str(driver),
        "LAUNCHED": str(driver / "launched"),
    }
    (driver / "launched").write_text("")
    command = [sys.executable, "-c", LAUNCHING, *map(str, folders)]
    return subprocess.run(command, env=variables, capture_output=True, text=True, check=False)


def files(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if path.is_file()}


@needs_compiler
def test_a_launch_uses_kernels_compiled_by_another_process_without_a_compiler(
    tmp_path: Path,
) -> None:
    """Up to the driver's launch call, with gcc and clang hidden and nothing written."""
    driver = fake_driver(tmp_path / "driver")
    before = files(compiled_folder())
    process = launch_all([compiled_folder()], driver, compiler=False)
    assert process.returncode == 0, process.stderr
    counts = json.loads(process.stdout)
    assert counts["launches"] > 10
    assert all(counts["hits"])
    assert len((driver / "launched").read_text()) == counts["launches"]
    assert files(compiled_folder()) == before
    assert not (driver / ".triton").exists()


@needs_compiler
def test_an_image_may_be_read_only_and_moved(tmp_path: Path) -> None:
    """Its kernels are found under another path; new entries are written to the last folder."""
    driver = fake_driver(tmp_path / "driver")
    moved, own = tmp_path / "moved", tmp_path / "own"
    shutil.copytree(compiled_folder(), moved)
    removed = next(path.parent for path in moved.rglob("_attention.cubin"))
    shutil.rmtree(removed)
    for path in (moved, *moved.rglob("*")):
        path.chmod(0o555 if path.is_dir() else 0o444)
    first = launch_all([moved, own], driver, compiler=False)
    assert first.returncode == 0, first.stderr
    assert json.loads(first.stdout)["hits"].count(False) == 1
    assert [path.name for path in own.iterdir()] == [removed.name]
    second = launch_all([moved, own], driver, compiler=False)
    assert all(json.loads(second.stdout)["hits"])


@needs_compiler
def test_an_empty_cache_requires_a_compiler(tmp_path: Path) -> None:
    driver = fake_driver(tmp_path / "driver")
    process = launch_all([tmp_path / "empty"], driver, compiler=False)
    assert process.returncode == 1
    assert "Failed to find C compiler" in process.stderr


def test_a_crash_of_the_compiler_costs_one_kernel(tmp_path: Path) -> None:
    class Crashing:
        __module__ = "kernels.crashing"

        def warmup(self, *_: object, **__: object) -> None:
            os._exit(11)

    (launch, *_) = norm_launches()
    tasks = [(HOPPER, launch), (HOPPER, Launch(Crashing(), (), {})), (HOPPER, launch)]
    compile_request = replace(request(tmp_path, HOPPER, launchable=False), processes=1)
    results = list(compile_all(tasks, compile_request))
    assert [result.failure for result in results] == [None, "the compiler crashed", None]
    assert results[1].kernel == "crashing"


def norm_launches() -> list[Launch]:
    recorded: list[Launch] = []
    with torch.device("meta"), recording(recorded.append):
        states = torch.empty(3, 32, dtype=torch.bfloat16)
        affine = (states[0], states[0])
        for _ in range(2):
            residual_norm.launch(states, None, affine, tile=tiles_for((9, 0)).residual_norm)
    return recorded


def test_launches_with_equal_machine_code_are_one_variant() -> None:
    assert len(norm_launches()) == 2
    assert len(ahead.variants(norm_launches())) == 1


def test_machine_code_that_depends_on_the_batch_is_refused() -> None:
    """An integer that Triton would specialise, an unaligned pointer, and None."""
    (launch, *_) = norm_launches()
    states, *others = launch.arguments
    for argument, reason in (
        (16, "do_not_specialize"),
        (states.flatten()[1:], "not divisible by 16"),
        (None, "is None"),
    ):
        with pytest.raises(ahead.SpecializationError, match=reason):
            ahead.variants([replace(launch, arguments=(argument, *others))])


@pytest.mark.parametrize("precision", [Precision.BF16, Precision.FP16])
@pytest.mark.parametrize("capability", CAPABILITIES)
def test_launches_on_every_card_are_independent_of_the_batch(
    capability: ahead.Capability, precision: Precision
) -> None:
    recorded = launches(SHAPE, precision, tiles_for(capability))
    assert len(ahead.variants(recorded)) > 10
    assert shared_bytes(capability) >= 99 * 1024


def test_registers_and_spills_are_measured_by_the_assembler(tmp_path: Path) -> None:
    compile_request = request(tmp_path, HOPPER, launchable=False, measured=True)
    tasks = [(HOPPER, launch) for launch in norm_launches()[:1]]
    (result,) = compile_all(tasks, compile_request)
    assert result.usage == ahead.Usage(result.usage.registers, spilled_bytes=0, shared_bytes=0)
    assert 8 < result.usage.registers < 64
