"""Processes in namespaces: other mounts, as process 1, without a user; and a slow ffmpeg."""

import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from parakeet_worker.audio.decoding import find_ffmpeg


def mounted(script: str) -> list[str]:
    """A command prefix: a mount namespace, set up by a shell script."""
    return _checked(["unshare", "--user", "--map-root-user", "--mount"], script)


def process_one() -> list[str]:
    """A command prefix: process 1 of a PID namespace, for which unhandled signals are ignored."""
    alone = ["unshare", "--user", "--map-root-user", "--pid", "--fork", "--kill-child"]
    return _checked(alone, "true")


def without_user() -> list[str]:
    """A command prefix: a user without a passwd entry."""
    return _checked(["unshare", "--user", "--map-user=12345"], "true")


def _checked(space: Sequence[str], script: str) -> list[str]:
    prefix = [*space, "sh", "-ec", f'{script}\nexec "$@"', "sh"]
    ran = subprocess.run([*prefix, "true"], check=False, capture_output=True, text=True)
    if ran.returncode != 0:
        pytest.skip(f"this machine forbids this namespace: {ran.stderr.strip()}")
    return prefix


def held_ffmpeg(folder: Path) -> Path:
    """An ffmpeg that creates `started` when it gets a file, and waits for `go`."""
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
