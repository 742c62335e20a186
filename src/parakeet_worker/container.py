"""What the container grants: processors, memory, descriptors; and defaults that fit into that."""

import os
import resource
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from parakeet_worker.settings import Settings

_ROOT = Path("/")
_UNLIMITED_BYTES = 1 << 60
"""What version 1 shows where there is no limit is a little less than 2**63."""
_DECODER_BYTES = 90 << 20
"""That one ffmpeg takes as a rule."""
_SECOND_BYTES = 64_000
"""Of decoded audio."""
_LEAST_AUDIO_BYTES = 16 << 20
_OWN_DESCRIPTORS = 64
_REQUEST_DESCRIPTORS = 8
"""A folder, an upload, and ffmpeg with its pipes, for each request that is answered."""
_LEAST_CONNECTIONS = 16


@dataclass(frozen=True, slots=True)
class Container:
    """Limits of this process, by its control groups and its resource limits."""

    processors: float
    """How many it may keep busy: those that it sees, or fewer by its quota."""
    visible: int
    memory_bytes: int | None
    """None where there is no limit below the machine's own memory."""
    descriptors: int

    @classmethod
    def read(cls, root: Path = _ROOT) -> "Container":
        """From the files of control groups, version 1 or 2, below `root`."""
        visible = len(os.sched_getaffinity(0))
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        descriptors = 1 << 20 if hard == resource.RLIM_INFINITY else hard
        processors = min([float(visible), *_quotas(root)])
        memory = min(_memory_limits(root), default=None)
        return cls(processors, visible, memory, descriptors)

    @property
    def threads(self) -> int:
        """That compute at a time without one waiting for the quota of another."""
        return max(1, int(self.processors))

    def __str__(self) -> str:
        memory = "no limit of its own"
        if self.memory_bytes is not None:
            memory = f"{self.memory_bytes / 2**30:.2g} GiB"
        return (
            f"{self.processors:g} of {self.visible} processors, memory {memory}, "
            f"{self.descriptors} descriptors"
        )


def fitted(settings: Settings, granted: Container) -> Settings:
    """Settings whose defaults fit into the container; what the operator has set stays.

    Connections are the exception: beyond the limit on descriptors they could not be accepted.
    """
    room = max(granted.descriptors - _OWN_DESCRIPTORS, 2 * _LEAST_CONNECTIONS)
    requests = max(1, room // 2 // _REQUEST_DESCRIPTORS)
    changed: dict[str, object] = {}
    if granted.threads < granted.visible:
        changed["threads"] = granted.threads
    if granted.memory_bytes is not None:
        memory = granted.memory_bytes
        changed["decoders"] = min(settings.decoders, max(2, memory // 4 // _DECODER_BYTES))
        audio = min(settings.audio_memory_bytes, max(_LEAST_AUDIO_BYTES, memory // 8))
        changed["audio_memory_bytes"] = audio
        changed["queue_seconds"] = min(settings.queue_seconds, memory / 4 / _SECOND_BYTES)
    changed["max_requests"] = min(settings.max_requests, requests)
    chosen = settings.model_fields_set
    changed = {name: value for name, value in changed.items() if name not in chosen}
    changed["max_connections"] = min(settings.max_connections, room // 2)
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
    """The folders of the process's group and those above it, which limit it as well.

    A container sees its own group as the top, whatever its path outside.
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
    """The number in a file; None where there is none, or a word for no limit."""
    words = _words(file)
    return int(words[0]) if words and words[0].isdecimal() else None


def _words(file: Path) -> list[str]:
    try:
        return file.read_text().split()
    except OSError:
        return []
