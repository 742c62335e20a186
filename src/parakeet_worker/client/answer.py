"""An endpoint's answer: a document and its usage; and the sentences of a stream."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from parakeet_worker.options import Format

LOCAL = "here"
"""`Usage.worker` of what this machine transcribed itself."""


@dataclass(frozen=True, slots=True)
class Usage:
    """Audio and time of one recording; None is unknown."""

    audio_seconds: float | None = None
    queued_seconds: float | None = None
    """Time in the queue, from the platform."""
    executed_seconds: float | None = None
    """Execution time, from the platform or the worker."""
    started: float | None = None
    """Start of execution, in seconds since 1970."""
    worker: str | None = None
    """Id of the worker."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A transcribed recording."""

    document: Mapping[str, Any]
    """The answer in the requested format; see docs/calling.md."""
    format: Format
    warnings: tuple[str, ...] = ()
    usage: Usage = Usage()

    @property
    def text(self) -> str:
        """The words."""
        return str(self.document["text"])

    @property
    def content(self) -> str:
        """The answer as the content of a file."""
        return content(self.document, self.format)


@dataclass(frozen=True, slots=True)
class Segment:
    """A sentence of a recording that is still being transcribed."""

    document: Mapping[str, Any]
    """The segment as in `verbose_json`, with its words; see docs/calling.md."""

    @property
    def text(self) -> str:
        """Its words."""
        return str(self.document["text"])

    @property
    def start_seconds(self) -> float:
        """Seconds from the start of the recording."""
        return float(self.document["start"])

    @property
    def end_seconds(self) -> float:
        """Seconds from the start of the recording."""
        return float(self.document["end"])


def content(document: Mapping[str, Any], format_: Format) -> str:
    """A document as the content of a file, identical to `render.render`."""
    if format_ in ("json", "verbose_json"):
        return json.dumps(document, ensure_ascii=False, indent=2) + "\n"
    if format_ == "text":
        return f"{document['text']}\n"
    return str(document[format_])
