"""One installed environment: built aside, recorded, verified at each start, removed when unused."""

import csv
import hashlib
import json
import secrets
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from parakeet_worker.bootstrap.installer import Installer, Tell
from parakeet_worker.bootstrap.lease import Lease
from parakeet_worker.bootstrap.owner import Owner
from parakeet_worker.bootstrap.profile import Profile
from parakeet_worker.bootstrap.volume import Volume, problems_told, read_json, remove, write_whole
from parakeet_worker.errors import InstallFailed

_RECORD = ".complete.json"
_LARGEST = 40
_PROBE_SECONDS = 300.0
_DAY_SECONDS = 24 * 3600.0
# Looks for every module without running it; at the end of an installation they are run as well.
_PROBE = """
import importlib, importlib.util, sys
deep, *names = sys.argv[1:]
missing = [name for name in names if importlib.util.find_spec(name) is None]
if missing:
    sys.exit("cannot find " + ", ".join(missing))
if deep == "deep":
    for name in names:
        importlib.import_module(name)
"""


@dataclass(frozen=True, slots=True)
class Environment:
    """A folder `FINGERPRINT-LEASE-TOKEN` that was complete when it got that name."""

    folder: Path
    record: dict[str, object]

    @property
    def python(self) -> Path:
        return self.folder / "bin" / "python"

    def fault(self, profile: Profile) -> str | None:
        """Why it cannot be run; None if it can. Reads sizes and starts its Python once."""
        sizes = self.record.get("sizes")
        if self.record.get("fingerprint") != profile.fingerprint or not isinstance(sizes, dict):
            return "its record is of another environment"
        for name, size in sizes.items():
            try:
                found = (self.folder / name).stat().st_size
            except OSError:
                return f"{name} is missing"
            if found != size:
                return f"{name} has {found} bytes, not {size}"
        return _probe(self.python, profile, deep=False)


def candidates(volume: Volume, profile: Profile) -> Iterator[Environment]:
    """What claims to be the wanted environment, the one of the marker first."""
    marked = str((read_json(volume.marker) or {}).get("environment"))
    folders = sorted(volume.environments.glob(f"{profile.fingerprint}-*"))
    for folder in sorted(folders, key=lambda folder: folder.name != marked):
        record = read_json(folder / _RECORD)
        if record is not None:
            yield Environment(folder, record)


def build(
    volume: Volume, profile: Profile, installer: Installer, lease: Lease, tell: Tell
) -> Environment:
    """Install aside, prove that it imports, and give it its name unless another took over."""
    began = time.monotonic()
    name = f"{profile.fingerprint}-{lease.number}-{secrets.token_hex(3)}"
    aside = volume.environments / f".{name}"
    try:
        lease.tell(f"installing {profile.name}")
        installer.make(profile, aside, tell)
        lease.tell(f"verifying {profile.name}")
        fault = _incomplete(aside) or _probe(aside / "bin" / "python", profile, deep=True)
        if fault is not None:
            raise InstallFailed(f"what was installed is not whole: {fault}")
        record = _record(aside, profile, round(time.monotonic() - began, 2))
        with problems_told(volume.home):
            write_whole(aside / _RECORD, json.dumps(record))
            lease.check()
            final = aside.rename(volume.environments / name)
    finally:
        remove(aside)
    return Environment(final, record)


def sweep(volume: Volume, keep: Environment, lease: Lease, keep_days: float) -> None:
    """Remove what killed bootstraps left, and environments that nobody runs any more.

    What was made under a later lease is not ours to judge.
    """
    for folder in sorted(volume.environments.iterdir()):
        _, number, *_ = [*folder.name.split("-"), "", ""]
        if folder == keep.folder or (number.isdecimal() and int(number) > lease.number):
            continue
        if folder.name.startswith(".") or not _in_use(volume, folder.name, keep_days):
            remove(folder)
    lease.check()
    remove(volume.uv_cache)


def use(volume: Volume, environment: Environment) -> None:
    """Say that this process, which `exec` keeps the same, runs in it."""
    owner = Owner.here()
    folder = volume.uses / environment.folder.name
    folder.mkdir(parents=True, exist_ok=True)
    machine = hashlib.sha256(owner.machine.encode()).hexdigest()[:12]
    write_whole(folder / f"{machine}-{owner.pid}", json.dumps(owner.written()))


def _in_use(volume: Volume, name: str, keep_days: float) -> bool:
    """Whether a process runs in it; of other machines, one that started not long ago."""
    folder = volume.uses / name
    try:
        write_whole(folder / ".now", "")
        now = (folder / ".now").stat().st_mtime  # by the volume's clock, like the others
        stamps = [path for path in folder.iterdir() if not path.name.startswith(".")]
    except OSError:
        return False
    for stamp in stamps:
        with suppress(OSError):
            owner = Owner.read(stamp.read_text())
            lives = owner.lives() if owner else None
            young = now - stamp.stat().st_mtime < keep_days * _DAY_SECONDS
            if lives or (lives is None and young):
                return True
            stamp.unlink()
    return False


def _incomplete(folder: Path) -> str | None:
    """The first file that is not as long as its package's own list says."""
    for listed in sorted(folder.glob("lib/python3*/site-packages/*.dist-info/RECORD")):
        for name, _, size in csv.reader(listed.read_text().splitlines()):
            path = listed.parent.parent / name
            try:
                found = path.stat().st_size
            except OSError:
                return f"{name} is missing"
            if size and found != int(size):
                return f"{name} has {found} bytes, not {size}"
    return None


def _record(folder: Path, profile: Profile, seconds: float) -> dict[str, object]:
    """What is verified at each start: every package's own list of files, and the largest files."""
    files = [path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
    sizes = {path: path.stat().st_size for path in files}
    largest = sorted(files, key=lambda path: sizes[path], reverse=True)[:_LARGEST]
    lists = [path for path in files if path.name == "RECORD" and path.parent.suffix == ".dist-info"]
    packages = sorted(path.parent.name.removesuffix(".dist-info") for path in lists)
    return {
        "fingerprint": profile.fingerprint,
        "profile": profile.name,
        "python": str(profile.python),
        "packages": dict(name.split("-", 1) for name in packages),
        "installed_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": seconds,
        "bytes": sum(sizes.values()),
        "sizes": {str(path.relative_to(folder)): sizes[path] for path in {*largest, *lists}},
    }


def _probe(python: Path, profile: Profile, *, deep: bool) -> str | None:
    """What keeps the environment's Python from finding, or importing, what matters."""
    depth = "deep" if deep else "shallow"
    command = [str(python), "-I", "-c", _PROBE, depth, *profile.imports]
    try:
        ran = subprocess.run(
            command, capture_output=True, text=True, timeout=_PROBE_SECONDS, check=False
        )
    except OSError as failure:
        return f"its Python does not start: {failure.strerror}"
    except subprocess.TimeoutExpired:
        return f"its Python did not answer within {_PROBE_SECONDS:g} s"
    if ran.returncode == 0:
        return None
    return ran.stderr.strip().rpartition("\n")[2][-300:] or f"exit status {ran.returncode}"
