"""Kernels are compiled ahead for cards that are not here, and a launch then compiles nothing."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from parakeet_worker.engine.native import compilation
from parakeet_worker.engine.native.compilation import CompileRequest, Target, compiled, missing
from parakeet_worker.engine.native.kernels import ahead, residual_norm
from parakeet_worker.engine.native.kernels.launcher import Launch, recording
from parakeet_worker.engine.native.kernels.tiles import CAPABILITIES, shared_bytes, tiles_for
from parakeet_worker.engine.native.launches import ModelShape, launches
from parakeet_worker.engine.native.precision import Precision
from published import described
from tiny_model import config

SHAPE = ModelShape.of(described(config()))
HOPPER = Target(SHAPE, Precision.BF16, (9, 0))

needs_compiler = pytest.mark.skipif(
    shutil.which("gcc") is None and not os.environ.get("CI"), reason="there is no C compiler"
)


def request(folder: Path, *targets: Target, **options: bool) -> CompileRequest:
    return CompileRequest(targets, (folder,), processes=2, **options)


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with everything that the tiny model needs on Hopper in bf16."""
    folder = tmp_path_factory.mktemp("kernels")
    results = compiled(request(folder, HOPPER))
    assert [one.failure for one in results if one.failure] == []
    assert {one.kernel for one in results} >= {"attention", "residual_norm", "frames"}
    return folder


def test_what_is_compiled_is_missing_no_more_and_what_differs_still_is(
    kept: Path, tmp_path: Path
) -> None:
    other = [
        replace(HOPPER, precision=Precision.FP16),
        replace(HOPPER, capability=(8, 9)),
        replace(HOPPER, shape=replace(SHAPE, max_symbols=7)),
        replace(HOPPER, reproducible=True),
    ]
    assert missing([HOPPER, *other], [tmp_path, kept]) == other
    assert missing([HOPPER], [tmp_path]) == [HOPPER]


def test_an_entry_that_was_removed_is_missed(kept: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(kept, copy)
    assert missing([HOPPER], [copy]) == []
    entry = next(path for path in copy.iterdir() if path.is_dir())
    shutil.rmtree(entry)
    assert missing([HOPPER], [copy]) == [HOPPER]
    # Or it lies in another folder.
    assert missing([HOPPER], [copy, kept]) == []


LAUNCHING = """
import json, sys, tempfile
from pathlib import Path

from triton import knobs
from triton.backends.nvidia.driver import CudaLauncher, CudaUtils
from triton.runtime.driver import driver

from parakeet_worker.engine.native.kernels import ahead, cache, launcher
from parakeet_worker.engine.native.kernels.tiles import tiles_for
from parakeet_worker.engine.native.launches import launches
from test_native_compilation import HOPPER

class Driver(ahead._Card):
    def __init__(self):
        super().__init__((9, 0))
        self.utils, self.launcher_cls = CudaUtils(), CudaLauncher

hits = []
knobs.compilation.listener = lambda *, cache_hit, **_: hits.append(cache_hit)
cache.use([Path(each) for each in sys.argv[1:]])
driver.set_active(Driver())
recorded = launches(HOPPER.shape, HOPPER.precision, tiles_for(HOPPER.capability))
for one in recorded:
    launcher.launch(one.kernel, (1,), *one.arguments, **one.options)
print(json.dumps({"launches": len(recorded), "hits": hits}))
"""
"""What a worker does on a GPU, by Triton's own launcher, but for who tells which card it is."""

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
    """A CUDA driver that counts launches and does nothing else."""
    folder.mkdir()
    names = {line.split()[1].rstrip(");") for line in ahead._stub_source().splitlines()}
    own = {line.split()[1].partition("(")[0] for line in FAKE_DRIVER.splitlines() if "cu" in line}
    rest = [name.partition("(")[0] for name in names if name.partition("(")[0] not in own]
    source = FAKE_DRIVER + "".join(f"int {name}(void) {{ return 0; }}\n" for name in sorted(rest))
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
        "PATH": os.environ["PATH"] if compiler else "/nowhere",
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
def test_a_launch_finds_what_another_process_compiled_and_needs_no_compiler(
    kept: Path, tmp_path: Path
) -> None:
    """The whole way to the driver's own call, with gcc and clang hidden and nothing written."""
    driver = fake_driver(tmp_path / "driver")
    before = files(kept)
    ran = launch_all([kept], driver, compiler=False)
    assert ran.returncode == 0, ran.stderr
    told = json.loads(ran.stdout)
    assert told["launches"] > 10
    assert all(told["hits"])
    assert len((driver / "launched").read_text()) == told["launches"]
    assert files(kept) == before
    assert not (driver / ".triton").exists()


@needs_compiler
def test_an_image_may_be_read_only_and_may_have_moved(kept: Path, tmp_path: Path) -> None:
    """What is compiled ahead is found under another path; new entries go to the last folder."""
    driver = fake_driver(tmp_path / "driver")
    moved, own = tmp_path / "moved", tmp_path / "own"
    shutil.copytree(kept, moved)
    lost = next(path.parent for path in moved.rglob("_attention.cubin"))
    shutil.rmtree(lost)
    for path in (moved, *moved.rglob("*")):
        path.chmod(0o555 if path.is_dir() else 0o444)
    ran = launch_all([moved, own], driver, compiler=False)
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout)["hits"].count(False) == 1
    assert [path.name for path in own.iterdir()] == [lost.name]
    again = launch_all([moved, own], driver, compiler=False)
    assert all(json.loads(again.stdout)["hits"])


