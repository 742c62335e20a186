"""Declared lengths of containers, where ffmpeg trusts them too much or ignores them.

The header of a WAV also decides the size of its packets.
"""

import mmap
import struct
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

from parakeet_worker.notices import Notice

_MOST_CHUNKS = 1024
# Lengths written by streaming writers; others are near 2 or 4 GiB.
_UNKNOWN_WAV_BYTES = (0, 36)
_UNKNOWN_WAV_FROM_BYTES = 1_900_000_000
_PAD_BYTES = 2
# PCM, floating point, A-law, mu-law, and PCM of more than two channels.
_SAMPLE_TAGS = (1, 3, 6, 7, 0xFFFE)
# ffmpeg reads a WAV header before this as ACT, the format of a voice recorder.
_ACT_FROM, _ACT = 44, bytes(212) + b"\x84"
# Larger packets leave the processor's cache.
_LEAST_PACKET_BYTES, _MOST_PACKET_BYTES = 1 << 13, 1 << 15

_OGG_PAGE = b"OggS"
_OGG_HEADER_BYTES = 27
_OGG_FLAGS_AT = 5
_OGG_FIRST = 0x02
_OGG_LAST = 0x04
_OGG_SERIAL_AT = 14
_OGG_MAX_PAGE_BYTES = 65_307
_OPUS = (b"OpusHead", b"OpusTags")
_ID3_HEADER_BYTES = 10
_SEARCHED_BYTES = 1 << 30


@dataclass(frozen=True, slots=True)
class Lengths:
    """What to make of the lengths in a file."""

    options: tuple[str, ...] = ()
    """For ffmpeg, before the input."""
    packets: tuple[str, ...] = ()
    """The same for larger packets; ffmpeg 4.2 lacks the option."""
    unknown: bool = False
    """Whether what the file declares is a placeholder."""
    declared_seconds: float | None = None
    """How much audio a file declares that is shorter than that."""
    notices: tuple[Notice, ...] = ()


def lengths(path: Path) -> Lengths:
    """Look at a file's structure, without reading its samples; at that of a pipe, not at all."""
    if not path.is_file():
        return Lengths()
    with path.open("rb") as file:
        head = file.read(12)
        if head[:4] == b"RIFF" and head[8:] == b"WAVE":
            return _wav(file, path.stat().st_size)
        if head[4:8] == b"ftyp":
            return _mp4(file, path.stat().st_size)
    return Lengths()


def riff_chunks(file: BinaryIO, at: int, size: int) -> Iterator[tuple[bytes, int, int]]:
    """RIFF chunks from `at` on: identifier, where the content begins, and its length."""
    for _ in range(_MOST_CHUNKS):
        file.seek(at)
        header = file.read(8)
        if len(header) < 8:
            return
        name, length = struct.unpack("<4sI", header)
        yield name, at + 8, length
        at += 8 + length + length % 2
        if at >= size:
            return


def _wav(file: BinaryIO, size: int) -> Lengths:
    tag, second = 0, 0
    for name, at, length in riff_chunks(file, 12, size):
        if name == b"fmt " and length >= 16:
            file.seek(at)
            tag, second = struct.unpack("<H6xI", file.read(12).ljust(12, b"\0"))
        if name == b"data":
            wav = _wav_data(file, size, at, length, second)
            return replace(wav, packets=_packets(file, tag, second))
    return Lengths()


def _wav_data(file: BinaryIO, size: int, at: int, length: int, second: int) -> Lengths:
    """What a data chunk declares, of `length` bytes from `at` on, `second` bytes per second."""
    there = size - at
    if length > there:
        placeholder = length >= _UNKNOWN_WAV_FROM_BYTES and there < length // 2
        declared = length / second if second and not placeholder else None
        return Lengths(unknown=placeholder, declared_seconds=declared)
    if there - length <= _PAD_BYTES or _are_chunks(file, at + length + length % 2, size):
        return Lengths()
    options = ("-f", "wav", "-ignore_length", "1")
    if length in _UNKNOWN_WAV_BYTES:
        return Lengths(options, unknown=True)
    return Lengths(options, unknown=True, notices=(_behind(length, there, second),))


