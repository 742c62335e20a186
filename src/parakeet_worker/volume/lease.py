"""A fenced lease in a shared folder, without flock and without synchronised clocks.

A lease is a numbered file. Exclusive creation makes the holder unique, and the holder rewrites the
file with an increasing counter. An observer that sees no change for the lease time, measured by its
own clock, creates the next number. The highest number is valid: a holder that was paused finds a
higher number and must not publish its work.
"""

import json
import os
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from parakeet_worker.volume.owner import Owner

_HEARTBEATS_PER_TIMEOUT = 10
_RELEASED = ".released"
_FILE_CHARACTERS = 512


class Fenced(Exception):
    """Another worker has taken over the lease; work done under it must not be published."""


class Lease:
    """A lease with a heartbeat thread, held while the `with` block runs."""

    def __init__(self, path: Path, timeout_seconds: float) -> None:
        self._path = path
        self.number = int(path.name)
        self._interval_seconds = timeout_seconds / _HEARTBEATS_PER_TIMEOUT
        self._owner = Owner.current()
        self._counter = 0
        self._step = "starting"
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._send_heartbeats, daemon=True)

    def __enter__(self) -> "Lease":
        with suppress(OSError):  # the file may be deleted already; `check` raises then
            self._write()
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ended.set()
        self._thread.join()
        self._step = ""
        self._release()

    def _release(self) -> None:
        """Mark the lease as free; by a rename alone if a full disk accepts no content."""
        try:
            self._write(released=True)
        except OSError:
            with suppress(OSError):
                self._path.rename(self._path.with_name(f"{self._path.name}{_RELEASED}"))

    def set_step(self, step: str) -> None:
        """Publish the current step, for the log of workers that wait."""
        self._step = step

    def is_held(self) -> bool:
        return self._path.exists() and _highest(self._path.parent) == self.number

    def check(self) -> None:
        """Raise `Fenced` if another worker has taken over."""
        if not self.is_held():
            raise Fenced

    def _send_heartbeats(self) -> None:
        while not self._ended.wait(self._interval_seconds):
            # Transient on a full disk or a network file system: the next write may succeed.
            with suppress(OSError):
                self._write()

    def _write(self, *, released: bool = False) -> None:
        self._counter += 1
        content = {
            **self._owner.to_dict(),
            "counter": self._counter,
            "step": self._step,
            "released": released,
        }
        # Reopened so that network file systems flush it, without O_CREAT so that a lease that
        # was removed is not created again. Overwritten in place at a constant length: readers
        # never see a truncated file.
        descriptor = os.open(self._path, os.O_WRONLY)
        try:
            os.write(descriptor, json.dumps(content).ljust(_FILE_CHARACTERS).encode())
        finally:
            os.close(descriptor)


@dataclass(frozen=True, slots=True)
class _Observation:
    """Content of the current lease, and when this observer first read it."""

    number: int
    content: str
    since_seconds: float
    """On the observer's monotonic clock."""


class Leases:
    """A folder of leases, as seen by one observer."""

    def __init__(self, folder: Path, timeout_seconds: float) -> None:
        self._folder = folder
        self._timeout_seconds = timeout_seconds
        self._last = _Observation(-1, "", 0.0)

    def try_acquire(self) -> Lease | None:
        """Acquire the lease if it is free, or if its holder is dead or timed out; else None."""
        self._folder.mkdir(parents=True, exist_ok=True)
        number = _highest(self._folder)
        if number and not self._is_free(number):
            return None
        path = self._folder / str(number + 1)
        try:
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644))
        except FileExistsError:
            return None
        if _highest(self._folder) != number + 1:  # the first listing was stale
            return None
        for older in range(max(1, number - 100), number + 1):
            for name in (str(older), f"{older}{_RELEASED}"):
                with suppress(OSError):
                    (self._folder / name).unlink()
        return Lease(path, self._timeout_seconds)

    def holder(self) -> str:
        """Describe the holder and its current step, for log lines."""
        try:
            fields = json.loads(self._last.content)
            return f"{Owner.from_json(self._last.content)}: {fields['step']}"
        except (ValueError, TypeError, KeyError):
            return "another worker"

    def _is_free(self, number: int) -> bool:
        if (self._folder / f"{number}{_RELEASED}").exists():
            return True
        try:
            content = (self._folder / str(number)).read_text()
        except OSError:
            content = ""
        now = time.monotonic()
        if (number, content) != (self._last.number, self._last.content):
            self._last = _Observation(number, content, now)
        owner = Owner.from_json(content)
        if owner is not None and (owner.is_alive() is False or _is_released(content)):
            return True
        return now - self._last.since_seconds >= self._timeout_seconds


def _is_released(content: str) -> bool:
    return bool(json.loads(content).get("released"))


def _highest(folder: Path) -> int:
    names = [path.name.removesuffix(_RELEASED) for path in folder.iterdir()]
    return max((int(name) for name in names if name.isdecimal()), default=0)
