"""The software on a volume: found there, or installed once, by one of however many workers.

Stands on the standard library alone: it runs under the container's Python, before anything else
is there.
"""

import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from parakeet_worker.bootstrap import environment as environments
from parakeet_worker.bootstrap import installer
from parakeet_worker.bootstrap.archive import ArchiveDamaged
from parakeet_worker.bootstrap.choices import Choices
from parakeet_worker.bootstrap.environment import Environment
from parakeet_worker.bootstrap.installer import Installer, Tell
from parakeet_worker.bootstrap.lease import Fenced, Lease, Leases
from parakeet_worker.bootstrap.profile import Profile
from parakeet_worker.bootstrap.volume import (
    Volume,
    point,
    problems_told,
    read_json,
    remove,
    write_whole,
)
from parakeet_worker.errors import (
    InstallFailed,
    InstallTimeout,
    PackageUntrusted,
    SetupError,
    VolumeFull,
)

_POLL_SECONDS = 0.2
# Many who wait should not slow down the one who works.
_SLOW_POLL_SECONDS = 2.0
_PATIENT_SECONDS = 20.0


@dataclass(frozen=True, slots=True)
class Prepared:
    """What to become: a Python, and the variables to give it."""

    python: Path
    variables: dict[str, str]


def prepare(variables: Mapping[str, str], root: Path, tell: Tell) -> Prepared:
    """An environment that was found whole, installed first if need be; raises a `SetupError`.

    `root` is the folder with `src` and `requirements`; the worker's own code is run from there.
    """
    choices = Choices.from_environment(variables)
    profile = Profile.named(choices.profile, root / "requirements")
    volume = Volume(choices.home)
    if not choices.home_is_volume:
        tell(f"warning: no volume is mounted; {choices.home} is gone with this container")
    look = _Look(volume, profile, choices, tell, set())
    ready = look.found()
    if ready is None:
        with problems_told(volume.home):
            ready = _installed(look, root / "requirements")
    look.remember(ready.installed)
    return Prepared(ready.run.python, _variables(variables, volume, root))


def _variables(variables: Mapping[str, str], volume: Volume, root: Path) -> dict[str, str]:
    """The operator's own say counts where there is one."""
    ours = {"HF_HOME": str(volume.hf_home), "HF_HUB_CACHE": str(volume.hf_hub_cache)}
    if os.access(volume.home, os.W_OK):
        ours["PARAKEET_CONVERTED"] = str(volume.converted)
    paths = [str(root / "src"), *filter(None, [variables.get("PYTHONPATH")])]
    named = {name: value for name, value in variables.items() if value or name not in ours}
    return {**ours, **named, "PYTHONPATH": os.pathsep.join(paths)}


@dataclass(frozen=True, slots=True)
class _Ready:
    """An environment on the volume, and what is run: that, or its copy on the container's disk."""

    installed: Environment
    run: Environment


@dataclass(frozen=True, slots=True)
class _Look:
    """For an environment that is whole."""

    volume: Volume
    profile: Profile
    choices: Choices
    tell: Tell
    broken: set[Path]
    """Those that need no second look."""

    def found(self) -> _Ready | None:
        """The first candidate without a fault."""
        for candidate in environments.candidates(self.volume, self.profile):
            if candidate.folder in self.broken:
                continue
            with self._told():  # before it is looked at: from now on nobody removes it
                environments.use(self.volume, candidate, self.choices.keep_days)
            try:
                run = self._near(candidate)
                fault = run.fault(self.profile)
            except ArchiveDamaged as damage:
                fault = f"its archive is damaged: {damage}"
            if fault is None:
                return _Ready(candidate, run)
            environments.leave(self.volume, candidate)
            self.broken.add(candidate.folder)
            self.tell(f"{candidate.folder.name} is broken and will be installed anew: {fault}")
        return None

    @contextmanager
    def _told(self) -> Iterator[None]:
        """What cannot be written down is a warning: it can be run all the same."""
        try:
            yield
        except OSError as failure:
            reason = failure.strerror or failure
            self.tell(f"warning: {self.volume.home} cannot be written to: {reason}")

    def remember(self, environment: Environment) -> None:
        """Mend the link and the marker where they say something else."""
        volume, aside = self.volume, ("sizes", "archive")
        told = {key: said for key, said in environment.record.items() if key not in aside}
        revisions = dict(volume.model_revisions())
        marker = {"environment": environment.folder.name, **told, "models": revisions}
        with self._told():
            moved = point(volume.venv, environment.folder)
            if moved is not None:
                self.tell(f"a folder was in the place of {volume.venv}; remove {moved} at will")
            if read_json(volume.marker) != marker:
                write_whole(volume.marker, json.dumps(marker, indent=1) + "\n")

    def _near(self, candidate: Environment) -> Environment:
        """Its copy on the container's disk where one is wanted and there is room."""
        local = self.choices.local
        if local is None:
            return candidate
        if candidate.record.get("archive") is None:
            self.tell("warning: installed without an archive, it is run from the volume, slowly")
            return candidate
        try:
            copy = candidate.copied(local)
            if copy.fault(self.profile) is not None:  # harmed since, or the volume moved
                remove(copy.folder)
                copy = candidate.copied(local)
        except OSError as failure:
            reason = failure.strerror or failure
            self.tell(f"warning: no copy in {local}, run from the volume, slowly: {reason}")
            return candidate
        return copy


