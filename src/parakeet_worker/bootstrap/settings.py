"""Settings of the bootstrap: environment variables that are read before anything is installed."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from parakeet_worker.bootstrap.variables import expand_home, read_variable
from parakeet_worker.errors import InvalidSetting

_MAX_NUMBER = 1e9
"""Timers of threads accept little more."""
MOUNT = Path("/runpod-volume")
"""Mount point of a network volume on RunPod."""


@dataclass(frozen=True, slots=True)
class Variable:
    """One environment variable of the bootstrap, as documented."""

    name: str
    kind: str
    default: str | None
    meaning: str


VARIABLES = (
    Variable(
        "PARAKEET_HOME", "path", None,
        "Folder for the software and the models; by default `/runpod-volume/Parakeet`, or "
        "`~/.cache/parakeet-worker/home` with a warning if no volume is mounted.",
    ),
    Variable(
        "PARAKEET_PROFILE", "`native` or `nemo`", "native",
        "Packages to install there: those of the engine `native`, or NVIDIA's NeMo in addition.",
    ),
    Variable(
        "PARAKEET_INDEX_URL", "text", None,
        "The package index to install from; by default uv's own choice; `none` for no index.",
    ),
    Variable(
        "PARAKEET_FIND_LINKS", "text", None,
        "A folder or a page with wheels, searched in addition to the index.",
    ),
    Variable(
        "PARAKEET_OPTIONAL_WHEELS", "text", None,
        "Wheels, as paths or as URLs with the suffix `#sha256=DIGEST`, separated by spaces, that "
        "replace the profile's optional wheels (flash-attn); `none` for none.",
    ),
    Variable(
        "PARAKEET_UV", "path", None,
        "The uv to install with; by default the one on the volume or on the path, else pip "
        "downloads it.",
    ),
    Variable(
        "PARAKEET_LEASE_SECONDS", "number", "30",
        "Seconds without a heartbeat after which another worker takes over the installation.",
    ),
    Variable(
        "PARAKEET_INSTALL_TIMEOUT_SECONDS", "number", "3600",
        "Timeout for an installation, or for waiting until another worker has finished one.",
    ),
    Variable(
        "PARAKEET_KEEP_DAYS", "number", "7",
        "Days that an environment of another version is kept after its last start on another "
        "machine.",
    ),
)  # fmt: skip
"""`settings.Settings` accepts these names too."""

NAMES = frozenset(variable.name for variable in VARIABLES)


@dataclass(frozen=True, slots=True)
class BootstrapSettings:
    """Parsed values of `VARIABLES`."""

    home: Path
    home_is_volume: bool
    """False if `home` is the fallback inside the container, which is lost when it ends."""
    profile: str
    index_url: str | None
    find_links: str | None
    optional_wheels: tuple[str, ...] | None
    """None for the wheels of the profile."""
    uv: Path | None
    lease_seconds: float
    install_timeout_seconds: float
    keep_days: float

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> "BootstrapSettings":
        """Read `environment`; raises `InvalidSetting`."""
        values = {
            each.name: read_variable(environment, each.name) or each.default for each in VARIABLES
        }
        uv = values["PARAKEET_UV"]
        home = values["PARAKEET_HOME"]
        folder = _absolute(home, "PARAKEET_HOME") if home else _default_home()
        return cls(
            home=folder,
            home_is_volume=bool(home) or MOUNT in folder.parents,
            profile=values["PARAKEET_PROFILE"] or "",
            index_url=values["PARAKEET_INDEX_URL"],
            find_links=values["PARAKEET_FIND_LINKS"],
            optional_wheels=_wheels(values["PARAKEET_OPTIONAL_WHEELS"]),
            uv=expand_home(uv, "PARAKEET_UV") if uv else None,
            lease_seconds=_number(values, "PARAKEET_LEASE_SECONDS"),
            install_timeout_seconds=_number(values, "PARAKEET_INSTALL_TIMEOUT_SECONDS"),
            keep_days=_number(values, "PARAKEET_KEEP_DAYS", allow_zero=True),
        )


def _default_home() -> Path:
    # RunPod may mount only its read-only model cache below the mount point.
    if (MOUNT / "Parakeet").is_dir() or os.access(MOUNT, os.W_OK):
        return MOUNT / "Parakeet"
    return expand_home("~/.cache/parakeet-worker/home", "PARAKEET_HOME")


def _absolute(text: str, name: str) -> Path:
    path = expand_home(text, name)
    if not path.is_absolute():
        raise InvalidSetting(name, f"must be an absolute path, got {text!r}")
    return path


def _wheels(text: str | None) -> tuple[str, ...] | None:
    if text is None:
        return None
    return () if text == "none" else tuple(text.split())


def _number(values: Mapping[str, str | None], name: str, *, allow_zero: bool = False) -> float:
    text = values[name] or ""
    try:
        number = float(text)
    except ValueError:
        raise InvalidSetting(name, f"must be a number, got {text!r}") from None
    if not 0 <= number <= _MAX_NUMBER or (number == 0 and not allow_zero):
        raise InvalidSetting(name, f"must be above zero and at most {_MAX_NUMBER:g}, got {text!r}")
    return number
