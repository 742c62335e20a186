"""Duration of the first start on an empty volume, and of later starts.

`uv-PROFILE` runs `handler.py` as a container does, from an empty folder to the exec of the
environment's Python; `pip-plan` creates a venv and runs one `pip install` after another. Both
download over the same network, one after the other, without a cache.

With `--fuse-python`, a Python that has `mfusepy`, starts are also measured from a volume with a
delay per operation.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import astuple, dataclass, replace
from pathlib import Path

from bench import harness

_WAYS = "uv-native,pip-plan"
# Without flash-attn, whose wheel is not available on every network.
_PLAN = (
    ("torch==2.8.0", "torchvision==0.23.0", "torchaudio==2.8.0"),
    ("nemo-toolkit[asr]==3.0.0",),
    ("huggingface_hub",),
    ("ffmpeg-python", "boto3"),
    ("runpod",),
)
_SECONDS_AT_MOST = 3600.0
_MOUNT_SECONDS = 10.0
# Replaces the worker: exits immediately, or after importing all its dependencies.
_WORKER = """
import importlib, os
for name in os.environ.get("IMPORTED", "").split():
    importlib.import_module(name)
"""


@dataclass(frozen=True, slots=True)
class Figure:
    """First and later starts of one method."""

    way: str
    first_seconds: float
    ratio: float | None
    second_seconds: float
    """Median of later starts, to the exec."""
    gigabytes: float
    packages: int


@dataclass(frozen=True, slots=True)
class Start:
    """Starts from a volume with a complete environment, each in a new container."""

    delay_milliseconds: float | None
    """Delay of each operation; None without a mount."""
    exec_seconds: float
    """Median, to the exec."""
    imported_seconds: float
    """Median, to the import of all dependencies."""
    operations: int
    """Operations on the volume, to the last import."""


@dataclass(frozen=True, slots=True)
class Container:
    """A copy of the content of the image, without an environment."""

    folder: Path
    profile: str

    @classmethod
    def at(cls, folder: Path, profile: str) -> "Container":
        shutil.copytree(harness.ROOT / "requirements", folder / "requirements")
        shutil.copy(harness.ROOT / "handler.py", folder)
        source, package = (
            harness.ROOT / "src" / "parakeet_worker",
            folder / "src" / "parakeet_worker",
        )
        for name in ("bootstrap", "volume"):
            shutil.copytree(source / name, package / name)
        (package / "entrypoints").mkdir()
        (package / "entrypoints" / "queue.py").write_text(_WORKER)
        for name in ("__init__.py", "errors.py", "version.py"):
            shutil.copy(source / name, package)
        return cls(folder, profile)

    def start(self, volume: Path, *, imported: bool = False) -> float:
        """Seconds from the start of `handler.py` to the exit of the module it execs."""
        uv = harness.ROOT / ".cache" / "uv" / "bin" / "uv"
        settings = {
            "PARAKEET_HOME": str(volume),
            "PARAKEET_PROFILE": self.profile,
            **({"PARAKEET_UV": str(uv)} if uv.exists() else {}),
        }
        if imported:
            rows = tomllib.loads((self.folder / "requirements" / "profiles.toml").read_text())
            settings["IMPORTED"] = " ".join(rows[self.profile]["imports"])
        return _timed([_plain_python(), str(self.folder / "handler.py")], settings)


def by_uv(container: Container, volume: Path, repeats: int) -> tuple[float, list[float], Path]:
    """`handler.py` on an empty volume, and again in the same container."""
    seconds = [container.start(volume) for _ in range(repeats + 1)]
    return seconds[0], seconds[1:], volume / "venv"


def by_pip(volume: Path, repeats: int) -> tuple[float, list[float], Path]:
    """A venv and `pip install`; a later start only runs its Python."""
    venv = volume / "venv"
    steps = [[_plain_python(), "-m", "venv", str(venv)]]
    pip = [str(venv / "bin" / "pip"), "install", "--quiet", "--no-cache-dir"]
    steps += [[*pip, *packages] for packages in _PLAN]
    first = sum(_timed(step, {}) for step in steps)
    python = [str(venv / "bin" / "python"), "-c", ""]
    return first, [_timed(python, {}) for _ in range(repeats)], venv


def starts(container: Container, volume: Path, arguments: argparse.Namespace) -> Iterator[Start]:
    """Measure starts, each in a new container with a new mount without caches."""
    slow = map(float, arguments.milliseconds.split(",")) if arguments.fuse_python else ()
    for milliseconds in (None, *slow):
        execs, imports, operations = [], [], 0
        for imported in (False, True) * arguments.starts:
            with _mounted(volume, milliseconds, arguments.fuse_python) as (home, counted):
                seconds = container.start(home, imported=imported)
            (imports if imported else execs).append(seconds)
            operations = counted[0] if counted else 0
        yield Start(
            delay_milliseconds=milliseconds,
            exec_seconds=harness.median(execs),
            imported_seconds=harness.median(imports),
            operations=operations,
        )


@contextmanager
def _mounted(
    volume: Path, milliseconds: float | None, python: Path | None
) -> Iterator[tuple[Path, list[int]]]:
    """The volume, or a mount of it with a delay; the list holds the operation count at the end."""
    counted: list[int] = []
    if milliseconds is None or python is None:
        yield volume, counted
        return
    mount = volume.parent / "mount"
    mount.mkdir(exist_ok=True)
    script = [str(python), str(harness.ROOT / "bench" / "slow_volume.py")]
    with subprocess.Popen(
        [*script, str(volume), str(mount), "--milliseconds", str(milliseconds)],
        stdout=subprocess.PIPE,
        text=True,
    ) as serving:
        deadline = time.monotonic() + _MOUNT_SECONDS
        while not mount.is_mount():
            if serving.poll() is not None or time.monotonic() > deadline:
                serving.kill()
                raise SystemExit(f"{python} mounts nothing: has it mfusepy, this machine FUSE?")
            time.sleep(0.05)
        try:
            yield mount, counted
        finally:
            subprocess.run(["fusermount3", "-u", str(mount)], check=True)  # noqa: S607
            counted.append(int(serving.communicate()[0]))


def _plain_python() -> str:
    """The one below this environment, as a container has it."""
    return str(Path(sys.base_prefix) / "bin" / "python3")


def _timed(command: Sequence[str], settings: dict[str, str]) -> float:
    began = time.perf_counter()
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    subprocess.run(command, check=True, env={**environment, **settings}, timeout=_SECONDS_AT_MOST)
    return time.perf_counter() - began


def measured(way: str, arguments: argparse.Namespace) -> tuple[Figure, list[Start]]:
    """Measure one way on a temporary volume."""
    with tempfile.TemporaryDirectory(dir=arguments.volume) as folder:
        volume = Path(folder) / "Parakeet"
        volume.mkdir()
        started: list[Start] = []
        if way == "pip-plan":
            first, later, venv = by_pip(volume, arguments.repeats)
        else:
            container = Container.at(Path(folder) / "app", way.removeprefix("uv-"))
            first, later, venv = by_uv(container, volume, arguments.repeats)
            started = list(starts(container, volume, arguments))
        files = [path for path in venv.resolve().rglob("*") if path.is_file()]
        figure = Figure(
            way=way,
            first_seconds=first,
            ratio=None,
            second_seconds=harness.median(later),
            gigabytes=sum(path.stat().st_size for path in files if not path.is_symlink()) / 1e9,
            packages=sum(path.name == "RECORD" for path in files),
        )
        return figure, started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ways", default=_WAYS, help="comma separated; ratios are to the first")
    parser.add_argument("--repeats", type=int, default=5, help="starts after the first")
    parser.add_argument("--volume", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--fuse-python", type=Path, help="a Python with mfusepy")
    parser.add_argument("--milliseconds", default="0.3,1", help="delay per operation")
    parser.add_argument("--starts", type=int, default=3, help="from each slow volume")
    parser.add_argument("--results", type=Path, default=harness.RESULTS)
    parser.set_defaults(device="cpu")
    arguments = parser.parse_args()
    figures: list[Figure] = []
    started: list[Start] = []
    for way in arguments.ways.split(","):
        figure, more = measured(way, arguments)
        base = figures[0].first_seconds if figures else figure.first_seconds
        figures.append(replace(figure, ratio=harness.ratio(figure.first_seconds, base)))
        started += more
    heads = ["way", "first boot, s", "ratio", "second, s", "GB", "packages"]
    harness.table(heads, [astuple(each) for each in figures])
    heads = ["delay, ms", "to exec, s", "to imports, s", "operations"]
    harness.table(heads, [astuple(each) for each in started])
    harness.write("first_boot", arguments, {}, [*figures, *started])


if __name__ == "__main__":
    main()
