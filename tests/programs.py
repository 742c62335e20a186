"""Programs of the machine that tests need in addition to the Python packages."""

import os
import shutil
from pathlib import Path

import pytest


def require(name: str) -> Path:
    """The program's path; skips the test without it, but fails in CI, which installs it."""
    path = shutil.which(name)
    if path is None and not os.environ.get("CI"):
        pytest.skip(f"this machine has no {name}")
    assert path, f"{name} is missing; .ci/run installs it"
    return Path(path)
