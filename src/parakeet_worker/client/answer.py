"""What comes back: a document, and the figures of how it was made."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from parakeet_worker.options import Format

LOCAL = "here"
"""`Figures.worker` of what this machine transcribed itself."""


@dataclass(frozen=True, slots=True)
class Figures:
    """What one recording took; None is what nobody told."""

    audio_seconds: float | None = None
    queued_seconds: float | None = None
    """From the platform: how long the job waited for a worker."""
    executed_seconds: float | None = None
    """From the platform, or from the worker: how long it was worked on."""
    started: float | None = None
    """When that began, in seconds since 1970."""
    worker: str | None = None
    """Who did it."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A transcribed recording."""

    document: Mapping[str, Any]
    """The answer in the format that was asked for; see docs/calling.md."""
    format: Format
    warnings: tuple[str, ...] = ()
    figures: Figures = Figures()

    @property
    def text(self) -> str:
        """The words."""
        return str(self.document["text"])

    @property
    def content(self) -> str:
        """The answer as the content of a file."""
        return content(self.document, self.format)


def content(document: Mapping[str, Any], format_: Format) -> str:
    """A document as the content of a file, letter by letter as `render.written` has it."""
    if format_ in ("json", "verbose_json"):
        return json.dumps(document, ensure_ascii=False, indent=2) + "\n"
    if format_ == "text":
        return f"{document['text']}\n"
    return str(document[format_])
