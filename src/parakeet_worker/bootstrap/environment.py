"""One installed environment: built aside, recorded, verified at each start, removed when unused."""

import csv
import errno
import hashlib
import json
import os
import random
import re
import secrets
import shutil
import stat
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from parakeet_worker.bootstrap import archive
from parakeet_worker.bootstrap.archive import Archive
from parakeet_worker.bootstrap.installer import Installer
from parakeet_worker.bootstrap.lease import Lease
from parakeet_worker.bootstrap.owner import Owner
from parakeet_worker.bootstrap.profile import Profile
from parakeet_worker.bootstrap.volume import (
    REMOVED,
    Volume,
    problems_told,
    read_json,
    remove,
    write_whole,
)
from parakeet_worker.errors import InstallFailed

_RECORD = ".complete.json"
_ARCHIVE = ".small.tar"
_LARGEST = 40
_LISTS = re.compile(r"lib/python3[^/]*/site-packages/[^/]*\.dist-info/RECORD")
_STAMPS_AT_ONCE = 4
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

    def copied(self, local: Path) -> "Environment":
        """Its copy in the folder `local`, made now if need be; raises `ArchiveDamaged`, `OSError`.

        `OSError`: no room, or the archive cannot be read.
        """
        copy = Environment(local / self.folder.name, self.record)
        if copy.folder.exists():
            return copy
        packed = Archive.read(self.record["archive"])
        aside = local / f".{self.folder.name}-{secrets.token_hex(3)}"
        local.mkdir(parents=True, exist_ok=True)
        try:
            if shutil.disk_usage(local).free < packed.room_bytes:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            archive.unpack(self.folder / _ARCHIVE, packed, self.folder, aside)
            try:
                aside.rename(copy.folder)
            except OSError:
                if not copy.folder.exists():  # else another worker was faster
                    raise
        finally:
            remove(aside)
        return copy

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
    volume: Volume, profile: Profile, installer: Installer, lease: Lease, *, packed: bool
) -> Environment:
    """Install aside, prove that it imports, and give it its name unless another took over."""
    began = time.monotonic()
    name = f"{profile.fingerprint}-{lease.number}-{secrets.token_hex(3)}"
    aside = volume.environments / f".{name}"
    try:
        lease.tell(f"installing {profile.name}")
        installer.make(profile, aside)
        lease.tell(f"verifying {profile.name}")
        with problems_told(volume.home):
            found = archive.survey(aside)
        fault = _incomplete(found, aside) or _probe(aside / "bin" / "python", profile, deep=True)
        if fault is not None:
            raise InstallFailed(f"what was installed is not whole: {fault}")
        with problems_told(volume.home):
            lease.tell(f"packing {profile.name}")
            archived = archive.pack(aside, found, aside / _ARCHIVE) if packed else None
            record = _record(profile, found, archived, round(time.monotonic() - began, 2))
            write_whole(aside / _RECORD, json.dumps(record))
            lease.check()
            final = aside.rename(volume.environments / name)
    finally:
        remove(aside)
    return Environment(final, record)


def clear(volume: Volume, lease: Lease) -> None:
    """Remove what killed bootstraps left; of those with a later lease, it is not left."""
    for folder in (volume.home, volume.tools, volume.environments):
        for doomed in folder.glob(f"{REMOVED}*"):
            remove(doomed)
    # uv's lock, which a volume without flock keeps after its process was killed.
    for lock in (*volume.uv_cache.glob(".lock"), *volume.uv_cache.glob("*/.lock")):
        with suppress(OSError):
            lock.unlink()
    for folder in volume.environments.glob(".*"):
        if _lease_number(folder) < lease.number:
            remove(folder)


def sweep(volume: Volume, keep: Environment | None, lease: Lease, keep_days: float) -> None:
    """Remove what was fetched, and environments that nobody runs any more."""
    for folder in sorted(volume.environments.glob("[!.]*")):
        if keep is not None and folder == keep.folder:
            continue
        if _lease_number(folder) <= lease.number and not _in_use(volume, folder.name, keep_days):
            _remove_unused(volume, folder, keep_days)
    lease.check()
    remove(volume.uv_cache)


