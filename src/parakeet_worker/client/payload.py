"""A recording as it is sent: unchanged, encoded smaller, or through a bucket."""

from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

from parakeet_worker.client.endpoint import Endpoint
from parakeet_worker.client.store import Store, Stored, sent_name
from parakeet_worker.errors import (
    AudioEmpty,
    ExtraMissing,
    FfmpegMissing,
    PayloadTooLarge,
    RequestError,
    SourceNotFound,
)
from parakeet_worker.extras import required
from parakeet_worker.options import Channels, DecodingOptions, OnDamage
from parakeet_worker.wire.native import track_of

SMALLER_FORMS = ("FLAC", "Opus")
"""Encodings for recordings that are too large, in this order."""


@dataclass(frozen=True, slots=True)
class Payload:
    """Audio for the endpoint: a file, encoded bytes, or a URL."""

    name: str = "audio"
    path: Path | None = None
    recoded: bytes | None = None
    url: str | None = None
    stored: Stored | None = None
    """Its object in a bucket, deleted afterwards."""
    encoding: str = "as it is"
    warnings: tuple[str, ...] = ()

    @property
    def size(self) -> int:
        """Bytes of audio that are sent."""
        if self.recoded is not None:
            return len(self.recoded)
        return self.path.stat().st_size if self.path is not None else 0

    def open(self) -> BinaryIO:
        """The file, or its encoded bytes."""
        if self.recoded is not None:
            return BytesIO(self.recoded)
        assert self.path is not None
        return self.path.open("rb")

    @property
    def content(self) -> bytes:
        """The same as bytes."""
        with self.open() as file:
            return file.read()


async def prepare(
    path: Path,
    endpoint: Endpoint,
    *,
    audio_format: str | None = None,
    channels: Channels = "mix",
    track: int | str | None = None,
    on_damage: OnDamage = "warn",
    store: Store | None = None,
    ffmpeg: Path | None = None,
) -> Payload:
    """The file in the first encoding that fits: unchanged, FLAC, Opus, through a bucket.

    Raises `SourceNotFound`, `AudioEmpty`, what is wrong with a file that has to be made smaller,
    `PayloadTooLarge`, and what the bucket raises.
    """
    size = _size(path)
    if endpoint.route(size) is not None:
        return Payload(sent_name(path.name), path=path)
    limit = endpoint.max_audio_bytes
    assert limit is not None
    try:
        options = DecodingOptions(audio_format, channels, track_of(track, "track"), on_damage)
        smaller = await _smaller(path, limit, options, ffmpeg)
    except (RequestError, FfmpegMissing, ExtraMissing):
        # The worker reports what is wrong with a recording that cannot be decoded here.
        if store is None:
            raise
        smaller = None
    if smaller is not None:
        return smaller
    if store is None:
        raise PayloadTooLarge(size, limit, list(SMALLER_FORMS))
    stored = await store.put(path)
    return Payload(sent_name(path.name), url=stored.url, stored=stored, encoding="through a bucket")


def _size(path: Path) -> int:
    try:
        size = path.stat().st_size if path.is_file() else None
    except OSError:
        size = None
    if size is None:
        raise SourceNotFound(str(path))
    if size == 0:
        raise AudioEmpty("the file is empty")
    return size


async def _smaller(
    path: Path, limit: int, options: DecodingOptions, ffmpeg: Path | None
) -> Payload | None:
    with required("audio"):
        from parakeet_worker.client import recode
    smaller = await recode.smaller(path, limit, options, ffmpeg)
    if smaller is None:
        return None
    return Payload(
        smaller.name, recoded=smaller.content, encoding=smaller.encoding, warnings=smaller.warnings
    )
