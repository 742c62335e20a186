"""Install the worker's packages on a volume once, by one of many workers, and find them again.

Standard library only: it runs under the container's Python, before anything is installed.
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
from parakeet_worker.bootstrap.environment import Environment
from parakeet_worker.bootstrap.installer import Installer, Log
from parakeet_worker.bootstrap.profile import Profile
from parakeet_worker.bootstrap.settings import BootstrapSettings
from parakeet_worker.errors import (
    InstallFailed,
    InstallTimeout,
    PackageUntrusted,
    SetupError,
    VolumeFull,
)
from parakeet_worker.volume.files import (
    read_json,
    remove,
    replace_symlink,
    translate_os_errors,
    write_atomic,
)
from parakeet_worker.volume.layout import Volume
from parakeet_worker.volume.lease import Fenced, Lease, Leases

_POLL_SECONDS = 0.2
# After `_SLOW_AFTER_SECONDS`, so that many waiting workers do not slow down the installing one.
_SLOW_POLL_SECONDS = 2.0
_SLOW_AFTER_SECONDS = 20.0


@dataclass(frozen=True, slots=True)
class Prepared:
    """The Python to exec, and its environment variables."""

    python: Path
    variables: dict[str, str]


def prepare(variables: Mapping[str, str], root: Path, log: Log) -> Prepared:
    """Find a complete environment on the volume, or install one; raises `SetupError`.

    `root` is the folder with `src` and `requirements`; the worker's own code is imported from
    there.
    """
    settings = BootstrapSettings.from_environment(variables)
    profile = Profile.load(settings.profile, root / "requirements")
    volume = Volume(settings.home)
    if not settings.home_is_volume:
        log(f"warning: no volume is mounted; {settings.home} is lost with this container")
    finder = _Finder(volume, profile, settings, log, set())
    ready = finder.find()
    if ready is None:
        with translate_os_errors(volume.home):
            ready = _wait_or_install(finder, root / "requirements")
    finder.mark(ready)
    return Prepared(ready.python, _variables(variables, volume, root))


def _variables(variables: Mapping[str, str], volume: Volume, root: Path) -> dict[str, str]:
    """Variables for the worker; values that the operator has set take precedence."""
    defaults = {"HF_HOME": str(volume.hf_home), "HF_HUB_CACHE": str(volume.hf_hub_cache)}
    if os.access(volume.home, os.W_OK):
        defaults["PARAKEET_CONVERTED"] = str(volume.converted)
    paths = [str(root / "src"), *filter(None, [variables.get("PYTHONPATH")])]
    chosen = {name: value for name, value in variables.items() if value or name not in defaults}
    return {**defaults, **chosen, "PYTHONPATH": os.pathsep.join(paths)}


@dataclass(frozen=True, slots=True)
class _Finder:
    """Searches the volume for a complete environment."""

    volume: Volume
    profile: Profile
    settings: BootstrapSettings
    log: Log
    broken: set[Path]
    """Environments that failed a check, which are not checked again."""

    def find(self) -> Environment | None:
        """The first candidate without a fault, stamped as in use by this process."""
        for candidate in environments.candidates(self.volume, self.profile):
            if candidate.folder in self.broken:
                continue
            with self._write_errors_logged():  # before the check: a stamp prevents removal
                environments.stamp(self.volume, candidate, self.settings.keep_days)
            fault = candidate.fault(self.profile)
            if fault is None:
                return candidate
            environments.unstamp(self.volume, candidate)
            self.broken.add(candidate.folder)
            self.log(f"{candidate.folder.name} is broken and will be reinstalled: {fault}")
        return None

    def mark(self, environment: Environment) -> None:
        """Update the link and the marker if they name another environment."""
        volume = self.volume
        facts = {key: value for key, value in environment.record.items() if key != "sizes"}
        revisions = dict(volume.model_revisions())
        marker = {"environment": environment.folder.name, **facts, "models": revisions}
        with self._write_errors_logged():
            moved = replace_symlink(volume.venv, environment.folder)
            if moved is not None:
                self.log(f"{volume.venv} was a folder; it is now {moved} and can be deleted")
            if read_json(volume.marker) != marker:
                write_atomic(volume.marker, json.dumps(marker, indent=1) + "\n")

    @contextmanager
    def _write_errors_logged(self) -> Iterator[None]:
        """Log an `OSError` as a warning: an environment on a read-only volume is usable."""
        try:
            yield
        except OSError as failure:
            reason = failure.strerror or failure
            self.log(f"warning: {self.volume.home} cannot be written to: {reason}")


def _wait_or_install(finder: _Finder, requirements: Path) -> Environment:
    """Install if the lease is free, else wait for the worker that holds it."""
    settings, log = finder.settings, finder.log
    finder.volume.prepare()
    leases = Leases(finder.volume.leases, settings.lease_seconds)
    started = logged = time.monotonic()
    while True:
        ready = finder.find()
        if ready is not None:
            return ready
        lease = leases.try_acquire()
        if lease is not None:
            with suppress(Fenced), lease:
                # Another worker may have finished between the search and the lease.
                return finder.find() or _install_unless_fenced(finder, requirements, lease)
            log("another worker has taken over; waiting for it")
        now = time.monotonic()
        if now - started > settings.install_timeout_seconds:
            raise InstallTimeout(settings.install_timeout_seconds, leases.holder())
        if now - logged > installer.PROGRESS_SECONDS:
            logged = now
            log(f"waiting for {leases.holder()} ({now - started:.0f} s)")
        time.sleep(_POLL_SECONDS if now - started < _SLOW_AFTER_SECONDS else _SLOW_POLL_SECONDS)


def _install_unless_fenced(finder: _Finder, requirements: Path, lease: Lease) -> Environment:
    """Install; raises `Fenced` for any failure after another worker has taken over.

    That worker removes the unfinished environment of a paused holder, which is not a fault of the
    volume or the installation.
    """
    try:
        return _install(finder, requirements, lease)
    except (SetupError, OSError):
        lease.check()
        raise


def _install(finder: _Finder, requirements: Path, lease: Lease) -> Environment:
    volume, profile, settings, log = finder.volume, finder.profile, finder.settings, finder.log
    _free_space(finder, lease)
    installer.check_reachable(settings)
    lease.set_step("looking for uv")
    uv = installer.find_uv(settings, volume, requirements, lease.check)
    log(f"installing the profile {profile.name} into {volume.home}")
    with installer.download_cache(volume, log) as cache:
        installs = Installer(uv, settings, volume, cache, lease.check, log)
        had_cache = volume.uv_cache.exists()
        try:
            built = environments.build(volume, profile, installs, lease)
        except (InstallFailed, PackageUntrusted) as failure:
            if not had_cache:
                raise
            # Files may be hard links into the cache, so the cache may be damaged too.
            lease.check()
            log(f"retrying without the cached downloads of an earlier attempt: {failure}")
            remove(volume.uv_cache)
            built = environments.build(volume, profile, installs, lease)
    log(f"installed {profile.name} in {built.record['seconds']} s")
    with suppress(OSError):  # the next installation sweeps again
        environments.sweep(volume, built, lease, settings.keep_days)
    ready = finder.find()
    if ready is None:
        raise InstallFailed(f"{built.folder} was changed right after its installation")
    return ready


def _free_space(finder: _Finder, lease: Lease) -> None:
    """Remove abandoned and, if space is short, unused files; raises `VolumeFull`."""
    environments.remove_abandoned(finder.volume, lease)
    try:
        finder.volume.check_space(finder.profile.disk_gib)
    except VolumeFull as full:
        finder.log(f"freeing space: {full}")
        environments.sweep(finder.volume, None, lease, finder.settings.keep_days)
        finder.volume.check_space(finder.profile.disk_gib)
