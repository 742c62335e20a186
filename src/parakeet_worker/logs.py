"""Log formatting: JSON on RunPod, whose console filters by request id; plain text elsewhere."""

import atexit
import json
import logging
import os
import queue
import threading
from contextvars import ContextVar
from typing import Any

_MAX_TRACEBACK_CHARACTERS = 4000
_MAX_LINES = 10_000
_CLOSE_SECONDS = 1.0

JOB: ContextVar[str | None] = ContextVar("JOB", default=None)
"""The job of the running task or thread, for records without one."""


class JsonLines(logging.Formatter):
    """One JSON object per line, with the SDK's three keys first."""

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
            line["traceback"] = self.formatException(record.exc_info)[-_MAX_TRACEBACK_CHARACTERS:]
        return _printable(json.dumps(line, ensure_ascii=False, default=str))


class PlainLines(logging.Formatter):
    """Plain text: level, logger, job, message and facts."""

    def format(self, record: logging.LogRecord) -> str:
        """The line, followed by the traceback if there is one."""
        job = getattr(record, "job", JOB.get())
        facts = getattr(record, "facts", None)
        suffix = f" {json.dumps(facts, ensure_ascii=False)}" if facts else ""
        about = f" {job}:" if job else ""
        line = f"{record.levelname} {record.name}:{about} {record.getMessage()}{suffix}"
        trace = f"\n{self.formatException(record.exc_info)}" if record.exc_info else ""
        return _printable(line + trace)


def _printable(text: str) -> str:
    """Escape lone surrogates, which cannot be encoded."""
    return text.encode(errors="backslashreplace").decode()


class NonBlockingHandler(logging.Handler):
    """Writes lines in a thread, so that an unread pipe blocks nothing.

    Lines beyond `max_lines` in the queue are dropped, and the next line reports their number.
    Without a reader all lines are dropped.
    """

    def __init__(self, descriptor: int, max_lines: int = _MAX_LINES) -> None:
        super().__init__()
        self._descriptor = descriptor
        self._max_lines = max_lines
        self._start()
        atexit.register(self.close)

    def _start(self) -> None:
        # SimpleQueue has no lock that a fork could copy in its locked state.
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._dropped = 0
        self._process = os.getpid()
        # A daemon thread, so that process exit does not wait for a reader.
        self._thread = threading.Thread(target=self._write_all, name="log", daemon=True)
        self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        """Queue the line, or drop it."""
        if os.getpid() != self._process:  # forked: threads do not survive a fork
            self._start()
        try:
            line = self.format(record)
        except Exception:  # noqa: BLE001  # like logging: a formatting error must not fail a job
            self.handleError(record)
            return
        if self._lines.qsize() < self._max_lines:
            self._lines.put(line)
        else:
            self._dropped += 1

    def close(self) -> None:
        """Write the queued lines, for at most one second."""
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
            except OSError:  # the pipe has no reader
                continue
