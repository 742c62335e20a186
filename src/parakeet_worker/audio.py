"""Any recording to 16 kHz samples, by ffmpeg in a child process."""

import itertools
import re
import shutil
import signal
import struct
import sys
import time
from collections.abc import AsyncGenerator, Generator
from contextlib import aclosing, closing, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from parakeet_worker import formats, threads
from parakeet_worker.children import Children, Content, Stopped
from parakeet_worker.engine import base
from parakeet_worker.engine.base import Samples
from parakeet_worker.errors import (
    AudioEmpty,
    AudioMissing,
    AudioTooLong,
    AudioTooShort,
    AudioTruncated,
    AudioUndecodable,
    ClipOutside,
    DecoderKilled,
    DecodeTimeout,
    FfmpegMissing,
    InvalidRequest,
    ParakeetError,
    echo,
)
from parakeet_worker.formats import Headerless
from parakeet_worker.notices import Notice
from parakeet_worker.options import Channels
from parakeet_worker.request import Clip
from parakeet_worker.sections import CORES, DecodingTooSlow, Plan, Sections

SAMPLE_RATE = base.SAMPLE_RATE
"""Samples per second of everything after this stage: what the model was trained on."""

MIN_SECONDS = 0.1
"""Shorter audio cannot hold a word."""

MAX_CHANNELS = 8
"""Of a recording whose channels are heard apart."""

_SAMPLE_BYTES = 4
_AU_HEADER_BYTES = 24
_SECOND_BYTES = SAMPLE_RATE * _SAMPLE_BYTES
_FIRST_READ_BYTES = 1 << 18
# Of one buffer. Those that a header asks for (pictures, filters for odd rates) are far larger,
# those of recordings far smaller: the index of 100 hours of AAC has 400 MB, that of 4 hours 16.
_MAX_ALLOCATION_BYTES = 128 << 20
_READ_BYTES = 1 << 21
# A long recording is decoded in sections, where its samples are the same: long enough that the
# start of ffmpeg and of its decoder count little, short enough to be kept in memory (19 MB). To
# find the beginning of one, an MP3 is read up to there, so that of several hours they are longer.
_SECTION_SECONDS = 300
_LONG_SECTION_SECONDS = 600
_LONG_SECONDS = 3600.0
# Until a decoder and a resampler that begin in the middle are in the state of those that came
# there from the beginning, and how long that is compared then.
_LEAD_SECONDS = 2
_OVERLAP_SECONDS = 2
# A declared duration is rounded by some containers, and encoders add and drop a little.
_DECLARED_SLACK_SECONDS = 0.5
_DECLARED_SLACK_SHARE = 0.02


def find_ffmpeg(chosen: Path | None = None) -> Path:
    """The ffmpeg to run: the chosen one, the system's, or the one that came as a package."""
    if chosen is not None:
        return chosen
    on_path = shutil.which("ffmpeg")
    if on_path is not None:
        return Path(on_path)
    try:
        import imageio_ffmpeg

        return Path(imageio_ffmpeg.get_ffmpeg_exe())
    except (ImportError, RuntimeError) as failure:
        raise FfmpegMissing from failure