def _lease_number(folder: Path) -> int:
    """The one under which it was made."""
    _, number, *_ = [*folder.name.split("-"), "", ""]
    return int(number) if number.isdecimal() else 0


def _remove_unused(volume: Volume, folder: Path, keep_days: float) -> None:
    """Away, unless someone said at that very moment that they would run in it."""
    doomed = folder.with_name(f"{REMOVED}{secrets.token_hex(4)}")
    with suppress(OSError):
        folder.rename(doomed)
        if _in_use(volume, folder.name, keep_days):
            doomed.rename(folder)
        else:
            remove(doomed)
            remove(volume.uses / folder.name)


def use(volume: Volume, environment: Environment, keep_days: float) -> None:
    """Say that this process, which `exec` keeps the same, runs in it; raises `OSError`.

    Some of what others said is looked at, so that it never becomes much.
    """
    ours = _stamp(volume, environment)
    folder = ours.parent
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(ours, json.dumps(Owner.here().written()))
    now = ours.stat().st_mtime  # by the volume's clock, like the others
    names = sorted(os.listdir(folder))  # noqa: PTH208  # names
    for name in random.sample(names, min(_STAMPS_AT_ONCE, len(names))):
        _stands(folder / name, now, keep_days)


def leave(volume: Volume, environment: Environment) -> None:
    """Say that it does not, after all."""
    with suppress(OSError):
        _stamp(volume, environment).unlink()


def _stamp(volume: Volume, environment: Environment) -> Path:
    owner = Owner.here()
    machine = hashlib.sha256(owner.machine.encode()).hexdigest()[:12]
    return volume.uses / environment.folder.name / f"{machine}-{owner.pid}"


def _in_use(volume: Volume, name: str, keep_days: float) -> bool:
    """Whether a process runs in it; of other machines, one that started not long ago."""
    folder = volume.uses / name
    try:
        write_whole(folder / ".now", "")
        now = (folder / ".now").stat().st_mtime
        stamps = [path for path in folder.iterdir() if not path.name.startswith(".")]
    except OSError:
        return False
    return any(_stands(stamp, now, keep_days) for stamp in stamps)


def _stands(stamp: Path, now: float, keep_days: float) -> bool:
    """Whether what a process said there still counts; else it is removed."""
    with suppress(OSError):
        owner = Owner.read(stamp.read_text())
        lives = owner.lives() if owner else None
        if lives or (lives is None and now - stamp.stat().st_mtime < keep_days * _DAY_SECONDS):
            return True
        stamp.unlink()
    return False


def _incomplete(found: Mapping[str, os.stat_result], folder: Path) -> str | None:
    """The first file that is not as long as its package's own list says."""
    for listed in sorted(name for name in found if _LISTS.fullmatch(name)):
        packages = listed.rpartition("/")[0].rpartition("/")[0]
        for name, _, size in csv.reader((folder / listed).read_text().splitlines()):
            state = found.get(os.path.normpath(f"{packages}/{name}"))
            if state is None:
                return f"{name} is missing"
            if size and state.st_size != int(size):
                return f"{name} has {state.st_size} bytes, not {size}"
    return None


def _record(
    profile: Profile,
    found: Mapping[str, os.stat_result],
    archived: Archive | None,
    seconds: float,
) -> dict[str, object]:
    """What is verified at each start: every package's own list of files, and the largest files."""
    sizes = {name: state.st_size for name, state in found.items() if stat.S_ISREG(state.st_mode)}
    largest = sorted(sizes, key=lambda name: sizes[name], reverse=True)[:_LARGEST]
    lists = sorted(name for name in sizes if _LISTS.fullmatch(name))
    packages = [Path(name).parent.name.removesuffix(".dist-info") for name in lists]
    return {
        "fingerprint": profile.fingerprint,
        "profile": profile.name,
        "python": str(profile.python),
        "packages": dict(name.split("-", 1) for name in packages),
        "installed_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": seconds,
        "bytes": sum(sizes.values()),
        "archive": asdict(archived) if archived else None,
        "sizes": {name: sizes[name] for name in {*largest, *lists}},
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
