"""Zeroed bytes in MP3 and AVI, which have no timestamps: where they shorten the recording."""

import mmap
import re
import statistics
import struct
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import islice
from pathlib import Path

# Shorter runs of zeros are usual.
_ZEROS = bytes(16)
_BLOCK_BYTES = 1 << 20
_MOST_HOLES = 2000


@dataclass(frozen=True, slots=True)
class Hole:
    """Audio that is missing without a trace in what ffmpeg decodes."""

    at_seconds: float
    """How much ffmpeg decodes before it."""
    seconds: float


def holes(path: Path, stream: int, longest_seconds: float) -> tuple[Hole, ...]:
    """The holes in a stream of a file that is MP3 or AVI, in that part of it."""
    if not path.is_file() or path.stat().st_size <= len(_ZEROS):
        return ()
    with (
        path.open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content,
    ):
        if content[:4] == b"RIFF" and content[8:12] == b"AVI ":
            return tuple(islice(_avi_holes(content, stream, longest_seconds), _MOST_HOLES))
        first = _after_tags(content, 0)
        if _frame(content[first : first + _HEADER_BYTES]) is None or not _has_zeros(content):
            return ()
        return tuple(_mp3_holes(content, first, longest_seconds))


def _has_zeros(content: mmap.mmap) -> bool:
    blocks = range(0, len(content), _BLOCK_BYTES)
    return any(_ZEROS in content[at : at + _BLOCK_BYTES + len(_ZEROS)] for at in blocks)


# MP3

