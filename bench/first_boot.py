"""How long from an empty volume to a Python that has everything, and how long the next start takes.

`uv-PROFILE` is `handler.py` as a container runs it, from an empty folder to the exec of the
environment's Python; `pip-plan` is the plan's way: a venv, then one `pip install` after another.
What both fetch comes over the same network, one way after the other; nothing is cached between.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench import harness

_WAYS = "uv-native,pip-plan"
# The plan's steps; its flash-attn is a wheel that not every network hands out, and is left out.
_PLAN = (
    ("torch==2.8.0", "torchvision==0.23.0", "torchaudio==2.8.0"),
    ("nemo-toolkit[asr]==3.0.0",),
    ("huggingface_hub",),
    ("ffmpeg-python", "boto3"),
    ("runpod",),
)
_SECONDS_AT_MOST = 3600.0


@dataclass(frozen=True, slots=True)
class Figure:
    """One way, from nothing and again."""

    way: str
    first_seconds: float
    ratio: float | None
    second_seconds: float
    """Median of the starts after it, to the exec."""
    gigabytes: float
    packages: int


def by_uv(profile: str, volume: Path, repeats: int) -> tuple[float, list[float], Path]:
    """`handler.py` from a copy without an environment beside it."""
    app = volume.parent / "app"
    shutil.copytree(harness.ROOT / "requirements", app / "requirements")
    shutil.copy(harness.ROOT / "handler.py", app)
    package = app / "src" / "parakeet_worker"
    shutil.copytree(harness.ROOT / "src" / "parakeet_worker" / "bootstrap", package / "bootstrap")
    (package / "entrypoints").mkdir()
    (package / "entrypoints" / "serverless.py").touch()  # the exec ends where the worker begins
    for name in ("__init__.py", "errors.py"):
        shutil.copy(harness.ROOT / "src" / "parakeet_worker" / name, package)
    uv = harness.ROOT / ".cache" / "uv" / "bin" / "uv"
    settings = {
        "PARAKEET_HOME": str(volume),
        "PARAKEET_PROFILE": profile,
        **({"PARAKEET_UV": str(uv)} if uv.exists() else {}),
    }
    command = [_plain_python(), str(app / "handler.py")]
    seconds = [_timed(command, settings) for _ in range(repeats + 1)]
    return seconds[0], seconds[1:], volume / "venv"


def by_pip(volume: Path, repeats: int) -> tuple[float, list[float], Path]:
    """The plan's steps; its second start is a look at a marker file."""
    venv = volume / "venv"
    steps = [[_plain_python(), "-m", "venv", str(venv)]]
    pip = [str(venv / "bin" / "pip"), "install", "--quiet", "--no-cache-dir"]
    steps += [[*pip, *packages] for packages in _PLAN]
    first = sum(_timed(step, {}) for step in steps)
    python = [str(venv / "bin" / "python"), "-c", ""]
    return first, [_timed(python, {}) for _ in range(repeats)], venv


def _plain_python() -> str:
    """The one below this environment, as a container has it."""
    return str(Path(sys.base_prefix) / "bin" / "python3")


def _timed(command: Sequence[str], settings: dict[str, str]) -> float:
    began = time.perf_counter()
    ours = {name: said for name, said in os.environ.items() if name != "PYTHONPATH"}
    subprocess.run(command, check=True, env={**ours, **settings}, timeout=_SECONDS_AT_MOST)
    return time.perf_counter() - began


def measured(way: str, arguments: argparse.Namespace) -> Figure:
    """One way on a volume of its own, which is gone afterwards."""
    with tempfile.TemporaryDirectory(dir=arguments.volume) as folder:
        volume = Path(folder) / "Parakeet"
        volume.mkdir()
        if way == "pip-plan":
            first, later, venv = by_pip(volume, arguments.repeats)
        else:
            first, later, venv = by_uv(way.removeprefix("uv-"), volume, arguments.repeats)
        files = [path for path in venv.resolve().rglob("*") if path.is_file()]
        return Figure(
            way=way,
            first_seconds=first,
            ratio=None,
            second_seconds=harness.median(later),
            gigabytes=sum(path.stat().st_size for path in files if not path.is_symlink()) / 1e9,
            packages=sum(path.name == "RECORD" for path in files),
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ways", default=_WAYS, help="comma separated, the first is ours")
    parser.add_argument("--repeats", type=int, default=5, help="starts after the first")
    parser.add_argument("--volume", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--results", type=Path, default=harness.RESULTS)
    parser.set_defaults(device="cpu")
    arguments = parser.parse_args()
    found = []
    for way in arguments.ways.split(","):
        figure = measured(way, arguments)
        ours = found[0].first_seconds if found else figure.first_seconds
        found.append(
            Figure(
                way=way,
                first_seconds=figure.first_seconds,
                ratio=harness.ratio(figure.first_seconds, ours),
                second_seconds=figure.second_seconds,
                gigabytes=figure.gigabytes,
                packages=figure.packages,
            )
        )
    heads = ["way", "first boot, s", "ratio", "second, s", "GB", "packages"]
    rows = [
        (each.way, each.first_seconds, each.ratio, each.second_seconds, each.gigabytes,
         each.packages)
        for each in found
    ]  # fmt: skip
    harness.table(heads, rows)
    harness.write("first_boot", arguments, {}, found)


if __name__ == "__main__":
    main()
