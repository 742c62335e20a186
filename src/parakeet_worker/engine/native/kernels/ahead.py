"""Compiles recorded launches for any card, with or without a GPU in the machine.

Triton looks a kernel up by its source, the types and alignment of its arguments, its constants and
the compute capability. Here that key is computed by the same code as in a launch, under a driver
object that reports the target card: a launch finds the kernels that were compiled ahead of time.
"""

import ctypes
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import triton
from torch import Tensor
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver

from parakeet_worker.engine.native.kernels.launcher import ALIGNMENT_BYTES, Launch

try:  # Triton 3.5 and later, with torch 2.9
    from triton.runtime.cache import triton_key
except ImportError:
    from triton.compiler.compiler import triton_key

Capability = tuple[int, int]

TRITON_VERSION: str = triton.__version__

_WARP_SIZE = 32
_HEADERS = Path(triton.__file__).parent / "backends" / "nvidia" / "include"


class SpecializationError(Exception):
    """The machine code of a launch depends on values that vary between batches."""


class NoCompiler(Exception):
    """The C modules that launch kernels cannot be built on this machine."""


@dataclass(frozen=True, slots=True)
class Usage:
    """Resources of one program of a kernel."""

    registers: int
    """Per thread."""
    spilled_bytes: int
    """Per thread, spilled to local memory."""
    shared_bytes: int


def card_name(capability: Capability) -> str:
    """`sm_90` for (9, 0)."""
    major, minor = capability
    return f"sm_{major}{minor}"


def precompute_key() -> None:
    """Compute Triton's own hash once before forking: it takes half a second per process."""
    triton_key()


def kernel_name(launch: Launch) -> str:
    """The kernel's name: that of its file."""
    module: str = launch.kernel.__module__
    return module.rpartition(".")[2]


def variant_label(launch: Launch) -> str:
    """Dtypes and constants of one variant of a kernel."""
    types = [
        str(argument.dtype).removeprefix("torch.")
        for argument in launch.arguments
        if _is_tensor(argument)
    ]
    constants = [f"{name}={value}" for name, value in sorted(launch.options.items())]
    return " ".join([*dict.fromkeys(types), *constants])


def variants(launches: Sequence[Launch]) -> list[Launch]:
    """One launch for each distinct machine code. Raises `SpecializationError`."""
    unique: dict[tuple[Any, ...], Launch] = {}
    for launch in launches:
        _check_specialization(launch)
        types = tuple(
            argument.dtype if _is_tensor(argument) else type(argument)
            for argument in launch.arguments
        )
        unique.setdefault((launch.kernel, types, *sorted(launch.options.items())), launch)
    return list(unique.values())


def _is_tensor(argument: Any) -> bool:
    return isinstance(argument, Tensor)


def _check_specialization(launch: Launch) -> None:
    """Triton compiles 1 and multiples of 16 as constants unless a parameter opts out."""
    for parameter, argument in zip(launch.kernel.params, launch.arguments, strict=False):
        if _is_tensor(argument) and argument.data_ptr() % ALIGNMENT_BYTES:
            reason = f"{parameter.name} is not divisible by {ALIGNMENT_BYTES}"
        elif isinstance(argument, int) and not parameter.do_not_specialize:
            reason = f"{parameter.name} is not in do_not_specialize"
        elif argument is None:
            reason = f"{parameter.name} is None: pass another tensor"
        else:
            continue
        raise SpecializationError(f"{kernel_name(launch)}: {reason}")


class _TargetDriver:
    """The part of Triton's driver interface that compilation uses."""

    def __init__(self, capability: Capability) -> None:
        self._arch = 10 * capability[0] + capability[1]

    def get_current_device(self) -> int:
        # A jit function caches its target by device: each card must be a different device.
        return self._arch

    def get_current_stream(self, device: int) -> int:  # noqa: ARG002
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self._arch, _WARP_SIZE)


@contextmanager
def _target(capability: Capability) -> Iterator[None]:
    driver.set_active(_TargetDriver(capability))
    try:
        yield
    finally:
        # Triton 3.5 and later search for the machine's own driver here; there may be none.
        with suppress(RuntimeError):
            driver.reset_active()


def compile_launch(launch: Launch, capability: Capability) -> Any:
    """Triton's compiled kernel, from its cache or newly compiled and cached.

    The active driver is global: do not launch kernels concurrently in the same process. Raises
    whatever Triton raises.
    """
    with _target(capability):
        return launch.kernel.warmup(*launch.arguments, grid=(1,), **launch.options)


def measure_usage(compiled: Any, capability: Capability) -> Usage:
    """Resources of a compiled kernel, as reported by the assembler `ptxas`."""
    arch = 10 * capability[0] + capability[1]
    tools = knobs.nvidia
    # Triton 3.5 and later ship a separate assembler for Blackwell.
    tool = getattr(tools, "ptxas_blackwell", tools.ptxas) if arch >= 100 else tools.ptxas
    target = f"sm_{arch}{'a' if arch >= 90 else ''}"
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "kernel.ptx"
        source.write_text(compiled.asm["ptx"])
        command = [tool.path, "-v", f"--gpu-name={target}", str(source), "-o", f"{source}.o"]
        output = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    return Usage(
        registers=_parse_number(r"Used (\d+) registers", output),
        spilled_bytes=_parse_number(r"(\d+) bytes spill stores", output),
        shared_bytes=compiled.metadata.shared,
    )


def _parse_number(pattern: str, text: str) -> int:
    match = re.search(pattern, text)
    if match is None:
        raise ValueError(f"no {pattern!r} in the output of ptxas: {text}")
    return int(match[1])


@contextmanager
def stub_driver() -> Iterator[None]:
    """Allow linking and loading C modules that need CUDA's driver on a machine without one.

    A stub library defines every name that the driver's header declares. It stays loaded, and
    modules that are loaded later resolve to it: use a process that launches no kernels. Raises
    `NoCompiler`.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        library = folder / "libcuda.so.1"
        (folder / "libcuda.c").write_text(_stub_source())
        _run_compiler(
            "-shared",
            "-fPIC",
            "-Wl,-soname,libcuda.so.1",
            "-o",
            str(library),
            f"{folder}/libcuda.c",
        )
        (folder / "libcuda.so").symlink_to(library.name)
        ctypes.CDLL(str(library))
        with knobs.nvidia.scope():
            knobs.nvidia.libcuda_path = str(folder)
            yield


def _stub_source() -> str:
    header = (_HEADERS / "cuda.h").read_text(encoding="utf-8", errors="replace")
    names = sorted(set(re.findall(r"\bcu[A-Z]\w+", header)))
    return "\n".join(f"int {name}(void) {{ return 999; }}" for name in names)


def _run_compiler(*options: str) -> None:
    compiler = knobs.build.cc or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        raise NoCompiler("there is no gcc and no clang, and CC is not set")
    result = subprocess.run([compiler, *options], capture_output=True, text=True, check=False)
    if result.returncode:
        raise NoCompiler(f"{compiler}: {result.stderr.strip()[-200:]}")


def build_modules(compiled: Any) -> None:
    """Build, into Triton's cache, the C modules that load and launch a compiled kernel.

    Requires `stub_driver` or CUDA's driver. The launcher module depends on the combination of
    argument types, not on the card. Raises `NoCompiler`.
    """
    from triton.backends.nvidia.driver import CudaLauncher, CudaUtils

    try:
        CudaUtils()
        CudaLauncher(compiled.src, compiled.metadata)
    except (AssertionError, ImportError, RuntimeError, subprocess.CalledProcessError) as failure:
        raise NoCompiler(f"{type(failure).__name__}: {failure}") from failure
