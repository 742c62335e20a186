"""One client's connection: audio events in, a transcript out."""

import asyncio
import logging
import wave
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias, TypeVar

from wyoming.asr import Transcribe, Transcript
from wyoming.audio import AudioChunk, AudioChunkConverter, AudioFormat, AudioStart, AudioStop
from wyoming.error import Error
from wyoming.event import Event, async_read_event, async_write_event
from wyoming.info import Describe, Info
from wyoming.ping import Ping, Pong

from parakeet_worker import outcome
from parakeet_worker.errors import AudioTooLarge, AudioTooLong, InvalidRequest, ParakeetError
from parakeet_worker.scratch import Scratch

log = logging.getLogger(__name__)

Parsed = TypeVar("Parsed")

Recognize: TypeAlias = Callable[[Path, str | None], Awaitable[str]]
"""The text of a WAV file, with an optional language. Raises `ParakeetError`."""

_MAX_EVENT_BYTES = 1 << 24
# Input is read for this long after an error: closing with unread input would discard the error.
_DISCARD_SECONDS = 2.0
_DISCARD_BYTES = 1 << 16
_MAX_CHANNELS = 64
_MAX_RATE = 768_000
_MAX_CHUNK_BYTES = 1 << 26
"""Converted: 8 kHz of one byte in one channel may be declared as 768 kHz of four bytes in 64."""
_MALFORMED = (AttributeError, KeyError, TypeError, ValueError, RecursionError)


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of one connection."""

    max_audio_seconds: float
    max_audio_bytes: int
    idle_seconds: float
    """Seconds without data before the connection is closed."""


class _Disconnected(Exception):
    """The client closed the connection, or sent nothing for too long."""


class Session:
    """Answers the events of one connection, in order.

    Unknown events are ignored, as the protocol requires. A recording that fails is answered by one
    `error` event with a code of `docs/errors.md`, and the rest of its audio is ignored. What is no
    event at all is answered by an error, and the connection is closed.
    Recordings are files in folders of `scratch` until they are answered.
    """

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        recognize: Recognize,
        info: Info,
        limits: Limits,
        scratch: Scratch,
    ) -> None:
        self._reader = _LimitedReader(reader, limits.idle_seconds)
        self._writer = writer
        self._recognize = recognize
        self._info = info
        self._limits = limits
        self._scratch = scratch
        self._folder = AsyncExitStack()
        self._language: str | None = None
        self._recording: _Recording | None = None
        self._rejected = False
        self._answering = False
        self._draining = False

    @property
    def busy(self) -> bool:
        """Whether a recording has started or an event is not answered yet."""
        return self._recording is not None or self._answering

    def drain(self) -> None:
        """End the connection after the answer to the current recording."""
        self._draining = True

    async def run(self) -> None:
        """Answer events until the client disconnects."""
        try:
            while not (self._draining and not self.busy):
                event = await self._next_event()
                if event is None:
                    return
                self._answering = True
                await self._answered(event)
                self._answering = False
        except _Disconnected as failure:
            log.debug("a client disconnected: %r", failure.__cause__)
        except InvalidRequest as error:
            with suppress(_Disconnected, OSError):
                await self._fail(error)
                self._writer.write_eof()
                await self._reader.discard(_DISCARD_SECONDS)
        finally:
            await self._discard()
            self._writer.close()

    async def _next_event(self) -> Event | None:
        """None at the end of the stream. Raises `InvalidRequest` for anything but an event."""
        try:
            event = await async_read_event(self._reader)  # type: ignore[arg-type]
        except (EOFError, OSError) as failure:  # TimeoutError is an OSError
            raise _Disconnected from failure
        except _MALFORMED as failure:
            raise InvalidRequest("event", "is not a Wyoming event") from failure
        if event is None and self._reader.line:
            raise InvalidRequest("event", "is not a Wyoming event")
        return event

    async def _answered(self, event: Event) -> None:
        try:
            with self._scratch.problems_translated():
                await self._answer(event)
        except ParakeetError as error:
            await self._reject()
            await self._fail(error)
        except _Disconnected:
            raise
        except Exception:  # the edge of a connection: others are not affected
            log.exception("a Wyoming event failed: %s", event.type)
            await self._reject()
            await self._write(Error(text="see the log", code=outcome.BUG).event())

    async def _answer(self, event: Event) -> None:
        if Describe.is_type(event.type):
            await self._write(self._info.event())
        elif Ping.is_type(event.type):
            text = event.data.get("text")
            if isinstance(text, str) and not _is_encodable(text):
                raise InvalidRequest("ping", "contains a lone surrogate")
            await self._write(Pong(text=text).event())
        elif Transcribe.is_type(event.type):
            self._language = _parsed(Transcribe.from_event, event).language
        elif AudioStart.is_type(event.type):
            await self._discard()
            await self._start(_parsed(AudioStart.from_event, event))
        elif AudioChunk.is_type(event.type) and not self._rejected:
            await self._add(_parsed(AudioChunk.from_event, event))
        elif AudioStop.is_type(event.type):
            await self._finish()

    async def _start(self, declared: AudioFormat) -> "_Recording":
        if (shortage := self._scratch.shortage()) is not None:
            raise shortage
        folder = await self._folder.enter_async_context(self._scratch.made())
        self._recording = _Recording(declared, folder / "recording.wav", self._limits)
        return self._recording

    async def _add(self, chunk: AudioChunk) -> None:
        recording = self._recording or await self._start(chunk)
        await asyncio.to_thread(recording.add, chunk)

    async def _finish(self) -> None:
        if self._recording is None and not self._rejected:
            raise InvalidRequest("audio-stop", "requires audio")
        language, self._language = self._language, None
        if self._recording is not None:
            text = await self._recognize(self._recording.finished(), language)
            await self._write(Transcript(text=text).event())
        await self._discard()

    async def _fail(self, error: ParakeetError) -> None:
        await self._write(Error(text=error.sentence, code=error.code).event())

    async def _write(self, event: Event) -> None:
        try:
            await async_write_event(event, self._writer)
        except OSError as failure:
            raise _Disconnected from failure

    async def _reject(self) -> None:
        """Ignore audio until the next recording."""
        await self._discard()
        self._rejected = True

    async def _discard(self) -> None:
        self._rejected = False
        if self._recording is not None:
            self._recording.close()
            self._recording = None
        await self._folder.aclose()


def _parsed(parse: Callable[[Event], Parsed], event: Event) -> Parsed:
    """Raises `InvalidRequest` where a field is missing or of another type."""
    try:
        return parse(event)
    except _MALFORMED as failure:
        raise InvalidRequest(event.type, "is missing fields or has invalid ones") from failure


def _is_encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


class _Recording:
    """PCM that is written to a WAV file while it arrives."""

    def __init__(self, declared: AudioFormat, path: Path, limits: Limits) -> None:
        rate, width, channels = declared.rate, declared.width, declared.channels
        for name, value, most in (
            ("rate", rate, _MAX_RATE), ("width", width, 4), ("channels", channels, _MAX_CHANNELS)
        ):  # fmt: skip
            if type(value) is not int or not 1 <= value <= most:
                raise InvalidRequest(name, f"must be an integer from 1 to {most}")
        self._convert = AudioChunkConverter(rate, width, channels).convert
        self._limits = limits
        self._frame_bytes = width * channels
        self._rate = rate
        self._size = 0
        self._path = path
        self._file = wave.open(str(path), "wb")  # noqa: SIM115  # closed by `close`
        self._file.setparams((channels, width, rate, 0, "NONE", ""))

    def add(self, chunk: AudioChunk) -> None:
        """Append a chunk, in any format. Raises `AudioTooLong`, `AudioTooLarge`."""
        try:
            converted_bytes = self._converted_bytes(chunk)
            audio = self._convert(chunk).audio if converted_bytes <= _MAX_CHUNK_BYTES else b""
        except Exception as failure:  # audioop has an error class of its own, or none
            raise InvalidRequest("audio-chunk", "cannot be converted") from failure
        if converted_bytes > _MAX_CHUNK_BYTES:
            raise InvalidRequest("audio-chunk", f"exceeds {_MAX_CHUNK_BYTES} bytes as declared")
        self._size += len(audio)
        if self._size > self._limits.max_audio_bytes:
            raise AudioTooLarge(self._limits.max_audio_bytes)
        if self._size > self._limits.max_audio_seconds * self._rate * self._frame_bytes:
            raise AudioTooLong(self._limits.max_audio_seconds)
        self._file.writeframesraw(audio[: len(audio) // self._frame_bytes * self._frame_bytes])

    def _converted_bytes(self, chunk: AudioChunk) -> float:
        frames = len(chunk.audio) / (chunk.width * chunk.channels)
        return frames * self._rate / chunk.rate * self._frame_bytes

    def finished(self) -> Path:
        """The complete file."""
        self._file.close()
        return self._path

    def close(self) -> None:
        """Close the file, which is about to be removed."""
        with suppress(OSError):  # the disk may be full
            self._file.close()


class _LimitedReader:
    """A stream reader with limits of idle time and of the size of an event."""

    def __init__(self, reader: asyncio.StreamReader, idle_seconds: float) -> None:
        self._reader = reader
        self._idle_seconds = idle_seconds
        self.line = b""
        """The line read last."""

    async def readline(self) -> bytes:
        """A line; empty at the end. Raises `TimeoutError`, and `InvalidRequest` for a long line."""
        try:
            self.line = await asyncio.wait_for(self._reader.readline(), self._idle_seconds)
        except ValueError as failure:
            raise InvalidRequest("event", "has a header that is too long") from failure
        return self.line

    async def readexactly(self, size: int) -> bytes:
        """Exactly `size` bytes. Raises `TimeoutError`, `EOFError`, and `InvalidRequest`."""
        if size > _MAX_EVENT_BYTES:
            raise InvalidRequest("event", f"is longer than {_MAX_EVENT_BYTES} bytes")
        return await asyncio.wait_for(self._reader.readexactly(size), self._idle_seconds)

    async def discard(self, seconds: float) -> None:
        """Read and discard until the end or the timeout."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while await self._reader.read(_DISCARD_BYTES):
                    pass
