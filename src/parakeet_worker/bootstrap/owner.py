"""A process by name, such that others on the same machine can tell whether it still lives."""

import ctypes
import json
import os
import signal
from dataclasses import asdict, dataclass
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None)


def die_with_parent() -> None:
    """In a new child: the kernel kills it when its parent's thread ends, where it can.

    One system call that allocates nothing, so that it is safe between fork and exec.
    """
    if hasattr(_libc, "prctl"):
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


@dataclass(frozen=True, slots=True)
class Owner:
    """A process; `exec` leaves it the same one."""

    machine: str
    """The kernel's boot and the space in which `pid` means something."""
    pid: int
    started: str

    @classmethod
    def here(cls) -> "Owner":
        return cls(_machine(), os.getpid(), _started(os.getpid()) or "")

    @classmethod
    def read(cls, text: str) -> "Owner | None":
        """What `written` wrote; None where that is torn or something else."""
        try:
            said = json.loads(text)
            return cls(str(said["machine"]), int(said["pid"]), str(said["started"]))
        except (ValueError, TypeError, KeyError):
            return None

    def written(self) -> dict[str, str | int]:
        return asdict(self)

    def lives(self) -> bool | None:
        """None where that cannot be known from here."""
        if not self.machine or self.machine != _machine():
            return None
        return _started(self.pid) == self.started

    def __str__(self) -> str:
        return f"process {self.pid} on {self.machine[:8] or 'an unknown machine'}"


def _machine() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""


def _started(pid: int) -> str | None:
    """When a process started, in the kernel's ticks; None where there is none or it is dead."""
    try:
        # The name before it, in brackets, may hold anything.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else fields[19]
