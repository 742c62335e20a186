"""Compiles a model's kernels in a child process, many in parallel, and records what is complete.

The driver that Triton compiles for is global to a process, and a compiler crash ends its process.
Therefore each kernel is compiled in a fork of a process that launches none, and a crash costs one
kernel only.
"""

import json
import subprocess
import sys
import sysconfig
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from parakeet_worker.engine.native import checkpoint, prepacked
from parakeet_worker.engine.native.checkpoint import ModelConfig
from parakeet_worker.engine.native.kernels import ahead, cache
from parakeet_worker.engine.native.kernels.tiles import CAPABILITIES
from parakeet_worker.engine.native.launches import ModelShape
from parakeet_worker.engine.native.precision import KERNEL_PRECISIONS, Precision

_SOURCES = Path(__file__).parent
_CHILD = f"{__package__}.compile_process"


@dataclass(frozen=True, slots=True)
class Target:
    """What one set of compiled kernels is valid for."""

    shape: ModelShape
    precision: Precision
    capability: ahead.Capability
    reproducible: bool = False

    @property
    def fingerprint(self) -> str:
        """Differs for different kernels, Triton versions or Python versions."""
        digest = sha256(repr((self, ahead.TRITON_VERSION, _module_suffix())).encode())
        for path in sorted(_SOURCES.rglob("*.py")):
            digest.update(path.read_bytes())
        return digest.hexdigest()[:16]

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> "Target":
        """Parse the result of `asdict`, also after a round trip through JSON."""
        major, minor = fields["capability"]
        shape, precision = ModelShape.from_dict(fields["shape"]), Precision(fields["precision"])
        return cls(shape, precision, (major, minor), fields["reproducible"])


@dataclass(frozen=True, slots=True)
class CompileRequest:
    """Targets to compile, and the folders of the cache."""

    targets: tuple[Target, ...]
    folders: tuple[Path, ...]
    """Read in this order; new entries are written to the last."""
    processes: int
    launchable: bool = True
    """Build the C modules that launch the kernels as well, which requires a C compiler."""
    measured: bool = False
    """Measure registers and spills, which stores the PTX in addition to the machine code."""

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> "CompileRequest":
        """Parse the result of `asdict`, also after a round trip through JSON."""
        others = dict(fields)
        targets = tuple(Target.from_dict(target) for target in others.pop("targets"))
        folders = tuple(Path(folder) for folder in others.pop("folders"))
        return cls(targets, folders, **others)


@dataclass(frozen=True, slots=True)
class CompiledKernel:
    """Result for one variant of a kernel on one card."""

    kernel: str
    variant: str
    target: Target
    seconds: float
    entries: tuple[str, ...] = ()
    """Keys of the cache entries that were read or written."""
    failure: str | None = None
    usage: ahead.Usage | None = None

    @property
    def card(self) -> str:
        """`sm_90`."""
        return ahead.card_name(self.target.capability)

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> "CompiledKernel":
        """Parse the result of `asdict`, also after a round trip through JSON."""
        others = dict(fields)
        target, usage = Target.from_dict(others.pop("target")), others.pop("usage")
        entries = tuple(others.pop("entries"))
        measured = ahead.Usage(**usage) if usage else None
        return cls(target=target, entries=entries, usage=measured, **others)


def targets_for(source: Path, precision: Precision, cards: Sequence[str]) -> tuple[Target, ...]:
    """Targets of the model at `source` on each of `cards` (`9.0`), by default on all supported.

    A prepacked model has a fixed precision, which replaces `precision`. Raises `ValueError` for a
    precision or card without kernels, and the errors of reading the model.
    """
    model: ModelConfig
    if source.suffix == ".safetensors":
        model = prepacked.load_prepacked(source)
        precision = model.precision
    else:
        model = checkpoint.read_checkpoint(source)
    if precision not in KERNEL_PRECISIONS:
        raise ValueError(f"there are no kernels for {precision}")
    capabilities = [_capability(card) for card in cards] or CAPABILITIES
    shape = ModelShape.of(model)
    return tuple(
        Target(shape, precision, capability, reproducible)
        for capability in capabilities
        for reproducible in (False, True)
    )


def _capability(card: str) -> ahead.Capability:
    major, dot, minor = card.partition(".")
    if not (dot and major.isdigit() and minor.isdigit()):
        raise ValueError(f"'{card}' is not a compute capability such as 9.0")
    capability = (int(major), int(minor))
    if capability < min(CAPABILITIES):
        raise ValueError(f"there are no kernels for compute capability {card}")
    return capability


def missing(targets: Sequence[Target], folders: Sequence[Path]) -> list[Target]:
    """Targets whose kernels are not all present in the folders."""
    return [target for target in targets if not _is_complete(target, folders)]


def compile_kernels(request: CompileRequest) -> list[CompiledKernel]:
    """Compile the kernels that are not cached yet, in a child process.

    Targets without a failure are no longer `missing`. Raises `ChildProcessError` if the child
    itself fails, `OSError` if the cache cannot be written.
    """
    child = subprocess.run(
        [sys.executable, "-m", _CHILD],
        input=json.dumps(asdict(request), default=str),
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    if child.returncode:
        raise ChildProcessError(f"compiling kernels ended with status {child.returncode}")
    results = [CompiledKernel.from_dict(json.loads(line)) for line in child.stdout.splitlines()]
    if request.launchable:
        for target in request.targets:
            target_results = [result for result in results if result.target == target]
            _write_stamp(target, target_results, request.folders[-1])
    return results


def _module_suffix() -> str:
    return str(sysconfig.get_config_var("EXT_SUFFIX"))


def _stamp_name(target: Target) -> str:
    card = ahead.card_name(target.capability)
    return f"{card}-{target.precision}-{target.fingerprint}.json"


def _write_stamp(target: Target, results: Sequence[CompiledKernel], folder: Path) -> None:
    """Record the target's cache entries, after all of them exist."""
    if any(result.failure for result in results):
        return
    entries = sorted({entry for result in results for entry in result.entries})
    cache.write_atomic(folder / _stamp_name(target), json.dumps(entries).encode())


def _is_complete(target: Target, folders: Sequence[Path]) -> bool:
    stamp = _stamp_name(target)
    for folder in folders:
        try:
            entries = json.loads((folder / stamp).read_text())
        except (OSError, ValueError):
            continue
        if all(any((other / entry).is_dir() for other in folders) for entry in entries):
            return True
    return False
