"""An installation profile: a lock file, and the fingerprint of the environment it gives."""

import hashlib
import platform
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path

from parakeet_worker.errors import InvalidSetting, PythonUnsupported, nearest

_MIN_PYTHON, _PYTHON_LIMIT = (3, 11), (3, 13)


@dataclass(frozen=True, slots=True)
class Profile:
    """A table of `requirements/profiles.toml`, for the running Python."""

    name: str
    lock: Path
    imports: tuple[str, ...]
    """Modules that must be importable in an environment of this profile."""
    optional: tuple[str, ...]
    """Wheels whose failure to install is a warning."""
    disk_gib: float
    python: Path
    fingerprint: str
    """Hash of everything that determines the content of an environment."""

    @classmethod
    def load(cls, name: str, requirements: Path) -> "Profile":
        """Load a profile by name; raises `InvalidSetting` and `PythonUnsupported`."""
        if not _MIN_PYTHON <= sys.version_info[:2] < _PYTHON_LIMIT:
            raise PythonUnsupported(platform.python_version())
        tables = tomllib.loads((requirements / "profiles.toml").read_text())
        if name not in tables:
            reason = f"must be one of {', '.join(tables)}, got {name!r}"
            raise InvalidSetting("PARAKEET_PROFILE", reason, nearest(name, list(tables)))
        table = tables[name]
        lock = requirements / table["lock"]
        python = (
            Path(sys.base_prefix) / "bin" / f"python{sys.version_info[0]}.{sys.version_info[1]}"
        )
        facts = (
            lock.read_text(), repr(sorted(table.items())), sys.version, str(python),
            platform.machine(), *platform.libc_ver(),
        )  # fmt: skip
        return cls(
            name=name,
            lock=lock,
            imports=tuple(table["imports"]),
            optional=tuple(table.get("optional", ())),
            disk_gib=float(table["disk_gib"]),
            python=python,
            fingerprint=hashlib.sha256("\0".join(facts).encode()).hexdigest()[:16],
        )
