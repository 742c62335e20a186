"""Log lines: JSON on RunPod, whose console finds them by the request's id; plain ones elsewhere."""

import json
import logging
from typing import Any

_MOST_LETTERS = 4000


class JsonLines(logging.Formatter):
    """One JSON object a line, with the SDK's own three keys first."""

    def format(self, record: logging.LogRecord) -> str:
        """`requestId`, `message`, `level`, and the facts of a job."""
        line: dict[str, Any] = {
            "requestId": getattr(record, "job", None),
            "message": record.getMessage(),
            "level": record.levelname.replace("WARNING", "WARN"),
            "logger": record.name,
            **getattr(record, "facts", {}),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)[-_MOST_LETTERS:]
        return json.dumps(line, ensure_ascii=False, default=str)


class PlainLines(logging.Formatter):
    """For people: level, logger, job, message and facts."""

    def format(self, record: logging.LogRecord) -> str:
        """The line, with a traceback below it where there is one."""
        job = getattr(record, "job", None)
        facts = getattr(record, "facts", None)
        told = f" {json.dumps(facts, ensure_ascii=False)}" if facts else ""
        about = f" {job}:" if job else ""
        line = f"{record.levelname} {record.name}:{about} {record.getMessage()}{told}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line
