"""A recording as it is sent: as it is, smaller, or through a bucket."""

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
from parakeet_worker.options import Channels, OnDamage, Wanted
from parakeet_worker.request import track_of

SMALLER_FORMS = ("FLAC", "Opus")
"""What a recording that is too large is encoded as, in this order."""


@dataclass(frozen=True, slots=True)
class Parcel:
    """What goes to the endpoint: a file, the content of one, or an address."""

    name: str = "audio"
    path: Path | None = None
    recoded: bytes | None = None
    url: str | None = None
    stored: Stored | None = None
    """What lies in a bucket for it, and is removed afterwards."""
    form: str = "as it is"
    warnings: tuple[str, ...] = ()

    @property
    def size(self) -> int:
        """Bytes of audio that are sent."""
        if self.recoded is not None:
            return len(self.recoded)
        return self.path.stat().st_size if self.path is not None else 0

    def open(self) -> BinaryIO:
        """The file, or what it was made into."""
        if self.recoded is not None:
            return BytesIO(self.recoded)
        assert self.path is not None
        return self.path.open("rb")

    @property
    def content(self) -> bytes:
        """All of that."""
        with self.open() as file:
            return file.read()


async def pack(
    path: Path,
    endpoint: Endpoint,
    *,
    channels: Channels = "mix",
    track: int | str | None = None,
    on_damage: OnDamage = "warn",
    store: Store | None = None,
    ffmpeg: Path | None = None,
) -> Parcel:
    """The file in the first form that the endpoint takes: as it is, FLAC, Opus, in a bucket.

    Raises `SourceNotFound`, `AudioEmpty`, what is wrong with a file that has to be made smaller,
    `PayloadTooLarge`, and what the bucket raises.
    """
    size = _size(path)
    if endpoint.route(size) is not None:
        return Parcel(sent_name(path.name), path=path)
    limit = endpoint.max_audio_bytes
    assert limit is not None
    try:
        wanted = Wanted(channels, track_of(track, "track"), on_damage)
        smaller = await _smaller(path, limit, wanted, ffmpeg)
    except (RequestError, FfmpegMissing, ExtraMissing):
        # What ffmpeg cannot read here, or a part that is missing, is for the worker to tell.
        if store is None:
            raise
        smaller = None
    if smaller is not None:
        return smaller
    if store is None:
        raise PayloadTooLarge(size, limit, list(SMALLER_FORMS))
    stored = await store.put(path)
    return Parcel(sent_name(path.name), url=stored.url, stored=stored, form="through a bucket")


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


async def _smaller(path: Path, limit: int, wanted: Wanted, ffmpeg: Path | None) -> Parcel | None:
    with required("audio"):
        from parakeet_worker.client import recode
    smaller = await recode.smaller(path, limit, wanted, ffmpeg)
    if smaller is None:
        return None
    return Parcel(
        smaller.name, recoded=smaller.content, form=smaller.form, warnings=smaller.warnings
    )