def _packets(file: BinaryIO, tag: int, second: int) -> tuple[str, ...]:
    """Options for packets of a quarter of a second; none if the file is not a WAV of samples.

    Since version 7 a packet has 40 ms, and each passes through several threads of ffmpeg.
    """
    file.seek(_ACT_FROM)
    if tag not in _SAMPLE_TAGS or file.read(len(_ACT)) == _ACT:
        return ()
    size = min(max(second // 4, _LEAST_PACKET_BYTES), _MOST_PACKET_BYTES)
    return ("-f", "wav", "-max_size", str(size))


def _behind(length: int, there: int, second: int) -> Notice:
    declared, present = f"{length} bytes", f"{there} bytes"
    if second:
        declared, present = f"{length / second:.2f} s", f"{there / second:.2f} s"
    return Notice(
        "length_wrong",
        f"the header declares {declared} of audio, {present} exist; all of it was transcribed",
        length / second if second else None,
        there / second if second else None,
    )


def _are_chunks(file: BinaryIO, at: int, size: int) -> bool:
    """Whether other chunks, none of them a file itself, fill the file to its end."""
    for name, begin, length in riff_chunks(file, at, size):
        printable = all(32 <= byte < 127 for byte in name)
        if not printable or name == b"RIFF" or begin + length > size + _PAD_BYTES:
            return False
    return True


def _mp4(file: BinaryIO, size: int) -> Lengths:
    """Detect a second file after the first, which ffmpeg ignores."""
    at, complete = 0, set[bytes]()
    for _ in range(_MOST_CHUNKS):
        file.seek(at)
        header = file.read(16)
        if len(header) < 8:
            break
        length, name = struct.unpack(">I4s", header[:8])
        if length == 1 and len(header) == 16:
            (length,) = struct.unpack(">8xQ", header)
        if name == b"ftyp" and {b"moov", b"mdat"} <= complete:
            message = f"another file of {size - at} bytes follows the first; it was not transcribed"
            return Lengths(notices=(Notice("audio_unread", message, damage=True),))
        if length < 8:
            break
        complete.add(name)
        at += length
    return Lengths()


def ogg_cut(path: Path, seconds: float) -> Notice | None:
    """A warning if the last page lacks the end mark: Ogg declares no length."""
    if not path.is_file():
        return None
    with path.open("rb") as file:
        if file.read(len(_OGG_PAGE)) != _OGG_PAGE:
            return None
        file.seek(-min(path.stat().st_size, _OGG_MAX_PAGE_BYTES), 2)
        tail = file.read()
    if _ends_ogg(tail[max(0, tail.rfind(_OGG_PAGE)) :]):
        return None
    reason = "the Ogg stream has no end mark: the file may be cut off"
    return Notice("audio_cut", reason, seconds, damage=True)


def _ends_ogg(page: bytes) -> bool:
    """Whether this is the last page of a stream, and whole."""
    if len(page) < _OGG_HEADER_BYTES or not page[_OGG_FLAGS_AT] & _OGG_LAST:
        return False
    segments = page[_OGG_HEADER_BYTES - 1]
    lacing = page[_OGG_HEADER_BYTES : _OGG_HEADER_BYTES + segments]
    return len(page) >= _OGG_HEADER_BYTES + segments + sum(lacing)


def chained_ogg(path: Path) -> bool:
    """Whether a file is several Ogg streams, one after the other, whose timestamps begin anew."""
    with path.open("rb") as file:
        head = file.read(_OGG_MAX_PAGE_BYTES)
        file.seek(-min(path.stat().st_size, _OGG_MAX_PAGE_BYTES), 2)
        tail = file.read()
    if not head.startswith(_OGG_PAGE):
        return False
    first = {
        _serial(head, at) for at in _places(head, _OGG_PAGE, 0) if _flags(head, at) & _OGG_FIRST
    }
    return _serial(tail, max(0, tail.rfind(_OGG_PAGE))) not in first


def _flags(page: bytes, at: int) -> int:
    flags = page[at + _OGG_FLAGS_AT : at + _OGG_FLAGS_AT + 1]
    return flags[0] if flags else 0


def _serial(page: bytes, at: int) -> bytes:
    return page[at + _OGG_SERIAL_AT : at + _OGG_SERIAL_AT + 4]


def inner_headers(path: Path) -> int:
    """Headers that are not at the beginning: those of files that were appended to another.

    ffmpeg gives the ID3 tags of MP3, and both headers of Opus in chained Ogg, to the decoder, which
    refuses them.
    """
    if not path.is_file():
        return 0
    with path.open("rb") as file:
        size = min(path.stat().st_size, _SEARCHED_BYTES)
        with mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ) as content:
            if content[: len(_OGG_PAGE)] == _OGG_PAGE:
                # Heads of streams side by side come before all tags.
                first = content.find(_OPUS[1]) + 1
                return sum(1 for header in _OPUS for _ in _places(content, header, first))
            tags = (content[at : at + _ID3_HEADER_BYTES] for at in _places(content, b"ID3", 1))
            return sum(map(_is_tag, tags))


def _places(content: mmap.mmap | bytes, marker: bytes, first: int) -> Iterator[int]:
    at = content.find(marker, first)
    while at >= 0:
        yield at
        at = content.find(marker, at + 1)


def _is_tag(header: bytes) -> bool:
    """Version 2 to 4, no unknown flags, a length of 7-bit bytes."""
    return (
        len(header) == _ID3_HEADER_BYTES
        and header[3] in (2, 3, 4)
        and not header[5] & 0x0F
        and all(byte < 128 for byte in header[6:])
    )
