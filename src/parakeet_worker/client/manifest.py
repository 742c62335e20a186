"""The manifest of a folder with results: a line of JSON for every event.

A result is written to a temporary file, then its line, then the file is renamed. After a kill in
between, the next run finds line and file by their digest and renames it: nothing that was finished
is transcribed again.
"""

import errno
import hashlib
import json
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO, Self, TypeAlias

from parakeet_worker.client.answer import Usage
from parakeet_worker.client.files import redacted
from parakeet_worker.client.transports import QueuedJob
from parakeet_worker.errors import (
    EndpointUnreachable,
    InvalidRequest,
    ParakeetError,
    ResultNotWritten,
)

log = logging.getLogger(__name__)

NAME = ".parakeet.jsonl"
"""The file in the folder of the results."""

RequestOptions: TypeAlias = Mapping[str, object]
"""The fields of the request except the audio."""

Source: TypeAlias = Path | str
"""A file, or a URL."""

Line: TypeAlias = dict[str, Any]


@dataclass(slots=True, frozen=True)
class _Known:
    """The lines about one result: the last that was finished, and the job in progress."""

    done: Line | None = None
    sent: Line | None = None


class Manifest:
    """One folder's manifest, open for one run at a time."""

    def __init__(self, folder: Path) -> None:
        """Open or create; raises `InvalidRequest`."""
        self._folder = folder
        path = folder / NAME
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, 0o644)
        except OSError as failure:
            raise InvalidRequest(str(path), f"cannot be written: {failure.strerror}") from failure
        if not _locked(self._file):
            os.close(self._file)
            raise InvalidRequest(str(folder), "another run is writing its results there")
        self._known: dict[str, _Known] = {}
        for line in read(path):
            self._learn(line)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Release the folder; an empty manifest is removed."""
        if os.fstat(self._file).st_size == 0:
            with suppress(OSError):
                (self._folder / NAME).unlink()
        os.close(self._file)

    def finished(self, source: Source, target: Path, options: RequestOptions) -> bool:
        """Whether the result exists, of this recording and with these options."""
        done = self._of(target).done
        if done is None or not _matches(done, self._recorded(source, target, options)):
            return False
        temporary = _temporary(target)
        if not temporary.is_symlink() and _digest(temporary) == done["digest"]:
            temporary.replace(target)
        return target.exists()

    def job(
        self, source: Source, target: Path, options: RequestOptions, endpoint: str
    ) -> QueuedJob | None:
        """The unfinished job of an earlier run."""
        sent = self._of(target).sent
        if sent is None or sent["endpoint"] != endpoint:
            return None
        if not _matches(sent, self._recorded(source, target, options)):
            return None
        return QueuedJob(sent["job"], sent["sent"], sent["stored"], tuple(sent["warnings"]))

    def owns(self, target: Path) -> bool:
        """Whether `target` is an unmodified result of an earlier run."""
        done = self._of(target).done
        return done is not None and _digest(target) == done["digest"]

    def note_sent(
        self, source: Source, target: Path, options: RequestOptions, endpoint: str, job: QueuedJob
    ) -> None:
        """Record a job that the endpoint accepted. Raises `ResultNotWritten`."""
        sent = {"endpoint": endpoint, "job": job.id, "sent": job.sent, "stored": job.stored}
        recorded = self._recorded(source, target, options)
        with _writing(self._folder / NAME):
            self._write("sent", {**recorded, **sent, "warnings": job.warnings})

    def note_failed(
        self, source: Source, target: Path, options: RequestOptions, error: ParakeetError
    ) -> None:
        """Record a failure. Raises `ResultNotWritten`."""
        recorded = self._recorded(source, target, options)
        with _writing(self._folder / NAME):
            self._write("failed", {**recorded, "code": error.code, "error": str(error)})

    def keep(
        self,
        source: Source,
        target: Path,
        options: RequestOptions,
        content: str,
        usage: Usage,
        *,
        same_job_as: Path | None = None,
    ) -> None:
        """Write a result atomically. Raises `ResultNotWritten`.

        `same_job_as` is another result of the same job, whose line has the usage of both.
        """
        temporary, whole = _temporary(target), content.encode()
        recorded = self._recorded(source, target, options)
        facts = asdict(usage) if same_job_as is None else {"same_job_as": same_job_as.name}
        try:
            with _writing(target):
                with _created(temporary) as file:
                    file.write(whole)
                    file.flush()
                    os.fsync(file.fileno())
                self._write("done", {**recorded, "digest": _sha256(whole), **facts})
                temporary.replace(target)
        except ResultNotWritten:
            with suppress(OSError):
                temporary.unlink()
            raise

    def _recorded(self, source: Source, target: Path, options: RequestOptions) -> Line:
        if isinstance(source, str):
            # Without its query, which may hold a signature, and distinguished by its digest.
            named, stat = f"{redacted(source)}#{_sha256(source.encode())}", None
        else:
            named = os.path.relpath(source, self._folder)
            stat = source.stat() if source.exists() else None
        return {
            "target": target.name,
            "source": named,
            "bytes": stat and stat.st_size,
            "mtime_ns": stat and stat.st_mtime_ns,
            "options": dict(options),
        }

    def _of(self, target: Path) -> _Known:
        return self._known.get(target.name, _Known())

    def _write(self, event: str, facts: Line) -> None:
        line = {"event": event, "at": datetime.now(UTC).isoformat(timespec="seconds"), **facts}
        self._append(f"{json.dumps(line)}\n".encode())
        self._learn(json.loads(json.dumps(line)))

    def _append(self, line: bytes) -> None:
        size = os.fstat(self._file).st_size
        # The last line of a killed run may lack its line break.
        if size and os.pread(self._file, 1, size - 1) != b"\n":
            line = b"\n" + line
        while line:
            line = line[os.write(self._file, line) :]
        os.fsync(self._file)

    def _learn(self, line: Line) -> None:
        known = self._known.get(line["target"], _Known())
        if line["event"] == "done":
            known = _Known(done=line)
        elif line["event"] == "sent":
            known = _Known(known.done, line)
        elif line["code"] != EndpointUnreachable.code:
            known = _Known(known.done)
        self._known[line["target"]] = known


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as failure:
        full = failure.errno in (errno.ENOSPC, errno.EDQUOT)
        reason = failure.strerror or str(failure)
        raise ResultNotWritten(path, reason, disk_full=full) from failure


def read(path: Path) -> Iterator[Line]:
    """The lines of a manifest, without lines that were cut off."""
    needed = {"done": "digest", "sent": "job", "failed": "code"}
    for number, text in enumerate(path.read_text(errors="replace").splitlines(), start=1):
        if not text:
            continue
        try:
            line = json.loads(text)
            whole = needed[line["event"]] in line and "target" in line
        except (ValueError, KeyError, TypeError):
            whole = False
        if whole:
            yield line
        else:
            log.warning("%s: ignored line %d, which cannot be read", path, number)


def _matches(line: Line, recorded: Line) -> bool:
    return all(
        line.get(name) == recorded[name] for name in ("source", "bytes", "mtime_ns", "options")
    )


def _temporary(target: Path) -> Path:
    return target.with_name(f".{target.name}.part")


def _created(path: Path) -> BinaryIO:
    """A new file under that name, in place of what exists, such as a link."""
    path.unlink(missing_ok=True)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
    return os.fdopen(os.open(path, flags, 0o666), "wb")


def _digest(path: Path) -> str | None:
    try:
        return _sha256(path.read_bytes())
    except OSError:
        return None


def _sha256(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def _locked(file: int) -> bool:
    """Lock exclusively. A file system without locks counts as locked."""
    try:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except ImportError:
        return True
    except OSError as failure:
        return failure.errno not in (errno.EWOULDBLOCK, errno.EACCES)
    return True
