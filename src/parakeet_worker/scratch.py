"""The folder for each job's files: checked at the start, never filled beyond what is free.

What killed workers left there is removed. A job's folder is locked for as long as its process
lives, which the kernel sees to, also across process namespaces; so an unlocked one is abandoned.
"""

import asyncio
import errno
import fcntl
import logging
import os
import secrets
import shutil
import tempfile
import time
from collections import deque
from collections.abc import AsyncGenerator, Iterator
from concurrent.futures import Future
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import lru_cache, partial
from pathlib import Path

from parakeet_worker import threads
from parakeet_worker.errors import InvalidSetting, ScratchFull, ScratchUnusable
from parakeet_worker.settings import Settings, variable

log = logging.getLogger(__name__)

_PREFIX = "parakeet-job-"
_NEW = ".parakeet-new-"
"""Before it is locked; a worker that is killed in between leaves it empty."""
_NEW_SECONDS = 3600.0
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_UNUSABLE = frozenset({errno.EROFS, errno.EIO, errno.ESTALE, errno.ENOTCONN, errno.ENODEV})
_NO_DESCRIPTORS = frozenset({errno.EMFILE, errno.ENFILE})
"""The disk is not the cause: these pass when another job ends."""
_POLL_SECONDS = 0.1
_PAUSE_SECONDS = 30.0
"""After a job that the disk failed: the next one would fail too. Then a file is written to find
out, because a quota, a broken disk or lost permissions do not show in the free space."""