class Decoding:
    """One recording as 16 kHz samples, decoded by ffmpeg while it is read.

    `stretches` is for a thread of its own, `samples` the same on an event loop. Raises
    `AudioTooLong` as soon as the cap is passed, and at the end of the file `AudioUndecodable`,
    `AudioMissing`, `AudioEmpty`, `AudioTruncated`, `AudioTooShort`, `ClipOutside`, `DecoderKilled`
    or `DecodeTimeout`. Whatever ends the iteration, the child process is dead afterwards.
    """

    def __init__(
        self,
        path: Path,
        *,
        ffmpeg: Path,
        max_seconds: float,
        timeout_seconds: float,
        clip: Clip = Clip(),  # noqa: B008  # frozen
        channels: Channels = "mix",
        memory_bytes: int = 512 << 20,
        headerless: Headerless | None = None,
    ) -> None:
        """`memory_bytes` is what each ffmpeg may allocate, `headerless` how samples lie in a file
        that does not say it."""
        # A hint is never trusted: a file that has a header is read by it.
        fits = headerless is not None and headerless.fits(path)
        self._headerless = headerless if fits else None
        self._path = path
        self._ffmpeg = ffmpeg
        self._clip = clip
        self._separate = channels == "separate"
        self._max_samples = round(max_seconds * SAMPLE_RATE)
        self._max_seconds = max_seconds
        self._timeout_seconds = timeout_seconds
        self._decoded = 0
        self._heard = 0
        self._children = Children(memory_bytes)
        self.sections = 0
        """From how many ffmpegs its samples came, each of which decoded another part."""
        self.warnings: tuple[Notice, ...] = ()
        """What is wrong with the file without keeping it from being heard."""

    @property
    def seconds(self) -> float:
        """Where the decoding stands in the recording."""
        return self._decoded / SAMPLE_RATE

    @property
    def heard_seconds(self) -> float:
        """How much of it was yielded: the clip, as far as it was decoded."""
        return self._heard / SAMPLE_RATE

    def stop(self) -> None:
        """From any thread: kill ffmpeg, so that `stretches` ends at once, without an error."""
        self._children.stop()

    async def samples(self) -> AsyncGenerator[Samples, None]:
        """What `stretches` yields, from a thread."""
        produced = threads.produced(self.stretches(), self.stop)
        async with aclosing(produced) as stretches:
            async for stretch in stretches:
                yield stretch

    def stretches(self) -> Generator[Samples, None, None]:
        """Stretches of samples, in order; those outside the clip are left out.

        Mixed they are (N,), separate (N, channels). They grow from 4.1 s to 33 s, so that a
        recording begins to be heard early and a long one costs little per second.
        """
        with self._children, CORES.recording(), suppress(Stopped):
            child = self._children.start(
                _command(
                    self._ffmpeg,
                    self._path,
                    separate=self._separate,
                    headerless=self._headerless,
                )
            )
            reading = Sections(self._children, child, self._timeout_seconds)
            with closing(reading):
                yield from self._clipped(reading)
                if self._clip.end_seconds is None or self.seconds < self._clip.end_seconds:
                    self._judge(_Report.read(reading.report()), reading.status())
            if self._heard < MIN_SECONDS * SAMPLE_RATE:
                raise AudioTooShort(self._heard / SAMPLE_RATE, MIN_SECONDS)

    def _clipped(self, reading: Sections) -> Generator[Samples, None, None]:
        first = round(self._clip.start_seconds * SAMPLE_RATE)
        end = self._clip.end_seconds
        beyond = sys.maxsize if end is None else round(end * SAMPLE_RATE)
        for stretch in self._decoded_stretches(reading):
            at = self._decoded
            self._decoded += len(stretch)
            wanted = stretch[max(0, first - at) : beyond - at]
            self._heard += len(wanted)
            if self._heard > self._max_samples:
                raise AudioTooLong(self._max_seconds)
            if len(wanted):
                yield wanted
            if self._decoded >= beyond:
                return

    def _decoded_stretches(self, reading: Sections) -> Generator[Samples, None, None]:
        left_seconds = self._timeout_seconds
        rest, layout = b"", None if self._separate else _MIXED
        size = _FIRST_READ_BYTES
        for number in itertools.count(1):
            asked = time.monotonic()
            try:
                content = reading.read(size, left_seconds)
            except DecodingTooSlow as failure:
                raise DecodeTimeout(self._timeout_seconds) from failure
            # Only the waiting counts: ffmpeg waits while the engine is busy.
            left_seconds -= time.monotonic() - asked
            self.sections = reading.count
            if not content:
                return
            if number == 1:
                self._arrange(reading, _Report.read(reading.said()))
            if layout is None:
                layout, rest = _Layout.read(rest + content)
                content = b""
            if layout is not None:
                samples, rest = layout.samples(rest + content if rest else content)
                yield samples
            if number > 1:
                size = min(2 * size, _READ_BYTES)

    def _arrange(self, reading: Sections, report: "_Report") -> None:
        """Let a long recording wait for short ones, and divide it, if it can be entered anywhere.

        Where cores are scarce, a clip would take several times as long beside it as alone.
        """
        clip_end = self._clip.end_seconds
        wanted = self._clip.start_seconds + self._max_seconds
        ends = min(report.duration_seconds or 0.0, wanted if clip_end is None else clip_end)
        each = _SECTION_SECONDS if ends < _LONG_SECONDS else _LONG_SECTION_SECONDS
        bounds = range(each, int(ends) - each // 2, each)
        if bounds:
            reading.step_back()
        if bounds and report.divisible and not self._separate:
            reading.divide(self._plan(bounds))

    def _plan(self, bounds: range) -> Plan:
        """How a recording is divided there."""

        def command(begin: int) -> list[str]:
            seconds = begin // _SECOND_BYTES - _LEAD_SECONDS
            return _command(self._ffmpeg, self._path, separate=False, begin_seconds=seconds)

        return Plan(
            bounds=[bound * _SECOND_BYTES for bound in bounds],
            section_bytes=bounds.step * _SECOND_BYTES,
            overlap_bytes=_OVERLAP_SECONDS * _SECOND_BYTES,
            command=command,
            skipped_bytes=_LEAD_SECONDS * _SECOND_BYTES,
        )

    def _judge(self, report: "_Report", status: int) -> None:
        """Say what the end of ffmpeg means; nothing is raised for a file that was read whole."""
        self._children.check()
        if status == -signal.SIGKILL:
            raise DecoderKilled(self.seconds)
        if self._decoded == 0:
            raise clearer(report.refusal(status), report.text, self._path)
        if self._decoded <= self._clip.start_seconds * SAMPLE_RATE:
            raise ClipOutside(self._clip.start_seconds, self.seconds)
        cut = report.cut_off(self.seconds)
        if cut is not None:
            raise cut
        if status != 0:
            raise AudioUndecodable(report.complaint or f"ffmpeg ended with status {status}")
        self.warnings = report.warnings(self.seconds) + _ogg_warnings(self._path, self.seconds)


def clearer(refusal: ParakeetError, text: str, path: Path) -> ParakeetError:
    """The same refusal, with what is known of the file in place of ffmpeg's words."""
    if isinstance(refusal, AudioUndecodable | AudioMissing | AudioEmpty):
        reason = formats.clear_reason(text, path)
        if reason is not None:
            return AudioUndecodable(reason)
    return refusal


@dataclass(frozen=True, slots=True)
class _Layout:
    """How samples lie in what ffmpeg writes."""

    channels: int | None
    big_endian: bool = False

    @classmethod
    def read(cls, content: bytes) -> "tuple[_Layout | None, bytes]":
        """From the header of an AU file, once that is there whole, and what follows it.

        Of all containers for samples it has the plainest header: six numbers of 32 bits, of
        which the second is its length and the last the number of channels.
        """
        if len(content) < _AU_HEADER_BYTES:
            return None, content
        _, length, _, _, _, channels = struct.unpack(">6I", content[:_AU_HEADER_BYTES])
        if len(content) < length:
            return None, content
        if channels > MAX_CHANNELS:
            raise InvalidRequest(
                "channels", f"the recording has {channels}, at most {MAX_CHANNELS} are heard apart"
            )
        return cls(channels, big_endian=True), content[length:]

    def samples(self, content: Content) -> tuple[Samples, bytes]:
        """All whole samples, and the bytes after them."""
        size = _SAMPLE_BYTES * (self.channels or 1)
        whole = len(content) - len(content) % size
        samples = np.frombuffer(content[:whole], dtype=">f4" if self.big_endian else "<f4")
        if self.channels is not None:
            samples = samples.reshape(-1, self.channels)
        return samples.astype(np.float32, copy=False), bytes(content[whole:])


_MIXED = _Layout(channels=None)


def _command(
    ffmpeg: Path,
    path: Path,
    *,
    separate: bool,
    begin_seconds: int | None = None,
    headerless: Headerless | None = None,
) -> list[str]:
    written = ("-f", "au", "-c:a", "pcm_f32be") if separate else ("-ac", "1", "-f", "f32le")
    return [
        str(ffmpeg),
        *("-nostdin", "-hide_banner", "-nostats", "-loglevel", "info"),
        *("-max_alloc", str(_MAX_ALLOCATION_BYTES), "-filter_threads", "1"),
        *("-protocol_whitelist", "file", "-format_whitelist", formats.WHITELIST),
        *(() if begin_seconds is None else ("-ss", str(begin_seconds))),
        # One thread decodes: several wait for each other longer than a frame takes.
        *("-threads", "1", *(headerless.options if headerless else ()), "-i", f"file:{path}"),
        *("-map", "0:a:0", "-vn", "-sn", "-dn", "-map_metadata", "-1"),
        # In double precision, since what is left of sound in silence are denormal numbers in
        # single, which a processor counts with 20 times as slowly.
        *("-ar", str(SAMPLE_RATE), "-internal_sample_fmt", "dblp"),
        # Since its version 7 each step of ffmpeg is a thread, and hands over frame by frame; frames
        # of 16,384 samples are a tenth of the hand-overs after the decoder, and the same samples.
        *("-af", "asetnsamples=n=16384:p=0"),
        # Written when a buffer is full and not packet by packet, which is 14 writes for one.
        *(*written, "-flush_packets", "0", "pipe:1"),
    ]


# Of these the samples are the same wherever ffmpeg begins: their positions are exact, and the
# decoder remembers no more than a frame or two. Not so AAC, which may hold noise from a generator,
# Opus, whose memory fades without an end, and Matroska, whose clock counts milliseconds.
_CONTAINER = re.compile(
    r"^Input #0, (?:wav|w64|aiff|caf|au|flac|mp3|ogg|mov,\S*), from ", re.MULTILINE
)
_CODEC = re.compile(r"^  Stream #0:\d+.*: Audio: (?:pcm_\w+|flac|mp3|alac|vorbis)\b", re.MULTILINE)
_AUDIO = re.compile(r"^  Stream #0:\d+.*: Audio: ", re.MULTILINE)
_DURATION = re.compile(r"^  Duration: (\d+):(\d\d):(\d\d\.\d+)", re.MULTILINE)
_VIDEO = re.compile(r"^  Stream #0:\d+.*: Video:(?!.*attached pic)", re.MULTILINE)
_CORRUPT = re.compile(
    r"partial file|corrupt input packet|Packet corrupt|File ended prematurely|Truncating packet"
)
_BROKEN = re.compile(r"Error while decoding|Decoding error|Error submitting packet|Header missing")
_PREFIX = re.compile(r"^(\[[^\]]*\] ?)+")
_NOISE = re.compile(r"^\s|^(Input|Output|Stream mapping|Guessed|Press|size=|video:|To ignore)")


@dataclass(frozen=True, slots=True)
class _Report:
    """The facts in what ffmpeg said of one file."""

    text: str
    duration_seconds: float | None
    """As ffmpeg shows it, which may be a guess."""
    declared_seconds: float | None
    """As the file says it."""
    complaint: str | None

    @classmethod
    def read(cls, text: str) -> "_Report":
        estimated = "Estimating duration from bitrate" in text
        found, duration = _DURATION.search(text), None
        if found is not None:
            hours, minutes, seconds = found.groups()
            duration = int(hours) * 3600 + int(minutes) * 60 + float(seconds)
        declared = None if estimated or _VIDEO.search(text) else duration
        lines = [_PREFIX.sub("", line) for line in text.splitlines() if not _NOISE.match(line)]
        told = formats.telling([line for line in lines if line.strip()])
        complaint = None if told is None else echo(told.rpartition(": ")[2] or told)
        return cls(text, duration, declared, complaint)

    @property
    def divisible(self) -> bool:
        """Whether ffmpeg may begin in the middle of it."""
        first = _AUDIO.search(self.text)
        return (
            first is not None
            and _CODEC.match(self.text, first.start()) is not None
            and _CONTAINER.search(self.text) is not None
        )

    def refusal(self, status: int) -> ParakeetError:
        """Why not a single sample came."""
        if "matches no streams" in self.text:
            return AudioMissing()
        if status == 0 and not _BROKEN.search(self.text):
            return AudioEmpty("the file holds no samples of audio")
        reason = self.complaint or f"it ended with status {status}"
        return AudioUndecodable(f"ffmpeg cannot read it as audio: {reason}")

    def cut_off(self, seconds: float) -> AudioTruncated | None:
        """The file's own word that it goes on after what could be decoded."""
        # A header that was written before the length was known makes ffmpeg complain in vain.
        if _CORRUPT.search(self.text) and "Ignoring maximum wav data size" not in self.text:
            return AudioTruncated(seconds, self.declared_seconds, "its last part is cut off")
        missing = self._missing(seconds)
        if missing <= _DECLARED_SLACK_SHARE * (self.declared_seconds or 0.0):
            return None
        return AudioTruncated(seconds, self.declared_seconds, f"{missing:.2f} s are missing")

    def warnings(self, seconds: float) -> tuple[Notice, ...]:
        """What the caller should know of a file that could be heard all the same."""
        broken, missing = len(_BROKEN.findall(self.text)), self._missing(seconds)
        unread = Notice("audio_damaged", f"ffmpeg could not decode {broken} frames of the file")
        short = Notice(
            "audio_cut",
            f"the file ends {missing:.2f} s before it says it does",
            seconds,
            seconds + missing,
        )
        return (unread,) * bool(broken) + (short,) * bool(missing)

    def _missing(self, seconds: float) -> float:
        """How much the file declares beyond what was decoded; zero where it is next to nothing."""
        missing = (self.declared_seconds or 0.0) - seconds
        return missing if missing > _DECLARED_SLACK_SECONDS else 0.0


_OGG_PAGE = b"OggS"
_OGG_HEADER_BYTES = 27
_OGG_FLAGS_AT = 5
_OGG_LAST = 0x04
_OGG_MAX_PAGE_BYTES = 65_307


def _ogg_warnings(path: Path, seconds: float) -> tuple[Notice, ...]:
    """Ogg has no length in front; all that tells a cut file is the mark on its last page."""
    with path.open("rb") as file:
        if file.read(len(_OGG_PAGE)) != _OGG_PAGE:
            return ()
        file.seek(-min(path.stat().st_size, _OGG_MAX_PAGE_BYTES), 2)
        tail = file.read()
    if _ends_ogg(tail[max(0, tail.rfind(_OGG_PAGE)) :]):
        return ()
    reason = "the Ogg stream has no end mark: the file may be cut off"
    return (Notice("audio_cut", reason, seconds),)


def _ends_ogg(page: bytes) -> bool:
    """Whether this is the last page of a stream, and whole."""
    if len(page) < _OGG_HEADER_BYTES or not page[_OGG_FLAGS_AT] & _OGG_LAST:
        return False
    segments = page[_OGG_HEADER_BYTES - 1]
    lacing = page[_OGG_HEADER_BYTES : _OGG_HEADER_BYTES + segments]
    return len(page) >= _OGG_HEADER_BYTES + segments + sum(lacing)