def _installed(look: _Look, requirements: Path) -> _Ready:
    """By us or by another worker, whoever has the lease."""
    choices, tell = look.choices, look.tell
    look.volume.prepare()
    leases = Leases(look.volume.leases, choices.lease_seconds)
    began = told = time.monotonic()
    while True:
        found = look.found()
        if found is not None:
            return found
        lease = leases.try_take()
        if lease is not None:
            with suppress(Fenced), lease:
                # Between the look and the lease another may have finished.
                return look.found() or _install_unless_fenced(look, requirements, lease)
            tell("another worker has taken over; waiting for it")
        now = time.monotonic()
        if now - began > choices.install_timeout_seconds:
            raise InstallTimeout(choices.install_timeout_seconds, leases.holder())
        if now - told > installer.PROGRESS_SECONDS:
            told = now
            tell(f"waiting for {leases.holder()} ({now - began:.0f} s)")
        time.sleep(_POLL_SECONDS if now - began < _PATIENT_SECONDS else _SLOW_POLL_SECONDS)


def _install_unless_fenced(look: _Look, requirements: Path, lease: Lease) -> _Ready:
    """Raises `Fenced` for a failure that comes from another's having taken over.

    A holder that was paused finds its unfinished environment removed: the volume is in order.
    """
    try:
        return _install(look, requirements, lease)
    except (SetupError, OSError):
        lease.check()
        raise


def _install(look: _Look, requirements: Path, lease: Lease) -> _Ready:
    volume, profile, choices, tell = look.volume, look.profile, look.choices, look.tell
    _make_room(look, lease)
    installer.check_reachable(choices)
    lease.tell("looking for uv")
    uv = installer.find_uv(choices, volume, requirements, lease.check)
    tell(f"installing the profile {profile.name} into {volume.home}")
    uses = Installer(uv, choices, volume, lease.check, tell)
    packed = choices.local is not None
    had_cache = volume.uv_cache.exists()
    try:
        made = environments.build(volume, profile, uses, lease, packed=packed)
    except (InstallFailed, PackageUntrusted) as failure:
        if not had_cache:
            raise
        # Files of an environment may be the cache's own: what harmed one harmed the other.
        lease.check()
        tell(f"once more, without what an earlier try had fetched: {failure}")
        remove(volume.uv_cache)
        made = environments.build(volume, profile, uses, lease, packed=packed)
    tell(f"installed {profile.name} in {made.record['seconds']} s")
    with suppress(OSError):  # the next installation sweeps again
        environments.sweep(volume, made, lease, choices.keep_days)
    ready = look.found()
    if ready is None:
        raise InstallFailed(f"{made.folder} was whole, and is not any more")
    return ready


def _make_room(look: _Look, lease: Lease) -> None:
    """Raise `VolumeFull` if there is none even without what can be fetched again."""
    environments.clear(look.volume, lease)
    try:
        look.volume.check_space(look.profile.disk_gib)
    except VolumeFull as full:
        look.tell(f"making room: {full}")
        environments.sweep(look.volume, None, lease, look.choices.keep_days)
        look.volume.check_space(look.profile.disk_gib)
