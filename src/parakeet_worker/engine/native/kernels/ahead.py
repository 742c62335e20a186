"""Compiles recorded launches for any card, on a machine with or without one.

Triton looks a kernel up by its source, the types and alignment of its arguments, its constants and
the card's compute capability. Here that key is computed by the code that a launch runs too, under
a driver that names the card: what was compiled ahead is what a launch finds.
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

try:  # from Triton 3.5, which torch 2.9 comes with
    from triton.runtime.cache import triton_key
except ImportError:
    from triton.compiler.compiler import triton_key

Capability = tuple[int, int]

VERSION: str = triton.__version__
"""Triton's."""

_WARP = 32
_HEADERS = Path(triton.__file__).parent / "backends" / "nvidia" / "include"


class NotClosed(Exception):
    """A launch whose machine code depends on what varies from batch to batch."""


class NoCompiler(Exception):
    """The C modules that start kernels cannot be built on this machine."""


@dataclass(frozen=True, slots=True)
class Usage:
    """What one program of a kernel takes of a card."""

    registers: int
    """Per thread."""
    spilled_bytes: int
    """Per thread, what the compiler had no registers for."""
    shared_bytes: int


def card_name(capability: Capability) -> str:
    """`sm_90` for (9, 0)."""
    major, minor = capability
    return f"sm_{major}{minor}"


def prepare() -> None:
    """Do once what every process would, before it forks: half a second for Triton's own hash."""
    triton_key()


def name_of(launch: Launch) -> str:
    """The kernel's name: that of its file."""
    module: str = launch.kernel.__module__
    return module.rpartition(".")[2]


def label_of(launch: Launch) -> str:
    """The types and constants of one variant of a kernel."""
    types = [str(each.dtype).removeprefix("torch.") for each in launch.arguments if _tensor(each)]
    constants = [f"{name}={value}" for name, value in sorted(launch.options.items())]
    return " ".join([*dict.fromkeys(types), *constants])


def variants(launches: Sequence[Launch]) -> list[Launch]:
    """One of each that need machine code of their own; raises `NotClosed`."""
    found: dict[tuple[Any, ...], Launch] = {}
    for launch in launches:
        _check_closed(launch)
        kinds = tuple(each.dtype if _tensor(each) else type(each) for each in launch.arguments)
        found.setdefault((launch.kernel, kinds, *sorted(launch.options.items())), launch)
    return list(found.values())


def _tensor(argument: Any) -> bool:
    return isinstance(argument, Tensor)


def _check_closed(launch: Launch) -> None:
    """Triton compiles 1 and multiples of 16 as constants, unless it is told not to."""
    for parameter, argument in zip(launch.kernel.params, launch.arguments, strict=False):
        if _tensor(argument) and argument.data_ptr() % ALIGNMENT_BYTES:
            reason = f"{parameter.name} is not divisible by {ALIGNMENT_BYTES}"
        elif isinstance(argument, int) and not parameter.do_not_specialize:
            reason = f"{parameter.name} is not in do_not_specialize"
        elif argument is None:
            reason = f"{parameter.name} is None: pass another tensor"
        else:
            continue
        raise NotClosed(f"{name_of(launch)}: {reason}")


class _Card:
    """What Triton asks a driver before it has anything to start."""

    def __init__(self, capability: Capability) -> None:
        self._number = 10 * capability[0] + capability[1]

    def get_current_device(self) -> int:
        # A jit function keeps its target by device: every card is another one.
        return self._number

    def get_current_stream(self, device: int) -> int:  # noqa: ARG002
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self._number, _WARP)


@contextmanager
def _on(capability: Capability) -> Iterator[None]:
    driver.set_active(_Card(capability))
    try:
        yield
    finally:
        # From Triton 3.5 this looks for the machine's own driver, which may have none.
        with suppress(RuntimeError):
            driver.reset_active()


def compile_launch(launch: Launch, capability: Capability) -> Any:
    """Triton's compiled kernel, from its cache or made and kept there.

    Not beside launches in the same process: the driver is the process's. Raises whatever Triton
    raises.
    """
    with _on(capability):
        return launch.kernel.warmup(*launch.arguments, grid=(1,), **launch.options)


def usage(compiled: Any, capability: Capability) -> Usage:
    """What a compiled kernel takes, by the assembler's own account of it."""
    number = 10 * capability[0] + capability[1]
    tools = knobs.nvidia
    # Triton 3.5 and later have one of their own for Blackwell.
    tool = getattr(tools, "ptxas_blackwell", tools.ptxas) if number >= 100 else tools.ptxas
    target = f"sm_{number}{'a' if number >= 90 else ''}"
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "kernel.ptx"
        source.write_text(compiled.asm["ptx"])
        command = [tool.path, "-v", f"--gpu-name={target}", str(source), "-o", f"{source}.o"]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    return Usage(
        registers=_number(r"Used (\d+) registers", said),
        spilled_bytes=_number(r"(\d+) bytes spill stores", said),
        shared_bytes=compiled.metadata.shared,
    )


def _number(pattern: str, text: str) -> int:
    found = re.search(pattern, text)
    if found is None:
        raise ValueError(f"ptxas does not say {pattern!r}: {text}")
    return int(found[1])


@contextmanager
def stub_driver() -> Iterator[None]:
    """Within it C modules can be linked and loaded that want CUDA's driver, which is not there.

    The library has every name that the driver's header declares. It is loaded for good, and
    modules that are loaded later take it for the driver: use a process that starts no kernels.
    Raises `NoCompiler`.
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
    declared = (_HEADERS / "cuda.h").read_text(encoding="utf-8", errors="replace")
    names = sorted(set(re.findall(r"\bcu[A-Z]\w+", declared)))
    return "\n".join(f"int {name}(void) {{ return 999; }}" for name in names)


def _run_compiler(*options: str) -> None:
    compiler = knobs.build.cc or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        raise NoCompiler("there is no gcc and no clang, and CC is not set")
    ran = subprocess.run([compiler, *options], capture_output=True, text=True, check=False)
    if ran.returncode:
        raise NoCompiler(f"{compiler}: {ran.stderr.strip()[-200:]}")


def build_modules(compiled: Any) -> None:
    """Build, into Triton's cache, the C modules that load a compiled kernel and start it.

    Within `stub_driver`, or where there is a driver. The second is another one for every
    combination of argument types, whatever the card. Raises `NoCompiler`.
    """
    from triton.backends.nvidia.driver import CudaLauncher, CudaUtils

    try:
        CudaUtils()
        CudaLauncher(compiled.src, compiled.metadata)
    except (AssertionError, ImportError, RuntimeError, subprocess.CalledProcessError) as failure:
        raise NoCompiler(f"{type(failure).__name__}: {failure}") from failure
