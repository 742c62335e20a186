"""Log lines: JSON on RunPod, whose console finds them by the request's id; plain ones elsewhere."""

import atexit
import json
import logging
import os
import queue
import threading
from contextvars import ContextVar
from typing import Any

_MOST_LETTERS = 4000
_MOST_LINES = 10_000
_CLOSE_SECONDS = 1.0

JOB: ContextVar[str | None] = ContextVar("JOB", default=None)
"""The job that the running task or thread belongs to, for lines that do not name one."""


class JsonLines(logging.Formatter):
    """One JSON object a line, with the SDK's own three keys first."""

    def format(self, record: logging.LogRecord) -> str:
        """`requestId`, `message`, `level`, and the facts of a job."""
        line: dict[str, Any] = {
            "requestId": getattr(record, "job", JOB.get()),
            "message": record.getMessage(),
            "level": record.levelname.replace("WARNING", "WARN"),
            "logger": record.name,
            **getattr(record, "facts", {}),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)[-_MOST_LETTERS:]
        return _printable(json.dumps(line, ensure_ascii=False, default=str))


class PlainLines(logging.Formatter):
    """For people: level, logger, job, message and facts."""

    def format(self, record: logging.LogRecord) -> str:
        """The line, with a traceback below it where there is one."""
        job = getattr(record, "job", JOB.get())
        facts = getattr(record, "facts", None)
        told = f" {json.dumps(facts, ensure_ascii=False)}" if facts else ""
        about = f" {job}:" if job else ""
        line = f"{record.levelname} {record.name}:{about} {record.getMessage()}{told}"
        trace = f"\n{self.formatException(record.exc_info)}" if record.exc_info else ""
        return _printable(line + trace)


def _printable(text: str) -> str:
    """A lone surrogate, as a caller may send, becomes its escape: it has no bytes."""
    return text.encode(errors="backslashreplace").decode()


class NonBlockingHandler(logging.Handler):
    """Writes lines in a thread: who does not read them holds up nothing.

    Beyond so many waiting lines new ones are dropped, which the next line that is written says.
    Where the reader is gone, all are.
    """

    def __init__(self, descriptor: int, most_lines: int = _MOST_LINES) -> None:
        super().__init__()
        self._descriptor = descriptor
        self._most_lines = most_lines
        self._begin()
        atexit.register(self.close)

    def _begin(self) -> None:
        # Not a queue with a lock, which a fork may copy while it is held.
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._dropped = 0
        self._process = os.getpid()
        # A daemon: the end of the process does not wait for a reader.
        self._thread = threading.Thread(target=self._write_all, name="log", daemon=True)
        self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        """Queue the line, or drop it."""
        if os.getpid() != self._process:  # a fork, which threads do not follow
            self._begin()
        try:
            line = self.format(record)
        except Exception:  # noqa: BLE001  # as logging does: no line is worth a job
            self.handleError(record)
            return
        if self._lines.qsize() < self._most_lines:
            self._lines.put(line)
        else:
            self._dropped += 1

    def close(self) -> None:
        """Write what waits, for as long as somebody reads it within a second."""
        if os.getpid() == self._process and self._thread.is_alive():
            self._lines.put(None)
            self._thread.join(_CLOSE_SECONDS)
        super().close()

    def _write_all(self) -> None:
        while (line := self._lines.get()) is not None:
            if self._dropped:
                line += f"\n{self._dropped} lines of the log were dropped: the pipe was full"
                self._dropped = 0
            content = memoryview(f"{line}\n".encode())
            try:
                while content:
                    content = content[os.write(self._descriptor, content) :]
            except OSError:  # its reader is gone
                continue
