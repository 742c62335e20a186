"""Streams a request body to disk under limits of size and time."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing, asynccontextmanager, closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

from python_multipart import MultipartParser
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header
from starlette.requests import Request

from parakeet_worker import json_parsing
from parakeet_worker.errors import (
    AudioTooLarge,
    InvalidRequest,
    RequestError,
    SpeakerReferenceUnusable,
    UploadTimeout,
)
from parakeet_worker.options import MAX_REFERENCE_BYTES
from parakeet_worker.request import FileSource, InlineSource, KnownSpeaker
from parakeet_worker.request import Request as Transcription
from parakeet_worker.settings import Settings
from parakeet_worker.sources import inline

_FILE = "file"
_MAX_PARTS = 64
_MAX_BOUNDARY_BYTES = 70  # RFC 2046
_MAX_HEADER_BYTES = 16 << 10
_MAX_FIELD_BYTES = 64 << 10
"""Limit for all fields together, which are kept in memory."""
_FORM_SLACK_BYTES = 1 << 20
"""Allowance for the small parts of a form."""
_LARGE_FIELDS = ("known_speakers", "known_speaker_references", "known_speaker_references[]")
"""Fields that may contain audio: spooled to disk, together limited like a JSON body."""


@dataclass(frozen=True, slots=True)
class Form:
    """A `multipart/form-data` form with one file, spooled to disk."""

    fields: tuple[tuple[str, str], ...]
    """Names and values in order of arrival."""
    file: Path
    large_fields: tuple[tuple[str, Path], ...] = ()
    """Names and files of fields that may contain audio, after the others."""

    def read(self) -> list[tuple[str, str]]:
        """All fields; files of large ones are deleted. Raises `InvalidRequest`."""
        texts = []
        for name, path in self.large_fields:
            try:
                texts.append((name, path.read_text(encoding="utf-8")))
            except UnicodeDecodeError as failure:
                raise InvalidRequest(name, "is not UTF-8") from failure
            path.unlink()
        return [*self.fields, *texts]


async def receive_form(request: Request, folder: Path, settings: Settings) -> Form:
    """Receive a form; its file is written to `folder`.

    Raises `InvalidRequest`, `AudioTooLarge`, `UploadTimeout` or starlette's `ClientDisconnect`.
    """
    limit = settings.max_audio_bytes
    if _declared_bytes(request) > limit + _FORM_SLACK_BYTES + settings.max_json_bytes:
        raise AudioTooLarge(limit)
    _, options = parse_options_header(request.headers.get("content-type"))
    if not (boundary := options.get(b"boundary")):
        raise InvalidRequest("content-type", "the multipart boundary is missing")
    with (folder / "upload").open("wb") as file:
        large = _LargeFields(folder, settings.max_json_bytes)
        parser = _FormParser(boundary, file, limit, large)
        with closing(large):
            await _receive(request, parser.write, settings)
        fields = parser.end()
    return Form(fields, folder / "upload", tuple(large.files))


async def receive_body(request: Request, folder: Path, settings: Settings) -> Path:
    """Write a JSON body to a file in `folder`; raises as `receive_form` does."""
    limit, path = settings.max_json_bytes, folder / "body"
    if _declared_bytes(request) > limit:
        raise _json_too_large(limit)
    with path.open("wb") as file:

        def write(content: bytes) -> None:
            if file.tell() + len(content) > limit:
                raise _json_too_large(limit)
            file.write(content)

        await _receive(request, write, settings)
    return path


def parse_json(path: Path) -> object:
    """Parse a JSON file and delete it; raises `InvalidRequest`."""
    content = path.read_bytes()
    path.unlink()
    try:
        return json_parsing.parse(content)
    except json_parsing.NotParsed as failure:
        raise InvalidRequest("body", str(failure)) from failure


class Spool:
    """Moves inline audio to files, so that queued requests hold no recording in memory."""

    def __init__(self, folder: Path, settings: Settings) -> None:
        self._folder = folder
        self._settings = settings
        # References that all recordings of a list share are written once.
        self._references: dict[str, FileSource] = {}
        self._written = 0

    def spooled(self, request: Transcription) -> Transcription:
        """The request with audio in files. Raises as `inline.write` does."""
        known = tuple(self._spooled_reference(speaker) for speaker in request.known_speakers)
        if isinstance(request.source, InlineSource):
            ending = f".{request.audio_format}" if request.audio_format else ""
            path = self._next("audio", ending)
            inline.write(request.source, path, self._settings.max_audio_bytes)
            request = replace(request, source=FileSource(path))
        return replace(request, known_speakers=known)

    def _spooled_reference(self, speaker: KnownSpeaker) -> KnownSpeaker:
        if not isinstance(speaker.voice, InlineSource):
            return speaker
        content = speaker.voice.base64
        if content not in self._references:
            path = self._next("voice")
            try:
                inline.write(speaker.voice, path, MAX_REFERENCE_BYTES)
            except RequestError as error:
                raise SpeakerReferenceUnusable(
                    speaker.field, speaker.name, error.sentence
                ) from error
            self._references[content] = FileSource(path)
        return replace(speaker, voice=self._references[content])

    def _next(self, stem: str, ending: str = "") -> Path:
        self._written += 1
        return self._folder / f"{stem}{self._written}{ending}"


def _json_too_large(limit: int) -> InvalidRequest:
    return InvalidRequest(
        "body", f"more than {limit} bytes of JSON; upload the file as a form, or send a URL"
    )


def max_bytes(request: Request, limit: int) -> int:
    """Upper limit of the bytes that a body takes on disk."""
    return min(_declared_bytes(request) or limit, limit)


def _declared_bytes(request: Request) -> int:
    """The `Content-Length`; 0 if missing or invalid."""
    declared = request.headers.get("content-length", "")
    return int(declared) if declared.isascii() and declared.isdigit() else 0


async def _receive(request: Request, write: Callable[[bytes], None], settings: Settings) -> None:
    """Pass the body to `write` in chunks; raises `UploadTimeout` if it is idle or too slow."""
    async with _within(settings.upload_timeout_seconds), aclosing(request.stream()) as chunks:
        while True:
            async with _within(settings.idle_timeout_seconds):
                chunk = await anext(chunks, None)
            if chunk is None:
                return
            write(chunk)


@asynccontextmanager
async def _within(limit_seconds: float) -> AsyncGenerator[None, None]:
    try:
        async with asyncio.timeout(limit_seconds):
            yield
    except TimeoutError as failure:
        raise UploadTimeout(limit_seconds) from failure


class _LargeFields:
    """Writes fields that may contain audio to files."""

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self._folder = folder
        self._max_bytes = max_bytes
        self._bytes = 0
        self._file: BinaryIO | None = None
        self.files: list[tuple[str, Path]] = []

    def begin(self, name: str) -> None:
        self.close()
        path = self._folder / f"field{len(self.files)}"
        self._file = path.open("wb")
        self.files.append((name, path))

    def take(self, content: bytes) -> None:
        """Raises `InvalidRequest`."""
        self._bytes += len(content)
        if self._bytes > self._max_bytes:
            reason = f"all references together exceed {self._max_bytes} bytes"
            raise InvalidRequest(self.files[-1][0], reason)
        assert self._file is not None
        self._file.write(content)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


class _FormParser:
    """Incremental form parser: the file goes to disk, fields to memory."""

    def __init__(
        self, boundary: bytes, file: BinaryIO, max_file_bytes: int, large: _LargeFields
    ) -> None:
        self._file = file
        self._large = large
        self._max_file_bytes = max_file_bytes
        self._fields: list[tuple[str, str]] = []
        self._field_bytes = self._file_bytes = self._parts = 0
        self._header = [bytearray(), bytearray()]
        self._disposition: dict[bytes, bytes] = {}
        self._name = ""
        self._value = bytearray()
        self._has_file = self._ended = False
        if len(boundary) > _MAX_BOUNDARY_BYTES:
            reason = f"the boundary has more than {_MAX_BOUNDARY_BYTES} bytes"
            raise InvalidRequest("content-type", reason)
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._begin,
                "on_header_field": lambda data, begin, end: self._head(0, data[begin:end]),
                "on_header_value": lambda data, begin, end: self._head(1, data[begin:end]),
                "on_header_end": self._end_header,
                "on_headers_finished": self._end_headers,
                "on_part_data": lambda data, begin, end: self._take(data[begin:end]),
                "on_part_end": self._end,
                "on_end": self._end_form,
            },
        )

    def write(self, content: bytes) -> None:
        """Raises `InvalidRequest` or `AudioTooLarge`."""
        try:
            self._parser.write(content)
        except FormParserError as failure:
            raise InvalidRequest("body", f"not a multipart form: {failure}") from failure

    def end(self) -> tuple[tuple[str, str], ...]:
        """The fields of a complete form; raises `InvalidRequest`."""
        if not self._ended:
            raise InvalidRequest("body", "the multipart form ends before its last boundary")
        if not self._has_file:
            raise InvalidRequest(_FILE, "is required: the audio file, as a form part named 'file'")
        return tuple(self._fields)

    def _begin(self) -> None:
        self._parts += 1
        if self._parts > _MAX_PARTS:
            raise InvalidRequest("body", f"more than {_MAX_PARTS} parts")
        self._disposition, self._value = {}, bytearray()

    def _head(self, which: int, content: bytes) -> None:
        self._header[which] += content
        if len(self._header[which]) > _MAX_HEADER_BYTES:
            reason = f"a part has a header of more than {_MAX_HEADER_BYTES} bytes"
            raise InvalidRequest("body", reason)

    def _end_header(self) -> None:
        name, value = self._header
        if bytes(name).lower() == b"content-disposition":
            _, self._disposition = parse_options_header(bytes(value))
        self._header = [bytearray(), bytearray()]

    def _end_headers(self) -> None:
        self._name = self._disposition.get(b"name", b"").decode(errors="replace")
        if self._name != _FILE:
            if b"filename" in self._disposition:
                reason = "is not a file field; send the audio as the part 'file'"
                raise InvalidRequest(self._name, reason)
            if self._name in _LARGE_FIELDS:
                self._large.begin(self._name)
        elif self._has_file:
            raise InvalidRequest(_FILE, "occurs more than once")
        else:
            self._has_file = True

    def _take(self, content: bytes) -> None:
        if self._name == _FILE:
            self._file_bytes += len(content)
            if self._file_bytes > self._max_file_bytes:
                raise AudioTooLarge(self._max_file_bytes)
            self._file.write(content)
            return
        if self._name in _LARGE_FIELDS:
            self._large.take(content)
            return
        self._field_bytes += len(content)
        if self._field_bytes > _MAX_FIELD_BYTES:
            raise InvalidRequest(self._name, f"all fields together exceed {_MAX_FIELD_BYTES} bytes")
        self._value += content

    def _end(self) -> None:
        if self._name == _FILE or self._name in _LARGE_FIELDS:
            return
        try:
            self._fields.append((self._name, self._value.decode()))
        except UnicodeDecodeError as failure:
            raise InvalidRequest(self._name, "is not UTF-8") from failure

    def _end_form(self) -> None:
        self._ended = True
