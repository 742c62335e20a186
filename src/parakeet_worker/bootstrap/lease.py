"""Who installs: one worker at a time, with no flock and no clock in common.

A lease is a numbered file that its holder created, which only one can, and rewrites with a rising
counter. Whoever sees the counter stand still for long enough on their own clock creates the next
number. The highest number holds; a holder that was paused finds a higher one and must not publish.
"""

import json
import os
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from parakeet_worker.bootstrap.owner import Owner

_BEATS_PER_PATIENCE = 10
_RELEASED = ".released"


class Fenced(Exception):
    """Another worker has taken over; what was done under the lease must not be published."""


class Lease:
    """Held while the block runs."""

    def __init__(self, path: Path, patience_seconds: float) -> None:
        self._path = path
        self.number = int(path.name)
        self._interval = patience_seconds / _BEATS_PER_PATIENCE
        self._owner = Owner.here()
        self._counter = 0
        self._step = "starting"
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)

    def __enter__(self) -> "Lease":
        with suppress(OSError):  # gone already: `check` will say so
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
        """Say that it is free; by its name alone where a full disk takes no content."""
        try:
            self._write(released=True)
        except OSError:
            with suppress(OSError):
                self._path.rename(self._path.with_name(f"{self._path.name}{_RELEASED}"))

    def tell(self, step: str) -> None:
        """What those who wait are told."""
        self._step = step

    def held(self) -> bool:
        return self._path.exists() and _highest(self._path.parent) == self.number

    def check(self) -> None:
        """Raise `Fenced` if another has taken over."""
        if not self.held():
            raise Fenced

    def _beat(self) -> None:
        while not self._ended.wait(self._interval):
            # A full disk or a hiccup of the network: the next beat may do better.
            with suppress(OSError):
                self._write()

    def _write(self, *, released: bool = False) -> None:
        self._counter += 1
        said = {
            **self._owner.written(),
            "counter": self._counter,
            "step": self._step,
            "released": released,
        }
        # Opened anew, so that network file systems send it; never created again once removed.
        opened = os.open(self._path, os.O_WRONLY | os.O_TRUNC)
        try:
            os.write(opened, json.dumps(said).encode())
        finally:
            os.close(opened)


@dataclass(frozen=True, slots=True)
class _Sight:
    """What an observer saw, and when it first looked so on the observer's clock."""

    number: int
    content: str
    since: float


class Leases:
    """One observer's view of the folder of leases."""

    def __init__(self, folder: Path, patience_seconds: float) -> None:
        self._folder = folder
        self._patience = patience_seconds
        self._seen = _Sight(-1, "", 0.0)

    def try_take(self) -> Lease | None:
        """The lease, if nobody holds it or its holder is dead or silent."""
        self._folder.mkdir(parents=True, exist_ok=True)
        number = _highest(self._folder)
        if number and not self._free(number):
            return None
        taken = self._folder / str(number + 1)
        try:
            os.close(os.open(taken, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644))
        except FileExistsError:
            return None
        if _highest(self._folder) != number + 1:  # the list of the folder was an old one
            return None
        for older in range(max(1, number - 100), number + 1):
            for name in (str(older), f"{older}{_RELEASED}"):
                with suppress(OSError):
                    (self._folder / name).unlink()
        return Lease(taken, self._patience)

    def holder(self) -> str:
        """Who holds it and what they are at, in words."""
        try:
            said = json.loads(self._seen.content)
            return f"{Owner.read(self._seen.content)}: {said['step']}"
        except (ValueError, TypeError, KeyError):
            return "another worker"

    def _free(self, number: int) -> bool:
        if (self._folder / f"{number}{_RELEASED}").exists():
            return True
        try:
            content = (self._folder / str(number)).read_text()
        except OSError:
            content = ""
        now = time.monotonic()
        if (number, content) != (self._seen.number, self._seen.content):
            self._seen = _Sight(number, content, now)
        owner = Owner.read(content)
        if owner is not None and (owner.lives() is False or _released(content)):
            return True
        return now - self._seen.since >= self._patience


def _released(content: str) -> bool:
    return bool(json.loads(content).get("released"))


def _highest(folder: Path) -> int:
    names = [path.name.removesuffix(_RELEASED) for path in folder.iterdir()]
    return max((int(name) for name in names if name.isdecimal()), default=0)
