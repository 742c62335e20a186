"""An installed environment: built under a temporary name, verified at each start, then removed."""

import csv
import hashlib
import json
import os
import random
import re
import secrets
import stat
import subprocess
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from parakeet_worker.bootstrap.installer import Installer
from parakeet_worker.bootstrap.profile import Profile
from parakeet_worker.errors import InstallFailed
from parakeet_worker.volume.files import (
    REMOVED_PREFIX,
    read_json,
    remove,
    translate_os_errors,
    write_atomic,
)
from parakeet_worker.volume.layout import Volume
from parakeet_worker.volume.lease import Lease
from parakeet_worker.volume.owner import Owner

_RECORD = ".complete.json"
_LARGEST_FILES = 40
_STAT_THREADS = 32
"""A network volume has a high latency per request, and serves many concurrently."""
_RECORD_FILES = re.compile(r"lib/python3[^/]*/site-packages/[^/]*\.dist-info/RECORD")
_SAMPLED_STAMPS = 4
_PROBE_SECONDS = 300.0
_DAY_SECONDS = 24 * 3600.0
# At each start modules are only located; at the end of an installation they are imported too.
_PROBE = """
import importlib, importlib.util, sys
depth, *names = sys.argv[1:]
missing = [name for name in names if importlib.util.find_spec(name) is None]
if missing:
    sys.exit("cannot find " + ", ".join(missing))
if depth == "import":
    for name in names:
        importlib.import_module(name)
"""


@dataclass(frozen=True, slots=True)
class Environment:
    """A folder `FINGERPRINT-LEASE-TOKEN`, which was complete when it was renamed to that."""

    folder: Path
    record: dict[str, object]

    @property
    def python(self) -> Path:
        return self.folder / "bin" / "python"

    def fault(self, profile: Profile) -> str | None:
        """Why the environment cannot be used, else None.

        Compares file sizes with the record and starts the environment's Python once.
        """
        sizes = self.record.get("sizes")
        if self.record.get("fingerprint") != profile.fingerprint or not isinstance(sizes, dict):
            return "its record is of another environment"
        for name, size in sizes.items():
            try:
                actual = (self.folder / name).stat().st_size
            except OSError:
                return f"{name} is missing"
            if actual != size:
                return f"{name} has {actual} bytes, not {size}"
        return _probe(self.python, profile, "find")


def candidates(volume: Volume, profile: Profile) -> Iterator[Environment]:
    """Yield environments with the profile's fingerprint, the one in the marker first."""
    marked = str((read_json(volume.marker) or {}).get("environment"))
    folders = sorted(volume.environments.glob(f"{profile.fingerprint}-*"))
    for folder in sorted(folders, key=lambda folder: folder.name != marked):
        record = read_json(folder / _RECORD)
        if record is not None:
            yield Environment(folder, record)


def build(volume: Volume, profile: Profile, installer: Installer, lease: Lease) -> Environment:
    """Install under a temporary name, import the profile's modules, and rename.

    Raises `SetupError`, and `Fenced` if another worker has taken over the lease.
    """
    started = time.monotonic()
    name = f"{profile.fingerprint}-{lease.number}-{secrets.token_hex(3)}"
    temporary = volume.environments / f".{name}"
    try:
        lease.set_step(f"installing {profile.name}")
        installer.install(profile, temporary)
        lease.set_step(f"verifying {profile.name}")
        with translate_os_errors(volume.home):
            files = _list_files(temporary)
        fault = _incomplete(files, temporary)
        fault = fault or _probe(temporary / "bin" / "python", profile, "import")
        if fault is not None:
            raise InstallFailed(f"the installed environment is incomplete: {fault}")
        with translate_os_errors(volume.home):
            record = _record(profile, files, round(time.monotonic() - started, 2))
            write_atomic(temporary / _RECORD, json.dumps(record))
            lease.check()
            final = temporary.rename(volume.environments / name)
    finally:
        remove(temporary)
    return Environment(final, record)


def remove_abandoned(volume: Volume, lease: Lease) -> None:
    """Remove temporary folders and locks of killed workers, except those of a later lease."""
    for folder in (volume.home, volume.tools, volume.environments):
        for doomed in folder.glob(f"{REMOVED_PREFIX}*"):
            remove(doomed)
    # On a volume without flock, uv's lock file remains after its process was killed.
    for lock in (*volume.uv_cache.glob(".lock"), *volume.uv_cache.glob("*/.lock")):
        with suppress(OSError):
            lock.unlink()
    for folder in volume.environments.glob(".*"):
        if _lease_number(folder) < lease.number:
            remove(folder)


def sweep(volume: Volume, keep: Environment | None, lease: Lease, keep_days: float) -> None:
    """Remove the download cache, and environments in which no process runs."""
    for folder in sorted(volume.environments.glob("[!.]*")):
        if keep is not None and folder == keep.folder:
            continue
        if _lease_number(folder) <= lease.number and not _in_use(volume, folder.name, keep_days):
            _remove_unused(volume, folder, keep_days)
    lease.check()
    remove(volume.uv_cache)


def _lease_number(folder: Path) -> int:
    """Number of the lease under which an environment was built."""
    _, number, *_ = [*folder.name.split("-"), "", ""]
    return int(number) if number.isdecimal() else 0


