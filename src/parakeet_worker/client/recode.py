"""Recordings encoded smaller, from the worker's own decoder through ffmpeg's encoders."""

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from dataclasses import dataclass
from pathlib import Path

from parakeet_worker.audio.all_tracks import Audio, decoding
from parakeet_worker.audio.decoding import SAMPLE_RATE, find_ffmpeg
from parakeet_worker.audio.demuxers import headerless
from parakeet_worker.client.store import sent_name
from parakeet_worker.engine.base import Samples
from parakeet_worker.errors import FfmpegMissing
from parakeet_worker.options import DecodingOptions

log = logging.getLogger(__name__)

_MAX_SECONDS = 1e7
_DECODE_TIMEOUT_SECONDS = 1800.0
_READ_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class Recoded:
    """An encoded recording with the name of its file."""

    name: str
    content: bytes
    encoding: str
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Codec:
    """A smaller encoding: the engine needs 16 kHz, usually one channel."""

    name: str
    ending: str
    options: tuple[str, ...]


FLAC = Codec("FLAC", "flac", ("-c:a", "flac", "-sample_fmt", "s16", "-f", "flac"))
OPUS = Codec("Opus", "ogg", ("-c:a", "libopus", "-b:a", "32k", "-f", "ogg"))


async def smaller(
    path: Path, limit: int, options: DecodingOptions, ffmpeg: Path | None
) -> Recoded | None:
    """The file in the first form of at most `limit` bytes, or None.

    Raises `FfmpegMissing`, or what is wrong with the recording, see `Decoding`.
    """
    program = find_ffmpeg(ffmpeg)
    for codec in (FLAC, OPUS):
        decoded = decoding(
            path,
            ffmpeg=program,
            max_seconds=_MAX_SECONDS,
            timeout_seconds=_DECODE_TIMEOUT_SECONDS,
            channels=options.channels,
            track=options.track,
            on_damage=options.on_damage,
            headerless=headerless(options.audio_format),
        )
        content = await _encoded(decoded, codec, limit, program)
        if content is not None:
            name = f"{sent_name(path.stem)}.{codec.ending}"
            return Recoded(name, content, f"as {codec.name}", tuple(map(str, decoded.warnings)))
    return None


async def _encoded(decoded: Audio, codec: Codec, limit: int, ffmpeg: Path) -> bytes | None:
    """The recording in that encoding, or None if it exceeds the limit.

    Decoding uses the worker's own decoder: truncation is detected here, because it is no longer
    detectable after re-encoding.
    """
    async with aclosing(decoded.samples()) as samples:
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
            async for block in rest:
                child.stdin.write(block.tobytes())
                await child.stdin.drain()
    finally:
        # Also if the file turns out to be broken: the encoder waits for its end.
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
    """Kill and reap; asyncio notices the exit only when the pipe has been read to its end."""
    assert child.stdin is not None
    assert child.stdout is not None
    with suppress(ProcessLookupError):
        child.kill()
    child.stdin.close()
    while await child.stdout.read(_READ_BYTES):
        pass
    await child.wait()
