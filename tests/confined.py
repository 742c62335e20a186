"""Processes under conditions that this machine does not have: other mounts, process 1, a slow
ffmpeg."""

import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from parakeet_worker.audio.decoding import find_ffmpeg


def mounted(script: str) -> list[str]:
    """A prefix: what follows it runs among other mounts, which the shell script makes."""
    return _checked(["unshare", "--user", "--map-root-user", "--mount"], script)


def process_one() -> list[str]:
    """A prefix: what follows it is process 1, which no signal ends that it has no handler for."""
    alone = ["unshare", "--user", "--map-root-user", "--pid", "--fork", "--kill-child"]
    return _checked(alone, "true")


def without_user() -> list[str]:
    """A prefix: what follows it is run by a user who has no entry in passwd."""
    return _checked(["unshare", "--user", "--map-user=12345"], "true")


def _checked(space: Sequence[str], script: str) -> list[str]:
    prefix = [*space, "sh", "-ec", f'{script}\nexec "$@"', "sh"]
    ran = subprocess.run([*prefix, "true"], check=False, capture_output=True, text=True)
    if ran.returncode != 0:
        pytest.skip(f"this machine makes no such space: {ran.stderr.strip()}")
    return prefix


def held_ffmpeg(folder: Path) -> Path:
    """An ffmpeg that says in `started` that it was given a file, and waits for `go`."""
    real = find_ffmpeg()
    held = folder / "ffmpeg"
    held.write_text(
        "#!/bin/sh\n"
        f'case "$*" in *-i*) touch {folder}/started\n'
        f"while [ ! -e {folder}/go ]; do sleep 0.05; done;; esac\n"
        f'exec {real} "$@"\n'
    )
    held.chmod(0o755)
    return held
