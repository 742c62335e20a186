"""The operator's choices about what is installed where; read before anything is installed."""

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from parakeet_worker.bootstrap.variables import expanded, value
from parakeet_worker.errors import InvalidSetting

MOUNT = Path("/runpod-volume")
"""Where RunPod mounts a network volume."""


@dataclass(frozen=True, slots=True)
class Variable:
    """One environment variable of the bootstrap."""

    name: str
    kind: str
    default: str | None
    meaning: str


VARIABLES = (
    Variable(
        "PARAKEET_HOME", "path", None,
        "Folder for the software and the models; by default `/runpod-volume/Parakeet`, or "
        "`~/.cache/parakeet-worker/home` with a warning where no volume is mounted.",
    ),
    Variable(
        "PARAKEET_PROFILE", "`native` or `nemo`", "native",
        "What is installed there: what the engine `native` needs, or NVIDIA's NeMo besides.",
    ),
    Variable(
        "PARAKEET_INDEX_URL", "text", None,
        "The package index to install from; by default uv's own choice; `none` for no index.",
    ),
    Variable(
        "PARAKEET_FIND_LINKS", "text", None,
        "A folder or a page with wheels, looked at besides the index.",
    ),
    Variable(
        "PARAKEET_OPTIONAL_WHEELS", "text", None,
        "Wheels, by path or by address with `#sha256=DIGEST` behind it, with spaces between, in "
        "place of the profile's optional ones (flash-attn); `none` for none.",
    ),
    Variable(
        "PARAKEET_LOCAL", "path", "none",
        "Folder on the container's disk for a copy of the software's small files, made at start; "
        "by default `none`: it runs from the volume.",
    ),
    Variable(
        "PARAKEET_UV", "path", None,
        "The uv to install with; by default the one on the volume or on the path, else pip "
        "fetches it.",
    ),
    Variable(
        "PARAKEET_LEASE_SECONDS", "number", "30",
        "How long the worker that installs may be silent before another takes over.",
    ),
    Variable(
        "PARAKEET_INSTALL_TIMEOUT_SECONDS", "number", "3600",
        "How long installing, or waiting for another worker that installs, may take.",
    ),
    Variable(
        "PARAKEET_KEEP_DAYS", "number", "7",
        "How long an environment of another version stays after its last start elsewhere.",
    ),
)  # fmt: skip
"""Known to `Settings` too, which refuses names that nobody knows."""

NAMES = frozenset(variable.name for variable in VARIABLES)


@dataclass(frozen=True, slots=True)
class Choices:
    """What the variables say."""

    home: Path
    home_is_volume: bool
    """Whether what is installed outlives this container, as far as can be told."""
    profile: str
    index_url: str | None
    find_links: str | None
    optional_wheels: tuple[str, ...] | None
    """None: the profile's own."""
    local: Path | None
    """Where a copy is made of an environment's small files; None: nowhere."""
    uv: Path | None
    lease_seconds: float
    install_timeout_seconds: float
    keep_days: float

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> "Choices":
        """Read `environment`; raises `InvalidSetting`."""
        said = {each.name: value(environment, each.name) or each.default for each in VARIABLES}
        uv = said["PARAKEET_UV"]
        named = said["PARAKEET_HOME"]
        home = _absolute(named, "PARAKEET_HOME") if named else _default_home()
        return cls(
            home=home,
            home_is_volume=bool(named) or MOUNT in home.parents,
            profile=said["PARAKEET_PROFILE"] or "",
            index_url=said["PARAKEET_INDEX_URL"],
            find_links=said["PARAKEET_FIND_LINKS"],
            optional_wheels=_wheels(said["PARAKEET_OPTIONAL_WHEELS"]),
            local=_local(said["PARAKEET_LOCAL"]),
            uv=expanded(uv, "PARAKEET_UV") if uv else None,
            lease_seconds=_positive(said, "PARAKEET_LEASE_SECONDS"),
            install_timeout_seconds=_positive(said, "PARAKEET_INSTALL_TIMEOUT_SECONDS"),
            keep_days=_positive(said, "PARAKEET_KEEP_DAYS", zero=True),
        )


def _default_home() -> Path:
    # A cache of models may be mounted there alone, and not be for us to write to.
    if (MOUNT / "Parakeet").is_dir() or os.access(MOUNT, os.W_OK):
        return MOUNT / "Parakeet"
    return expanded("~/.cache/parakeet-worker/home", "PARAKEET_HOME")


def _absolute(text: str, name: str) -> Path:
    path = expanded(text, name)
    if not path.is_absolute():
        raise InvalidSetting(name, f"must be an absolute path, got {text!r}")
    return path


def _wheels(said: str | None) -> tuple[str, ...] | None:
    if said is None:
        return None
    return () if said == "none" else tuple(said.split())


def _local(said: str | None) -> Path | None:
    return None if said is None or said == "none" else _absolute(said, "PARAKEET_LOCAL")


def _positive(said: Mapping[str, str | None], name: str, *, zero: bool = False) -> float:
    text = said[name] or ""
    try:
        number = float(text)
    except ValueError:
        raise InvalidSetting(name, f"must be a number, got {text!r}") from None
    if not math.isfinite(number) or number < 0 or (number == 0 and not zero):
        raise InvalidSetting(name, f"must be above zero, got {text!r}")
    return number
