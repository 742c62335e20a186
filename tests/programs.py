"""Programs that tests need in addition to the Python packages."""

import os
import shutil
from pathlib import Path

import pytest

from parakeet_worker.audio.decoding import find_ffmpeg


def require(name: str, path: str | None = None) -> Path:
    """Look up a program on `path`, by default that of the process.

    Without it the test is skipped; in CI, which installs it, the test fails.
    """
    program = shutil.which(name, path=path)
    if program is None and not os.environ.get("CI"):
        pytest.skip(f"this machine has no {name}")
    assert program, f"{name} is missing; .ci/run installs it"
    return Path(program)


def logging_ffmpeg(folder: Path) -> tuple[Path, Path]:
    """An ffmpeg that appends its arguments to a file, and that file."""
    log, program = folder / "ffmpeg.log", folder / "ffmpeg"
    program.write_text(f'#!/bin/sh\necho "$*" >>{log}\nexec {find_ffmpeg()} "$@"\n')
    program.chmod(0o755)
    return program, log
