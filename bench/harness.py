"""What every measurement shares: its options, where it ran, and how it is written down."""

import argparse
import json
import math
import os
import platform
import re
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench" / "results"

_PACKAGES = ("torch", "nemo_toolkit", "transformers", "onnxruntime", "onnx-asr", "numpy")
# What decides which arithmetic a processor is good at.
_SIMD_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_bf16", "amx_int8")


@dataclass(frozen=True, slots=True)
class Hardware:
    """Where it was measured."""

    cpu: str
    cores: int
    simd: tuple[str, ...]
    memory_gib: float
    gpu: str | None
    gpu_memory_gib: float | None
    driver: str | None

    @classmethod
    def here(cls) -> "Hardware":
        facts = _cpu_facts()
        gpu, gpu_memory_gib, driver = _gpu()
        pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        flags = facts.get("flags", "").split()
        return cls(
            cpu=facts.get("model name", platform.processor() or platform.machine()),
            cores=len(os.sched_getaffinity(0)),
            simd=tuple(flag for flag in _SIMD_FLAGS if flag in flags),
            memory_gib=round(pages / 2**30, 1),
            gpu=gpu,
            gpu_memory_gib=gpu_memory_gib,
            driver=driver,
        )

    def slug(self, device: str) -> str:
        """A file name's part: the GPU where it was measured on, else the processor."""
        name = self.gpu if device == "cuda" and self.gpu else f"{self.cpu} {self.cores} cores"
        plain = re.sub(r"\((r|tm)\)", "", name.lower())
        return re.sub(r"[^a-z0-9]+", "-", plain).strip("-")


def die_first() -> None:
    """Make this process the first one that the kernel kills if memory runs out."""
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")


def reset_peak(process: int | str = "self") -> float:
    """Start a process's peak of resident memory anew; the MiB resident now."""
    Path(f"/proc/{process}/clear_refs").write_text("5")
    return resident_mebibytes("VmRSS", process)


def resident_mebibytes(field: str, process: int | str = "self") -> float:
    """`VmRSS`, or `VmHWM` since `reset_peak`, from the kernel's account of a process."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith(field + ":"))
    return int(line.split()[1]) / 1024


def _cpu_facts() -> dict[str, str]:
    """The first processor's entry in `/proc/cpuinfo`."""
    try:
        entry = Path("/proc/cpuinfo").read_text().split("\n\n")[0]
    except OSError:
        return {}
    lines = (line.partition(":") for line in entry.splitlines())
    return {name.strip(): value.strip() for name, _, value in lines}


def _gpu() -> tuple[str | None, float | None, str | None]:
    """Name, memory in GiB and driver of the first GPU, from nvidia-smi."""
    command = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version"]
    try:
        completed = subprocess.run(
            [*command, "--format=csv,noheader,nounits"], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None, None, None
    name, mebibytes, driver = (part.strip() for part in completed.stdout.splitlines()[0].split(","))
    return name, round(float(mebibytes) / 1024, 1), driver


def versions() -> dict[str, str | None]:
    """Of Python, of everything that is measured, and of the project itself."""
    return {
        "python": platform.python_version(),
        **{package: version(package) for package in _PACKAGES},
        "commit": _commit(),
    }


def version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The measured commit, with `+` if the sources have uncommitted changes."""
    git = ["git", "-C", str(ROOT)]
    try:
        commit = subprocess.run(
            [*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=True
        ).stdout.strip()
        changed = subprocess.run([*git, "diff", "--quiet", "HEAD", "--", "src"], check=False)
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit + ("+" if changed.returncode else "")


def options(description: str, **defaults: Any) -> argparse.ArgumentParser:
    """The options that all commands have; a command adds its own."""
    parser = argparse.ArgumentParser(description=description)
    add = parser.add_argument
    add("--engines", help="comma separated, the first is what others are compared with")
    add("--size", choices=("full", "small"), default="full", help="of the random model")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto")
    add("--threads", type=int, default=len(os.sched_getaffinity(0)), help="of every engine")
    add(
        "--setting",
        action="append",
        default=[],
        metavar="FIELD=VALUE",
        help="of the worker, repeatable",
    )
    add("--work", type=Path, default=ROOT / ".cache" / "bench", help="for models and audio")
    add("--results", type=Path, help="folder of the JSON; a small model's go into --work")
    parser.set_defaults(**defaults)
    return parser


def resolved(arguments: argparse.Namespace) -> argparse.Namespace:
    """Replace `auto` and unset options by their values."""
    if arguments.device == "auto":
        arguments.device = "cuda" if _gpu()[0] else "cpu"
    if arguments.results is None:
        small = arguments.work / "results"
        arguments.results = RESULTS if arguments.size == "full" else small
    return arguments


def write(
    name: str, arguments: argparse.Namespace, model: Mapping[str, Any], figures: Sequence[Any]
) -> Path:
    """Everything about one measurement into one file; returns its path."""
    hardware = Hardware.here()
    document = {
        "measurement": name,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "hardware": asdict(hardware),
        "load_average_before": os.getloadavg(),
        "versions": versions(),
        "arguments": {key: _plain(value) for key, value in sorted(vars(arguments).items())},
        "model": model,
        "figures": [asdict(figure) for figure in figures],
    }
    arguments.results.mkdir(parents=True, exist_ok=True)
    path: Path = arguments.results / f"{name}-{hardware.slug(arguments.device)}.json"
    path.write_text(json.dumps(document, indent=1) + "\n")
    print(f"\n{path}")
    return path


def _plain(value: Any) -> Any:
    """As JSON has it; folders below the project by their place in it."""
    if isinstance(value, Path):
        return str(value.relative_to(ROOT)) if value.is_relative_to(ROOT) else value.name
    return value


def table(heads: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print `rows` in columns, words to the left and numbers to the right."""
    cells = [list(heads), *([_cell(value) for value in row] for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(heads))]
    for row in cells:
        first = row[0].ljust(widths[0])
        rest = (cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))
        print("  ".join((first, *rest)).rstrip())
    sys.stdout.flush()


def _cell(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.0f}" if abs(value) >= 1000 else f"{value:#.3g}".rstrip(".")
    return str(value)


def repeats_within(arguments: argparse.Namespace, once_seconds: float, fewest: int) -> int:
    """The requested number of repeats, limited by the time budget, at least `fewest`."""
    fitting = int(arguments.budget_seconds / max(once_seconds, 1e-6))
    return min(int(arguments.repeats), max(fewest, fitting))


def median(values: Sequence[float]) -> float:
    return statistics.median(values)


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least `share` of all do not exceed."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


def ratio(value: float | None, baseline: float | None) -> float | None:
    return value / baseline if value and baseline else None
