"""Programs of the machine that tests need in addition to the Python packages."""

import os
import shutil
from pathlib import Path

import pytest


def require(name: str, path: str | None = None) -> Path:
    """Look up a program on `path`, by default that of the process.

    Without it the test is skipped; in CI, which installs it, the test fails.
    """
    program = shutil.which(name, path=path)
    if program is None and not os.environ.get("CI"):
        pytest.skip(f"this machine has no {name}")
    assert program, f"{name} is missing; .ci/run installs it"
    return Path(program)
