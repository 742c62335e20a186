"""Resource limits of the container, and defaults that fit into them."""

import os
import resource
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from parakeet_worker.settings import Settings

_ROOT = Path("/")
_UNLIMITED_BYTES = 1 << 60
"""Cgroup version 1 reports no limit as slightly less than 2**63."""
_DECODER_BYTES = 90 << 20
"""Typical memory of one ffmpeg process."""
_AUDIO_BYTES_PER_SECOND = 64_000
"""Decoded: 16 kHz, float32, mono."""
_MIN_AUDIO_BYTES = 16 << 20
_RESERVED_DESCRIPTORS = 64
_DESCRIPTORS_PER_REQUEST = 8
"""Scratch folder, upload, and ffmpeg with its pipes."""
_MIN_CONNECTIONS = 16


@dataclass(frozen=True, slots=True)
class Container:
    """Limits of this process from its control groups and resource limits."""

    processors: float
    """CPUs that it can use: all visible ones, or fewer by its quota."""
    visible: int
    """CPUs in its affinity mask."""
    memory_bytes: int | None
    """None without a limit."""
    descriptors: int

    @classmethod
    def read(cls, root: Path = _ROOT) -> "Container":
        """Read control groups of version 1 or 2 from the file system at `root`."""
        visible = len(os.sched_getaffinity(0))
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        descriptors = 1 << 20 if hard == resource.RLIM_INFINITY else hard
        processors = min([float(visible), *_quotas(root)])
        memory = min(_memory_limits(root), default=None)
        return cls(processors, visible, memory, descriptors)

    @property
    def threads(self) -> int:
        """Number of compute threads that the quota does not throttle."""
        return max(1, int(self.processors))

    def __str__(self) -> str:
        memory = "unlimited"
        if self.memory_bytes is not None:
            memory = f"{self.memory_bytes / 2**30:.2g} GiB"
        return (
            f"{self.processors:g} of {self.visible} processors, memory {memory}, "
            f"{self.descriptors} descriptors"
        )


def fitted(settings: Settings, container: Container) -> Settings:
    """Lower defaults to fit into the container; values that the operator has set are kept.

    `max_connections` is lowered in any case: beyond the descriptor limit `accept` would fail.
    """
    available = max(container.descriptors - _RESERVED_DESCRIPTORS, 2 * _MIN_CONNECTIONS)
    requests = max(1, available // 2 // _DESCRIPTORS_PER_REQUEST)
    changed: dict[str, object] = {}
    if container.threads < container.visible:
        changed["threads"] = container.threads
    if container.memory_bytes is not None:
        memory = container.memory_bytes
        changed["decoders"] = min(settings.decoders, max(2, memory // 4 // _DECODER_BYTES))
        audio = min(settings.audio_memory_bytes, max(_MIN_AUDIO_BYTES, memory // 8))
        changed["audio_memory_bytes"] = audio
        changed["queue_seconds"] = min(settings.queue_seconds, memory / 4 / _AUDIO_BYTES_PER_SECOND)
    changed["max_requests"] = min(settings.max_requests, requests)
    chosen = settings.model_fields_set
    changed = {name: value for name, value in changed.items() if name not in chosen}
    changed["max_connections"] = min(settings.max_connections, available // 2)
    changed = {name: value for name, value in changed.items() if getattr(settings, name) != value}
    return settings.model_copy(update=changed) if changed else settings


def _quotas(root: Path) -> Iterator[float]:
    for folder in _groups(root, ""):
        words = _words(folder / "cpu.max")
        if len(words) == 2 and words[0].isdecimal():
            yield int(words[0]) / int(words[1])
    for folder in _groups(root, "cpu"):
        quota = _number(folder / "cpu.cfs_quota_us")
        period = _number(folder / "cpu.cfs_period_us")
        if quota and period:
            yield quota / period


def _memory_limits(root: Path) -> Iterator[int]:
    names = {"": "memory.max", "memory": "memory.limit_in_bytes"}
    for controller, name in names.items():
        for folder in _groups(root, controller):
            limit = _number(folder / name)
            if limit and limit < _UNLIMITED_BYTES:
                yield limit


def _groups(root: Path, controller: str) -> Iterator[Path]:
    """Yield the folders of the process's group and of its ancestors, whose limits apply too.

    In a container its own group is mounted as the root of the hierarchy.
    """
    mounted = root / "sys/fs/cgroup" / controller
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        lines = []
    yield mounted
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controller in controllers.split(","):
            folder = mounted / path.strip("/")
            while folder != mounted and mounted in folder.parents:
                yield folder
                folder = folder.parent


def _number(file: Path) -> int | None:
    """The number in a file; None if the file is missing or contains a word, such as `max`."""
    words = _words(file)
    return int(words[0]) if words and words[0].isdecimal() else None


def _words(file: Path) -> list[str]:
    try:
        return file.read_text().split()
    except OSError:
        return []
