"""A recording as it is sent: as it is, smaller, or through a bucket."""

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

from parakeet_worker.audio import SAMPLE_RATE, Decoding, find_ffmpeg
from parakeet_worker.client.endpoint import Endpoint
from parakeet_worker.client.store import Store, Stored, sent_name
from parakeet_worker.engine.base import Samples
from parakeet_worker.errors import (
    AudioEmpty,
    FfmpegMissing,
    PayloadTooLarge,
    RequestError,
    SourceNotFound,
)
from parakeet_worker.request import Channels

log = logging.getLogger(__name__)

_MAX_SECONDS = 1e7
_DECODE_TIMEOUT_SECONDS = 1800.0
_READ_BYTES = 1 << 16
_END_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Codec:
    """A smaller form: what the engine hears of a recording is 16 kHz, one channel as a rule."""

    name: str
    ending: str
    options: tuple[str, ...]


FLAC = Codec("FLAC", "flac", ("-c:a", "flac", "-sample_fmt", "s16", "-f", "flac"))
OPUS = Codec("Opus", "ogg", ("-c:a", "libopus", "-b:a", "32k", "-f", "ogg"))


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
        smaller = await _smaller(path, limit, channels, find_ffmpeg(ffmpeg))
    except (RequestError, FfmpegMissing):
        # What ffmpeg cannot read here, or a part that is missing, is for the worker to tell.
        if store is None:
            raise
        smaller = None
    if smaller is not None:
        return smaller
    if store is None:
        raise PayloadTooLarge(size, limit, [FLAC.name, OPUS.name])
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


async def _smaller(path: Path, limit: int, channels: Channels, ffmpeg: Path) -> Parcel | None:
    for codec in (FLAC, OPUS):
        decoding = Decoding(
            path,
            ffmpeg=ffmpeg,
            max_seconds=_MAX_SECONDS,
            timeout_seconds=_DECODE_TIMEOUT_SECONDS,
            channels=channels,
        )
        content = await _encoded(decoding, codec, limit, ffmpeg)
        if content is not None:
            name = f"{sent_name(path.stem)}.{codec.ending}"
            form = f"as {codec.name}"
            return Parcel(
                name, recoded=content, form=form, warnings=tuple(map(str, decoding.warnings))
            )
    return None


async def _encoded(decoding: Decoding, codec: Codec, limit: int, ffmpeg: Path) -> bytes | None:
    """The recording in that form, whole or, where it is over the limit, not at all.

    It goes through the worker's own decoding: a file that ends before it says it does is found out
    here, since nobody could after it was encoded again.
    """
    async with aclosing(decoding.samples()) as samples:
        first = await anext(samples)
        child = await _encoder(ffmpeg, codec, 1 if first.ndim == 1 else first.shape[1])
        feeding = asyncio.create_task(_feed(child, first, samples))
        try:
            content = await _collected(child, limit)
            if content is None:
                return None
            await feeding
            if await child.wait() != 0:
                log.warning("ffmpeg has no encoder for %s", codec.name)
                return None
            return content
        finally:
            feeding.cancel()
            await asyncio.gather(feeding, return_exceptions=True)
            await asyncio.shield(_end(child))


async def _encoder(ffmpeg: Path, codec: Codec, channels: int) -> asyncio.subprocess.Process:
    command = [
        str(ffmpeg),
        *("-nostdin", "-hide_banner", "-loglevel", "error"),
        *("-f", "f32le", "-ar", str(SAMPLE_RATE), "-ac", str(channels), "-i", "pipe:0"),
        *codec.options,
        "pipe:1",
    ]
    try:
        return await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is for the client, which ends it
        )
    except OSError as failure:
        raise FfmpegMissing from failure


async def _feed(
    child: asyncio.subprocess.Process, first: Samples, rest: AsyncGenerator[Samples, None]
) -> None:
    assert child.stdin is not None
    try:
        with suppress(BrokenPipeError, ConnectionResetError):
            child.stdin.write(first.tobytes())
            async for stretch in rest:
                child.stdin.write(stretch.tobytes())
                await child.stdin.drain()
    finally:
        # Also where the file turns out to be broken: the encoder waits for its end.
        child.stdin.close()


async def _collected(child: asyncio.subprocess.Process, limit: int) -> bytes | None:
    assert child.stdout is not None
    content = bytearray()
    while chunk := await child.stdout.read(_READ_BYTES):
        content += chunk
        if len(content) > limit:
            return None
    return bytes(content)


async def _end(child: asyncio.subprocess.Process) -> None:
    """Kill and bury; asyncio learns of a death only once the pipe is read to its end."""
    assert child.stdin is not None
    assert child.stdout is not None
    with suppress(ProcessLookupError):
        child.kill()
    child.stdin.close()
    while await child.stdout.read(_READ_BYTES):
        pass
    await child.wait()