_HEADER_BYTES = 4
_OLD_TAG_BYTES = 128
_HEADER = re.compile(rb"\xff[\xe2-\xe7\xf2-\xff][\x10-\xef]", re.DOTALL)
# By version (1; 2 and 2.5) and layer.
_KILOBITS = {
    (1, 1): (32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (1, 2): (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (1, 3): (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (2, 1): (32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (2, 2): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
_KILOBITS[2, 3] = _KILOBITS[2, 2]
_RATES = (44_100, 48_000, 32_000)
# So many frames one after the other are no accident.
_CONFIRMING_FRAMES = 4
_NEAR_FRAMES = 200
_XING = (b"Xing", b"Info")
_XING_WITHIN_BYTES = 48
_TAGS_BYTES = 4096


@dataclass(frozen=True, slots=True)
class _Frame:
    size: int
    seconds: float


@cache
def _frame(header: bytes) -> _Frame | None:
    """Read a header as ffmpeg does; None if it is invalid."""
    if len(header) < _HEADER_BYTES or _HEADER.match(header) is None:
        return None
    version = {0b00: 4, 0b10: 2, 0b11: 1}[header[1] >> 3 & 3]  # 4 is MPEG 2.5
    layer, rate_index = 4 - (header[1] >> 1 & 3), header[2] >> 2 & 3
    if rate_index == len(_RATES):
        return None
    kilobits = _KILOBITS[min(version, 2), layer][(header[2] >> 4) - 1]
    rate, padding = _RATES[rate_index] // version, header[2] >> 1 & 1
    if layer == 1:
        return _Frame((12_000 * kilobits // rate + padding) * 4, 384 / rate)
    samples = 576 if layer == 3 and version > 1 else 1152
    return _Frame(samples * 125 * kilobits // rate + padding, samples / rate)


@dataclass(frozen=True, slots=True)
class _Region:
    """Bytes between two runs of frames."""

    begin: int
    end: int
    frames_before: int
    """Frames that ffmpeg reads before it."""
    frames_inside: int
    """Frames that ffmpeg reads in it: a random header is one to it."""


def _mp3_holes(content: mmap.mmap, first: int, longest_seconds: float) -> Iterator[Hole]:
    header = _frame(content[first : first + _HEADER_BYTES])
    assert header is not None
    declared, complete = _declared_frames(content, first)
    most = int(longest_seconds / header.seconds)
    places = array("q")
    regions = list(_regions(content, first + header.size * (declared > 0), places, most))
    damaged = [each for each in regions if _is_damaged(content, each)][:_MOST_HOLES]
    lost: list[float] = [_lost_frames(content, each, places) for each in damaged]
    total = sum(lost)
    if complete and total > 0 and len(places) < min(declared, most):
        # Exact for a single hole; of several, each has a share of it.
        lost = [each * (declared - len(places)) / total for each in lost]
    for region, frames in zip(damaged, lost, strict=True):
        if frames > 0:
            at_seconds = (region.frames_before + region.frames_inside) * header.seconds
            yield Hole(at_seconds, frames * header.seconds)


def _declared_frames(content: mmap.mmap, first: int) -> tuple[int, bool]:
    """The number of frames in the Xing header, 0 without one, and whether the file is complete."""
    head = content[first : first + _XING_WITHIN_BYTES]
    at = first + max(map(head.find, _XING))
    if at < first or len(content) < at + 16:
        return 0, False
    flags, frames, size = struct.unpack(">III", content[at + 4 : at + 16])
    complete = flags & 3 == 3 and abs(first + size - len(content)) <= _TAGS_BYTES
    return frames, complete


def _regions(content: mmap.mmap, at: int, places: "array[int]", most: int) -> Iterator[_Region]:
    """What lies between runs of frames; `places` gets the place of each frame, of so many at most.

    A header is searched at each byte where no frame follows the one before, as in ffmpeg.
    """
    begin, before, run = at, 0, _CONFIRMING_FRAMES
    while len(places) < most:
        frame = _frame(content[at : at + _HEADER_BYTES])
        if frame is not None:
            places.append(at)
            at += frame.size
            run += 1
            if run == _CONFIRMING_FRAMES:
                yield _Region(begin, places[-run], before, len(places) - run - before)
            continue
        if run >= _CONFIRMING_FRAMES:
            begin, before = at, len(places)
        run = 0
        # Always behind `at`: a pattern of a header there is no frame, and would be found again.
        behind = max(at + 1, _after_tags(content, at + (at != begin)))
        at = _next_header(content, behind)
        if at < 0:
            return


def _next_header(content: mmap.mmap, at: int) -> int:
    """Where something begins that looks like a header; -1 if nothing does."""
    # In parts: other threads wait for a search.
    for first in range(at, len(content), _BLOCK_BYTES):
        match = _HEADER.search(content, first, first + _BLOCK_BYTES + _HEADER_BYTES)
        if match is not None:
            return match.start()
    return -1


def _after_tags(content: mmap.mmap, at: int) -> int:
    """Behind ID3 tags that begin there: of an earlier file one at its end, then of a later file."""
    if content[at : at + 3] == b"TAG":
        at += _OLD_TAG_BYTES
    while content[at : at + 3] == b"ID3":
        size = content[at + 6 : at + 10]
        if len(size) < 4 or max(size) > 127:
            break
        at += 10 + sum(byte << 7 * place for place, byte in enumerate(reversed(size)))
    return at


def _is_damaged(content: mmap.mmap, region: _Region) -> bool:
    begin = _after_tags(content, region.begin)
    searched = content[begin - len(_ZEROS) : min(region.end, begin + _BLOCK_BYTES)]
    return begin < region.end and _ZEROS in searched


def _lost_frames(content: mmap.mmap, region: _Region, places: "array[int]") -> int:
    """How many frames had room in it, by the size of those near it."""
    after = region.frames_before + region.frames_inside
    near = places[max(0, region.frames_before - _NEAR_FRAMES) : region.frames_before]
    near += places[after : after + _NEAR_FRAMES]
    frames = [_frame(content[at : at + _HEADER_BYTES]) for at in near]
    size = statistics.mean(frame.size for frame in frames if frame is not None)
    return max(0, round((region.end - region.begin) / size) - region.frames_inside)


# AVI

_CHUNK_HEADER_BYTES = 8
_INDEX_ENTRY = struct.Struct("<4sIII")
_MOST_PARTS = 1024
_MOST_CHUNKS = 1 << 22
_TRIED_CHUNKS = 1000
_STREAM_HEADER = struct.Struct("<4s16xII16xI")
_BLOCK_ALIGN_AT = 12


@dataclass(frozen=True, slots=True)
class _Stream:
    """An audio stream of an AVI file, by its header."""

    unit_seconds: float
    sample_bytes: int
    block_bytes: int

    def seconds(self, size: int) -> float:
        """Length of a chunk, as ffmpeg computes it."""
        if self.sample_bytes:
            return size / self.sample_bytes * self.unit_seconds
        return self.unit_seconds * (-(-size // self.block_bytes) if self.block_bytes else 1)


def _avi_holes(content: mmap.mmap, number: int, longest_seconds: float) -> Iterator[Hole]:
    """Runs of chunks of this stream that the index declares and the file lacks."""
    parts = dict(_lists(content, 12, len(content)))
    headers = [at for name, at in _lists(content, *parts.get(b"hdrl", (0, 0))) if name == b"strl"]
    stream = _stream(content, *headers[number]) if number < len(headers) else None
    movie, (begin, end) = parts.get(b"movi", (0, 0))[0], parts.get(b"idx1", (0, 0))
    if stream is None or not movie:
        return
    chunks = min((end - begin) // _INDEX_ENTRY.size, _MOST_CHUNKS)
    index = content[begin : begin + chunks * _INDEX_ENTRY.size]
    # Places count from the list's type, or from the start of the file.
    tried = list(islice(_chunks(index, number), _TRIED_CHUNKS))
    base = max((movie - 4, 0), key=lambda base: sum(each.is_in(content, base) for each in tried))
    passed = lost = 0.0
    for chunk in _chunks(index, number):
        seconds = stream.seconds(chunk.size)
        if passed + lost > longest_seconds:
            return
        if not chunk.is_in(content, base):
            lost += seconds
            continue
        if lost:
            yield Hole(passed, lost)
        passed, lost = passed + seconds, 0.0


@dataclass(frozen=True, slots=True)
class _Chunk:
    header: bytes
    at: int
    size: int

    def is_in(self, content: mmap.mmap, base: int) -> bool:
        """Whether the file has it there."""
        at = base + self.at
        return content[at : at + _CHUNK_HEADER_BYTES] == self.header


def _chunks(index: bytes, number: int) -> Iterator[_Chunk]:
    """The chunks of an audio stream."""
    own = b"%02dwb" % number
    for name, _, at, size in _INDEX_ENTRY.iter_unpack(index):
        if name == own:
            yield _Chunk(struct.pack("<4sI", name, size), at, size)


def _lists(content: mmap.mmap, at: int, end: int) -> Iterator[tuple[bytes, tuple[int, int]]]:
    """Chunks, lists by their type, with begin and end of what they contain."""
    for _ in range(_MOST_PARTS):
        if at + _CHUNK_HEADER_BYTES > end:
            return
        name, size = struct.unpack("<4sI", content[at : at + _CHUNK_HEADER_BYTES])
        begin, after = at + _CHUNK_HEADER_BYTES, min(end, at + _CHUNK_HEADER_BYTES + size)
        if name == b"LIST":
            yield content[begin : begin + 4], (begin + 4, after)
        else:
            yield name, (begin, after)
        at = after + size % 2


def _stream(content: mmap.mmap, at: int, end: int) -> _Stream | None:
    """The stream of a list of headers; None if it is not audio."""
    parts = dict(_lists(content, at, end))
    header = content[slice(*parts.get(b"strh", (0, 0)))]
    layout = content[slice(*parts.get(b"strf", (0, 0)))]
    if len(header) < _STREAM_HEADER.size or len(layout) < _BLOCK_ALIGN_AT + 2:
        return None
    kind, scale, rate, sample_bytes = _STREAM_HEADER.unpack(header[: _STREAM_HEADER.size])
    if kind != b"auds" or not scale or not rate:
        return None
    (block_bytes,) = struct.unpack_from("<H", layout, _BLOCK_ALIGN_AT)
    return _Stream(scale / rate, sample_bytes, block_bytes)