@needs_compiler
def test_without_anything_kept_a_compiler_is_needed(tmp_path: Path) -> None:
    driver = fake_driver(tmp_path / "driver")
    ran = launch_all([tmp_path / "empty"], driver, compiler=False)
    assert ran.returncode == 1
    assert "Failed to find C compiler" in ran.stderr


def test_a_compiler_that_crashes_is_one_kernel_that_failed(tmp_path: Path) -> None:
    class Crashing:
        __module__ = "kernels.crashing"

        def warmup(self, *_: object, **__: object) -> None:
            os._exit(11)

    (launch, *_) = norm_launches()
    jobs = [(HOPPER, launch), (HOPPER, Launch(Crashing(), (), {})), (HOPPER, launch)]
    asked = replace(request(tmp_path, HOPPER, startable=False), processes=1)
    results = list(compilation._forked(jobs, asked))
    assert [one.failure for one in results] == [None, "the compiler crashed", None]
    assert results[1].kernel == "crashing"


def norm_launches() -> list[Launch]:
    recorded: list[Launch] = []
    with torch.device("meta"), recording(recorded.append):
        states = torch.empty(3, 32, dtype=torch.bfloat16)
        affine = (states[0], states[0])
        for _ in range(2):
            residual_norm.launch(states, None, affine, tile=tiles_for((9, 0)).residual_norm)
    return recorded


def test_launches_that_differ_in_nothing_that_is_compiled_are_one_variant() -> None:
    assert len(norm_launches()) == 2
    assert len(ahead.variants(norm_launches())) == 1


def test_what_varies_between_batches_may_not_decide_what_is_compiled() -> None:
    """A number that Triton would make a constant of, and a pointer that is not aligned."""
    (launch, *_) = norm_launches()
    states, *others = launch.arguments
    for argument, reason in (
        (16, "do_not_specialize"),
        (states.flatten()[1:], "not divisible by 16"),
        (None, "is None"),
    ):
        with pytest.raises(ahead.NotClosed, match=reason):
            ahead.variants([replace(launch, arguments=(argument, *others))])


@pytest.mark.parametrize("precision", [Precision.BF16, Precision.FP16])
@pytest.mark.parametrize("capability", CAPABILITIES)
def test_launches_of_every_card_depend_on_nothing_that_varies(
    capability: ahead.Capability, precision: Precision
) -> None:
    recorded = launches(SHAPE, precision, tiles_for(capability))
    assert len(ahead.variants(recorded)) > 10
    assert shared_bytes(capability) >= 99 * 1024


def test_registers_and_spills_are_the_assemblers(tmp_path: Path) -> None:
    asked = request(tmp_path, HOPPER, startable=False, measured=True)
    jobs = [(HOPPER, launch) for launch in norm_launches()[:1]]
    (result,) = compilation._forked(jobs, asked)
    assert result.usage == ahead.Usage(result.usage.registers, spilled_bytes=0, shared_bytes=0)
    assert 8 < result.usage.registers < 64