def _remove_unused(volume: Volume, folder: Path, keep_days: float) -> None:
    """Remove an environment, unless a process stamped it between the check and the rename."""
    doomed = folder.with_name(f"{REMOVED_PREFIX}{secrets.token_hex(4)}")
    with suppress(OSError):
        folder.rename(doomed)
        if _in_use(volume, folder.name, keep_days):
            doomed.rename(folder)
        else:
            remove(doomed)
            remove(volume.uses / folder.name)


def stamp(volume: Volume, environment: Environment, keep_days: float) -> None:
    """Record that this process runs in the environment, also after `exec`; raises `OSError`.

    Expired stamps among a random sample are removed, which bounds their number.
    """
    own = _stamp_path(volume, environment)
    folder = own.parent
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(own, json.dumps(Owner.current().to_dict()))
    now = own.stat().st_mtime  # the clock of the volume's server, as for the other stamps
    names = sorted(os.listdir(folder))  # noqa: PTH208  # names
    for name in random.sample(names, min(_SAMPLED_STAMPS, len(names))):
        _still_valid(folder / name, now, keep_days)


def unstamp(volume: Volume, environment: Environment) -> None:
    """Withdraw the stamp of this process."""
    with suppress(OSError):
        _stamp_path(volume, environment).unlink()


def _stamp_path(volume: Volume, environment: Environment) -> Path:
    owner = Owner.current()
    machine = hashlib.sha256(owner.machine.encode()).hexdigest()[:12]
    return volume.uses / environment.folder.name / f"{machine}-{owner.pid}"


def _in_use(volume: Volume, name: str, keep_days: float) -> bool:
    """Whether a process of this machine runs in it, or one of another machine started lately."""
    folder = volume.uses / name
    try:
        write_atomic(folder / ".now", "")
        now = (folder / ".now").stat().st_mtime
        stamps = [path for path in folder.iterdir() if not path.name.startswith(".")]
    except OSError:
        return False
    return any(_still_valid(stamp, now, keep_days) for stamp in stamps)


def _still_valid(path: Path, now: float, keep_days: float) -> bool:
    """Whether a stamp still counts; an expired one is removed."""
    with suppress(OSError):
        owner = Owner.from_json(path.read_text())
        alive = owner.is_alive() if owner else None
        if alive or (alive is None and now - path.stat().st_mtime < keep_days * _DAY_SECONDS):
            return True
        path.unlink()
    return False


def _list_files(folder: Path) -> dict[str, os.stat_result]:
    """Map every file and link below `folder`, by relative path, to its status."""
    names = []
    for inner, folders, files in os.walk(folder):
        parent = Path(inner)
        links = [name for name in folders if (parent / name).is_symlink()]
        names += [str((parent / name).relative_to(folder)) for name in (*files, *links)]
    with ThreadPoolExecutor(_STAT_THREADS) as pool:
        states = pool.map(lambda name: (folder / name).lstat(), names)
        return dict(zip(names, states, strict=True))


def _incomplete(files: Mapping[str, os.stat_result], folder: Path) -> str | None:
    """The first file that is missing or whose size differs from its package's RECORD, else None."""
    for listed in sorted(name for name in files if _RECORD_FILES.fullmatch(name)):
        packages = listed.rpartition("/")[0].rpartition("/")[0]
        for name, _, size in csv.reader((folder / listed).read_text().splitlines()):
            state = files.get(os.path.normpath(f"{packages}/{name}"))
            if state is None:
                return f"{name} is missing"
            if size and state.st_size != int(size):
                return f"{name} has {state.st_size} bytes, not {size}"
    return None


def _record(
    profile: Profile, files: Mapping[str, os.stat_result], seconds: float
) -> dict[str, object]:
    """Facts to verify at each start: sizes of all RECORD files and of the largest files."""
    sizes = {name: state.st_size for name, state in files.items() if stat.S_ISREG(state.st_mode)}
    largest = sorted(sizes, key=lambda name: sizes[name], reverse=True)[:_LARGEST_FILES]
    lists = sorted(name for name in sizes if _RECORD_FILES.fullmatch(name))
    packages = [Path(name).parent.name.removesuffix(".dist-info") for name in lists]
    return {
        "fingerprint": profile.fingerprint,
        "profile": profile.name,
        "python": str(profile.python),
        "packages": dict(name.split("-", 1) for name in packages),
        "installed_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": seconds,
        "bytes": sum(sizes.values()),
        "sizes": {name: sizes[name] for name in {*largest, *lists}},
    }


def _probe(python: Path, profile: Profile, depth: str) -> str | None:
    """Why the environment's Python cannot `find`, or `import`, the profile's modules, else None."""
    command = [str(python), "-I", "-c", _PROBE, depth, *profile.imports]
    try:
        completed = subprocess.run(
            command, capture_output=True, text=True, timeout=_PROBE_SECONDS, check=False
        )
    except OSError as failure:
        return f"its Python does not start: {failure.strerror}"
    except subprocess.TimeoutExpired:
        return f"its Python did not answer within {_PROBE_SECONDS:g} s"
    if completed.returncode == 0:
        return None
    last = completed.stderr.strip().rpartition("\n")[2][-300:]
    return last or f"exit status {completed.returncode}"
