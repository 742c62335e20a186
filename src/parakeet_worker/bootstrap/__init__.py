"""The software on a volume: found there, or installed once, by one of however many workers.

Stands on the standard library alone: it runs under the container's Python, before anything else
is there.
"""

import json
import os
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from parakeet_worker.bootstrap import environment as environments
from parakeet_worker.bootstrap import installer
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
from parakeet_worker.errors import InstallFailed, InstallTimeout, PackageUntrusted

_POLL_SECONDS = 0.2
_PROGRESS_SECONDS = 10.0


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
    environment = _found(volume, profile, tell, set())
    if environment is None:
        with problems_told(volume.home):
            environment = _installed(volume, profile, choices, root / "requirements", tell)
    _remember(volume, environment, tell)
    return Prepared(environment.python, _variables(variables, volume, root))


def _variables(variables: Mapping[str, str], volume: Volume, root: Path) -> dict[str, str]:
    """The operator's own say counts where there is one."""
    ours = {"HF_HOME": str(volume.hf_home), "HF_HUB_CACHE": str(volume.hf_hub_cache)}
    if os.access(volume.home, os.W_OK):
        ours["PARAKEET_CONVERTED"] = str(volume.converted)
    paths = [str(root / "src"), *filter(None, [variables.get("PYTHONPATH")])]
    return {**ours, **variables, "PYTHONPATH": os.pathsep.join(paths)}


def _found(volume: Volume, profile: Profile, tell: Tell, broken: set[Path]) -> Environment | None:
    """The first candidate without a fault; `broken` are those that need no second look."""
    for candidate in environments.candidates(volume, profile):
        if candidate.folder in broken:
            continue
        fault = candidate.fault(profile)
        if fault is None:
            return candidate
        broken.add(candidate.folder)
        tell(f"{candidate.folder.name} is broken and will be installed anew: {fault}")
    return None


def _installed(
    volume: Volume, profile: Profile, choices: Choices, requirements: Path, tell: Tell
) -> Environment:
    """By us or by another worker, whoever has the lease."""
    volume.prepare()
    leases = Leases(volume.leases, choices.lease_seconds)
    broken: set[Path] = set()
    began = told = time.monotonic()
    while True:
        found = _found(volume, profile, tell, broken)
        if found is not None:
            return found
        lease = leases.try_take()
        if lease is not None:
            with suppress(Fenced), lease:
                # Between the look and the lease another may have finished.
                return _found(volume, profile, tell, broken) or _install(
                    volume, profile, choices, requirements, lease, tell
                )
            tell("another worker has taken over; waiting for it")
        now = time.monotonic()
        if now - began > choices.install_timeout_seconds:
            raise InstallTimeout(choices.install_timeout_seconds, leases.holder())
        if now - told > _PROGRESS_SECONDS:
            told = now
            tell(f"waiting for {leases.holder()} ({now - began:.0f} s)")
        time.sleep(_POLL_SECONDS)


def _install(
    volume: Volume,
    profile: Profile,
    choices: Choices,
    requirements: Path,
    lease: Lease,
    tell: Tell,
) -> Environment:
    volume.check_space(profile.disk_gib)
    installer.check_reachable(choices)
    lease.tell("looking for uv")
    uv = installer.find_uv(choices, volume, requirements, lease.check)
    tell(f"installing the profile {profile.name} into {volume.home}")
    uses = Installer(uv, choices, volume, lease.check)
    had_cache = volume.uv_cache.exists()
    try:
        made = environments.build(volume, profile, uses, lease, tell)
    except (InstallFailed, PackageUntrusted) as failure:
        if not had_cache:
            raise
        # Files of an environment may be the cache's own: what harmed one harmed the other.
        tell(f"once more, without what an earlier try had fetched: {failure}")
        remove(volume.uv_cache)
        made = environments.build(volume, profile, uses, lease, tell)
    tell(f"installed {profile.name} in {made.record['seconds']} s")
    environments.sweep(volume, made, lease, choices.keep_days)
    return made


def _remember(volume: Volume, environment: Environment, tell: Tell) -> None:
    """Say who uses it, and mend the link and the marker where they say something else."""
    told = {key: said for key, said in environment.record.items() if key != "sizes"}
    revisions = dict(volume.model_revisions())
    marker = {"environment": environment.folder.name, **told, "models": revisions}
    try:
        environments.use(volume, environment)
        point(volume.venv, environment.folder)
        if read_json(volume.marker) != marker:
            write_whole(volume.marker, json.dumps(marker, indent=1) + "\n")
    except OSError as failure:  # it can be run all the same
        tell(f"warning: {volume.home} cannot be written to: {failure.strerror or failure}")