class Scratch:
    """One folder on disk, and how much of what is free there is spoken for."""

    def __init__(
        self,
        folder: Path,
        *,
        least_bytes: int,
        timeout_seconds: float,
        pause_seconds: float = _PAUSE_SECONDS,
    ) -> None:
        self.folder = folder
        self._pause_seconds = pause_seconds
        self._least_bytes = least_bytes
        self._timeout_seconds = timeout_seconds
        self._reserved_bytes = 0
        self._waiting: deque[object] = deque()
        self._fault: ScratchFull | ScratchUnusable | None = None
        self._fault_until = 0.0
        self._probe: Future[ScratchFull | ScratchUnusable | None] | None = None

    def prepare(self) -> None:
        """Prove that it can be written to, and remove what killed workers left.

        Raises `InvalidSetting`.
        """
        probe = self.folder / f".parakeet-{secrets.token_hex(4)}"
        try:
            probe.mkdir()
            probe.rmdir()
        except OSError as failure:
            reason = f"{self.folder} cannot be written to: {failure.strerror}"
            raise InvalidSetting(variable("scratch"), reason) from failure
        try:
            tempfile.gettempdir()
        except FileNotFoundError:
            # Libraries use this variable too.
            tempfile.tempdir = str(self.folder)
        self._sweep()

    def shortage(self) -> ScratchFull | ScratchUnusable | None:
        """Why no job may be taken now; None where there is room."""
        free = self._free_bytes()
        if isinstance(free, ScratchUnusable):
            return free
        return ScratchFull(free) if free < max(1, self._least_bytes) else self._lasting_fault()

    def _lasting_fault(self) -> ScratchFull | ScratchUnusable | None:
        """The fault that a job met; ends with a probe, in a thread, that writes a file."""
        if self._fault is None or time.monotonic() < self._fault_until:
            return self._fault
        if self._probe is None:
            self._probe = threads.started(self._probed)
        elif self._probe.done():
            self._fault, self._probe = self._probe.result(), None
            self._fault_until = time.monotonic() + self._pause_seconds
        return self._fault

    def _probed(self) -> ScratchFull | ScratchUnusable | None:
        try:
            with tempfile.TemporaryFile(dir=self.folder) as file:
                os.posix_fallocate(file.fileno(), 0, max(1, self._least_bytes))
        except OSError as failure:
            unsupported = failure.errno in (errno.EOPNOTSUPP, errno.EINVAL)
            return None if unsupported else self._fault_of(failure)
        return None

    @asynccontextmanager
    async def made(self) -> AsyncGenerator[Path, None]:
        """A new folder for one job, removed at the end of the block, also after cancellation.

        It is made and removed in threads: a disk mounted with `discard`
        takes 100 ms for a file and more. An `OSError` of the disk inside the block, and any that
        prevents the folder, becomes `ScratchFull` or `ScratchUnusable`.
        """
        with self.problems_translated():
            making = threads.started(self._locked_folder)
            try:
                path, lock = await asyncio.shield(asyncio.wrap_future(making))
            except asyncio.CancelledError:
                making.add_done_callback(_remove_made)
                raise
            except OSError as failure:
                raise self._noted(failure) from failure
            try:
                yield path
            finally:
                removed = threads.started(partial(_remove, path, lock))
                await asyncio.shield(asyncio.wrap_future(removed))

    @contextmanager
    def problems_translated(self) -> Iterator[None]:
        """Translate an `OSError` of the local disk; others pass."""
        try:
            yield
        except OSError as failure:
            if failure.errno in _FULL | _UNUSABLE | _NO_DESCRIPTORS:
                raise self._noted(failure) from failure
            raise

    def _noted(self, failure: OSError) -> ScratchFull | ScratchUnusable:
        """Translate a failure of the disk, and take no jobs for a while."""
        fault = self._fault_of(failure)
        if failure.errno not in _NO_DESCRIPTORS:
            self._fault, self._fault_until = fault, time.monotonic() + self._pause_seconds
            self._probe = None  # an earlier result does not count
        return fault

    def _fault_of(self, failure: OSError) -> ScratchFull | ScratchUnusable:
        if failure.errno not in _FULL:
            return ScratchUnusable(failure.strerror or "")
        free = self._free_bytes()
        return ScratchFull(None if isinstance(free, ScratchUnusable) else free)

    @asynccontextmanager
    async def reserved(self, size: int) -> AsyncGenerator[None, None]:
        """Wait, in order of arrival, until `size` bytes are free in addition to other reservations.

        Without other reservations it never waits: a lack of space shows when writing. Raises
        `ScratchFull` after the time limit of downloads.
        """
        ticket = object()
        self._waiting.append(ticket)
        ends = time.monotonic() + self._timeout_seconds
        try:
            while self._waiting[0] is not ticket or not self._fits(size):
                if time.monotonic() > ends:
                    raise ScratchFull
                await asyncio.sleep(_POLL_SECONDS)
        finally:
            self._waiting.remove(ticket)
        self._reserved_bytes += size
        try:
            yield
        finally:
            self._reserved_bytes -= size

    def _fits(self, size: int) -> bool:
        free = self._free_bytes()
        if not self._reserved_bytes or isinstance(free, ScratchUnusable):
            return True
        return free - self._reserved_bytes >= size

    def _free_bytes(self) -> int | ScratchUnusable:
        """The free bytes; none if there is no room for another file."""
        try:
            disk = os.statvfs(self.folder)
        except OSError as failure:
            return ScratchUnusable(failure.strerror or "")
        if disk.f_flag & os.ST_RDONLY:
            return ScratchUnusable(os.strerror(errno.EROFS))
        no_inodes = disk.f_files > 0 and disk.f_favail == 0  # some file systems count none
        return 0 if no_inodes else disk.f_bavail * disk.f_frsize

    def _locked_folder(self) -> tuple[Path, int]:
        new = Path(tempfile.mkdtemp(prefix=_NEW, dir=self.folder))
        lock = os.open(new, os.O_RDONLY | os.O_DIRECTORY)
        try:
            with suppress(OSError):  # without locks nothing is swept, either
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return new.rename(self.folder / f"{_PREFIX}{secrets.token_hex(6)}"), lock
        except OSError:
            os.close(lock)
            raise

    def _sweep(self) -> None:
        for new in self.folder.glob(f"{_NEW}*"):
            with suppress(OSError):
                if time.time() - new.stat().st_mtime > _NEW_SECONDS:
                    new.rmdir()
        for abandoned in self.folder.glob(f"{_PREFIX}*"):
            with suppress(OSError):
                lock = os.open(abandoned, os.O_RDONLY | os.O_DIRECTORY)
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    log.info("removing %s, which a killed worker left", abandoned)
                    shutil.rmtree(abandoned, ignore_errors=True)
                finally:
                    os.close(lock)


def _remove(path: Path, lock: int) -> None:
    shutil.rmtree(path, ignore_errors=True)
    os.close(lock)


def _remove_made(making: Future[tuple[Path, int]]) -> None:
    """What was made for a job that was cancelled meanwhile."""
    if making.exception() is None:
        _remove(*making.result())


@lru_cache
def _shared(folder: Path, least_bytes: int, timeout_seconds: float) -> Scratch:
    return Scratch(folder, least_bytes=least_bytes, timeout_seconds=timeout_seconds)


def scratch_of(settings: Settings) -> Scratch:
    """The one object of this process for the settings' folder: all jobs share its disk."""
    return _shared(
        settings.scratch, settings.scratch_least_bytes, settings.download_timeout_seconds
    )
