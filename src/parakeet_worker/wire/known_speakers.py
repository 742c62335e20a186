"""Known speakers in a request: names with recordings or embeddings of their voices."""

import base64
import binascii
import json
import re
from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Annotated, TypeAlias

from pydantic import Field

from parakeet_worker.errors import (
    AudioTooLarge,
    InvalidRequest,
    SourceNotFound,
    SpeakerReferenceUnusable,
    echo,
)
from parakeet_worker.options import MAX_KNOWN_SPEAKERS, MAX_REFERENCE_BYTES
from parakeet_worker.request import (
    InlineSource,
    KnownSpeaker,
    S3Source,
    Source,
    VoiceEmbedding,
)
from parakeet_worker.wire.addresses import S3Wire, Url, source_at
from parakeet_worker.wire.validation import WireModel, too_many

Entries: TypeAlias = Sequence[Mapping[str, object]]
"""The field as JSON."""
Voices: TypeAlias = Mapping[str, str | PathLike[str] | bytes]
"""Names with files, their bytes or URLs."""

_MAX_NAME_CHARACTERS = 100
_MAX_EMBEDDING_CHARACTERS = 8192
_VOICES = ("audio_base64", "audio_url", "audio_s3", "embedding")
_ADDRESSES = ("http://", "https://", "s3://")
# The labels of unknown speakers.
_NUMBERED = re.compile(r"speaker[\s_]*\d+", re.IGNORECASE)


class KnownSpeakerWire(WireModel):
    """A person who may speak, with one recording or one embedding of the voice."""

    name: Annotated[str, Field(min_length=1, max_length=_MAX_NAME_CHARACTERS)]
    """The label of the person."""
    audio_base64: str | None = None
    """A recording of the person alone, as base64 or as a data URI."""
    audio_url: Url | None = None
    """Its http or https URL, or s3://bucket/key."""
    audio_s3: S3Wire | None = None
    """Its object in a bucket."""
    embedding: Annotated[str, Field(max_length=_MAX_EMBEDDING_CHARACTERS)] | None = None
    """An embedding of parakeet speakers enroll, as base64 of float32 numbers."""
    embedding_model: Annotated[str, Field(max_length=_MAX_NAME_CHARACTERS)] | None = None
    """The model of the embedding."""


def known_speakers(wire: Sequence[KnownSpeakerWire], field: str) -> tuple[KnownSpeaker, ...]:
    """Validated known speakers. Raises `InvalidRequest` or `SpeakerReferenceUnusable`."""
    check_names([each.name for each in wire], lambda index: f"{field}.{index}.name")
    return tuple(
        KnownSpeaker(each.name, _voice(each, f"{field}.{index}"), f"{field}.{index}")
        for index, each in enumerate(wire)
    )


def check_names(names: Sequence[str], field_of: Callable[[int], str]) -> None:
    """Raises `InvalidRequest` for an impossible name; `field_of` is the field of each index."""
    seen: set[str] = set()
    for index, name in enumerate(names):
        # Subtitles and tables have a name on one line.
        if not name.strip() or name != name.strip() or not name.isprintable():
            reason = "must be printable text on one line, without spaces at its ends"
            raise InvalidRequest(field_of(index), reason)
        if _NUMBERED.fullmatch(name):
            reason = f"'{echo(name)}' is a label of unknown speakers"
            raise InvalidRequest(field_of(index), reason)
        if name.casefold() in seen:
            raise InvalidRequest(field_of(index), f"'{echo(name)}' occurs twice")
        seen.add(name.casefold())


def _voice(wire: KnownSpeakerWire, field: str) -> Source | VoiceEmbedding:
    present = [name for name in _VOICES if getattr(wire, name) is not None]
    if len(present) != 1:
        got = " and ".join(present) or "none"
        raise InvalidRequest(field, f"exactly one of {', '.join(_VOICES)} is required, got {got}")
    if (wire.embedding is None) != (wire.embedding_model is None):
        raise InvalidRequest(f"{field}.embedding_model", "belongs to 'embedding' and is its model")
    if wire.audio_base64 is not None:
        return InlineSource(wire.audio_base64)
    if wire.audio_s3 is not None:
        return S3Source(wire.audio_s3.key, wire.audio_s3.bucket)
    if wire.audio_url is not None:
        return source_at(wire.audio_url, f"{field}.audio_url")
    assert wire.embedding is not None
    assert wire.embedding_model is not None
    try:
        values = base64.b64decode(wire.embedding, validate=True)
    except (binascii.Error, ValueError) as failure:
        reason = f"the embedding is not base64: {failure}"
        raise SpeakerReferenceUnusable(field, wire.name, reason) from failure
    return VoiceEmbedding(wire.embedding_model, values)


def entry(name: str, embedding: VoiceEmbedding) -> dict[str, object]:
    """One enrolled speaker as JSON."""
    encoded = base64.b64encode(embedding.values).decode()
    return {"name": name, "embedding": encoded, "embedding_model": embedding.model}


def entries(voices: Voices | Entries) -> list[dict[str, object]]:
    """The field as JSON, with the content of files as base64.

    Raises `SourceNotFound` or `AudioTooLarge`.
    """
    if isinstance(voices, Mapping):
        return [{"name": name, **_audio(voice)} for name, voice in voices.items()]
    return [dict(each) for each in voices]


def _audio(voice: str | PathLike[str] | bytes) -> dict[str, object]:
    if isinstance(voice, str) and voice.lower().startswith(_ADDRESSES):
        return {"audio_url": voice}
    if not isinstance(voice, bytes):
        voice = _content(Path(voice))
    return {"audio_base64": base64.b64encode(voice).decode()}


def _content(path: Path) -> bytes:
    try:
        size = path.stat().st_size
        if size > MAX_REFERENCE_BYTES:
            raise AudioTooLarge(MAX_REFERENCE_BYTES, size)
        return path.read_bytes()
    except OSError as failure:
        raise SourceNotFound(str(path)) from failure


def read_enrolled(path: Path) -> list[dict[str, object]]:
    """The entries of a file of `parakeet speakers enroll`. Raises `InvalidRequest`."""
    field = "known_speakers"
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as failure:
        raise InvalidRequest(field, f"{path} cannot be read: {echo(str(failure))}") from failure
    listed = document.get(field) if isinstance(document, dict) else None
    if not isinstance(listed, list) or not all(isinstance(each, dict) for each in listed):
        raise InvalidRequest(field, f"{path} has no list '{field}'")
    if len(listed) > MAX_KNOWN_SPEAKERS:
        raise InvalidRequest(field, too_many("items", len(listed), MAX_KNOWN_SPEAKERS))
    return listed
