"""Recordings that are 16 kHz samples already, read without ffmpeg.

Its start takes longer than everything else about a short recording. Only files whose header agrees
with their size are read here: ffmpeg and its checks remain for all others.
"""

import struct
from collections.abc import Generator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

import numpy as np

from parakeet_worker.audio.decoding import MIN_SECONDS, BlockSource, Origin
from parakeet_worker.audio.demuxers import Headerless
from parakeet_worker.audio.file_lengths import Lengths, lengths, riff_chunks
from parakeet_worker.engine.base import SAMPLE_RATE, Samples
from parakeet_worker.errors import (
    AudioTooLong,
    AudioTooShort,
    AudioUndecodable,
    ClipOutside,
)
from parakeet_worker.notices import Notice
from parakeet_worker.options import Channels
from parakeet_worker.request import Clip

_SAMPLE_BYTES = 2
# PCM, mono: tag, channels, rate, bytes per second and per sample, bits.
_FORMAT = struct.pack("<HHIIHH", 1, 1, SAMPLE_RATE, SAMPLE_RATE * _SAMPLE_BYTES, _SAMPLE_BYTES, 16)
_HEADERLESS = Headerless("s16le", SAMPLE_RATE, 1)
_RIFF_BYTES = 12
# What ffmpeg skips before the samples; others change how it reads them.
_SKIPPED = (b"LIST", b"JUNK", b"bext", b"fact")
# As of `Decoding`: the first ones are transcribed early, the later ones cost less per second.
_FIRST_READ_SAMPLES, _READ_SAMPLES = 1 << 16, 1 << 19


@dataclass(frozen=True, slots=True)
class PlainSamples:
    """Where in a file its samples are: mono, 16 bits, 16 kHz."""

    path: Path
    first_byte: int
    count: int

    @classmethod
    def of(cls, path: Path, headerless: Headerless | None) -> "PlainSamples | None":
        """None if the file has, or may have, anything else."""
        if not path.is_file():
            return None
        if headerless is not None and headerless.fits(path):
            begin, size = 0, path.stat().st_size if headerless == _HEADERLESS else 0
        else:
            begin, size = _of_wav(path)
        if not size or size % _SAMPLE_BYTES:
            return None
        return cls(path, begin, size // _SAMPLE_BYTES)


def _of_wav(path: Path) -> tuple[int, int]:
    """First byte and number of bytes; none of a file that ffmpeg has to read."""
    declared = lengths(path)
    # Larger packets are for plain WAV alone.
    if not declared.packets or replace(declared, packets=()) != Lengths():
        return 0, 0
    described = False
    with path.open("rb") as file:
        for name, at, length in riff_chunks(file, _RIFF_BYTES, path.stat().st_size):
            if name == b"data":
                return (at, length) if described else (0, 0)
            if name == b"fmt ":
                file.seek(at)
                described = file.read(len(_FORMAT)) == _FORMAT
            elif name not in _SKIPPED:
                break
    return 0, 0


class PlainDecoding(BlockSource):
    """Reads such samples; used like a `Decoding`, with the same samples and errors."""

    OPTIONS = ("max_seconds", "clip", "channels")
    """Those of `Decoding` that are not about ffmpeg or damage."""

    warnings: tuple[Notice, ...] = ()
    origin = Origin()

    def __init__(
        self,
        plain: PlainSamples,
        *,
        max_seconds: float,
        clip: Clip = Clip(),  # noqa: B008  # frozen
        channels: Channels = "mix",
    ) -> None:
        self._plain = plain
        self._max_seconds = max_seconds
        self._clip = clip
        self._separate = channels == "separate"
        self._yielded = 0
        self._stopped = False

    @property
    def yielded_seconds(self) -> float:
        """Duration yielded so far: the decoded part of the clip."""
        return self._yielded / SAMPLE_RATE

    def stop(self) -> None:
        """End `blocks` after the current read; callable from any thread."""
        self._stopped = True

    def blocks(self) -> Generator[Samples, None, None]:
        """Yield (N,), or (N, 1) if channels are separate.

        Raises `AudioTooLong`, `AudioTooShort`, `ClipOutside`, or `AudioUndecodable` if the file
        changes while it is read.
        """
        begin, end = self._bounds()
        size = _FIRST_READ_SAMPLES
        with self._plain.path.open("rb") as file:
            file.seek(self._plain.first_byte + begin * _SAMPLE_BYTES)
            while begin < end and not self._stopped:
                block = _read(file, min(size, end - begin))
                size = min(2 * size, _READ_SAMPLES) if self._yielded else size
                begin += len(block)
                self._yielded += len(block)
                yield block[:, None] if self._separate else block

    def _bounds(self) -> tuple[int, int]:
        """First sample of the clip and the one after its last."""
        clip, count = self._clip, self._plain.count
        begin, end = round(clip.start_seconds * SAMPLE_RATE), count
        if begin >= count:
            raise ClipOutside(clip.start_seconds, count / SAMPLE_RATE)
        if clip.end_seconds is not None:
            end = min(end, round(clip.end_seconds * SAMPLE_RATE))
        if end - begin > round(self._max_seconds * SAMPLE_RATE):
            raise AudioTooLong(self._max_seconds)
        if end - begin < MIN_SECONDS * SAMPLE_RATE:
            raise AudioTooShort((end - begin) / SAMPLE_RATE, MIN_SECONDS)
        return begin, end


def _read(file: BinaryIO, count: int) -> Samples:
    try:
        content = file.read(count * _SAMPLE_BYTES)
    except OSError as failure:
        raise AudioUndecodable(f"reading the file failed: {failure.strerror}") from failure
    if len(content) < count * _SAMPLE_BYTES:
        raise AudioUndecodable("the file became shorter while it was read")
    samples: Samples = np.frombuffer(content, dtype="<i2") * np.float32(2**-15)
    return samples
