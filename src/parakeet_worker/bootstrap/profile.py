"""What is to be installed: a lock file, what of it must import, and for which Python."""

import hashlib
import platform
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path

from parakeet_worker.errors import InvalidSetting, PythonUnsupported, nearest

_OLDEST, _BEYOND = (3, 11), (3, 13)


@dataclass(frozen=True, slots=True)
class Profile:
    """A row of `requirements/profiles.toml`, for the Python that runs."""

    name: str
    lock: Path
    imports: tuple[str, ...]
    optional: tuple[str, ...]
    disk_gib: float
    python: Path
    fingerprint: str
    """Of all that decides what an environment holds: two with the same one are the same."""

    @classmethod
    def named(cls, name: str, requirements: Path) -> "Profile":
        """Raises `InvalidSetting` for an unknown name, `PythonUnsupported` for this Python."""
        if not _OLDEST <= sys.version_info[:2] < _BEYOND:
            raise PythonUnsupported(platform.python_version())
        rows = tomllib.loads((requirements / "profiles.toml").read_text())
        if name not in rows:
            reason = f"must be one of {', '.join(rows)}, got {name!r}"
            raise InvalidSetting("PARAKEET_PROFILE", reason, nearest(name, list(rows)))
        row = rows[name]
        lock = requirements / row["lock"]
        python = (
            Path(sys.base_prefix) / "bin" / f"python{sys.version_info[0]}.{sys.version_info[1]}"
        )
        facts = (
            lock.read_text(), repr(sorted(row.items())), sys.version, str(python),
            platform.machine(), *platform.libc_ver(),
        )  # fmt: skip
        return cls(
            name=name,
            lock=lock,
            imports=tuple(row["imports"]),
            optional=tuple(row.get("optional", ())),
            disk_gib=float(row["disk_gib"]),
            python=python,
            fingerprint=hashlib.sha256("\0".join(facts).encode()).hexdigest()[:16],
        )
