"""The identity of a process, and whether that process is still alive."""

import ctypes
import json
import os
import signal
from dataclasses import asdict, dataclass
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None)


def die_with_parent() -> None:
    """Let the kernel kill this child process when its parent thread ends; a no-op off Linux.

    Safe between fork and exec: one system call, no allocation.
    """
    if hasattr(_libc, "prctl"):
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


@dataclass(frozen=True, slots=True)
class Owner:
    """A process, identified across PID reuse and machines; `exec` does not change it."""

    machine: str
    """Boot id and PID namespace; empty if /proc is not available."""
    pid: int
    started: str
    """Start time in clock ticks since boot, from `/proc/PID/stat`."""

    @classmethod
    def current(cls) -> "Owner":
        return cls(_machine(), os.getpid(), _start_time(os.getpid()) or "")

    @classmethod
    def from_json(cls, text: str) -> "Owner | None":
        """Parse what `to_dict` gave as JSON; None if it is incomplete or something else."""
        try:
            fields = json.loads(text)
            return cls(str(fields["machine"]), int(fields["pid"]), str(fields["started"]))
        except (ValueError, TypeError, KeyError):
            return None

    def to_dict(self) -> dict[str, str | int]:
        return asdict(self)

    def is_alive(self) -> bool | None:
        """Whether the process runs; None for a process of another machine or PID namespace."""
        if not self.machine or self.machine != _machine():
            return None
        return _start_time(self.pid) == self.started

    def __str__(self) -> str:
        return f"process {self.pid} on {self.machine[:8] or 'an unknown machine'}"


def _machine() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""


def _start_time(pid: int) -> str | None:
    """Start time of a process in clock ticks; None if it does not exist or is a zombie."""
    try:
        # The second field, the name in parentheses, may contain any character.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else fields[19]
