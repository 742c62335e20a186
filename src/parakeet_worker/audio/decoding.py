"""Any recording to 16 kHz samples, by ffmpeg in a child process."""

import itertools
import math
import shutil
import signal
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Generator, Iterator, Mapping, Sequence
from contextlib import aclosing, closing, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Literal

import numpy as np

from parakeet_worker import threads
from parakeet_worker.audio import demuxers, tracks
from parakeet_worker.audio.channels import MAX_CHANNELS, Cleaner, CrossTalk, Mixer
from parakeet_worker.audio.child_process import Children, Content, Stopped
from parakeet_worker.audio.decoder_report import Report, clearer
from parakeet_worker.audio.demuxers import Headerless
from parakeet_worker.audio.ffmpeg_log import CLOCK_FILTER, FRAME_FILTER, Mark
from parakeet_worker.audio.file_lengths import Lengths, chained_ogg, inner_headers, lengths, ogg_cut
from parakeet_worker.audio.holes import holes
from parakeet_worker.audio.sections import CORES, DecodingTooSlow, Plan, Sections
from parakeet_worker.audio.seeking import FROM_START, SeekPoint, before, steady, timestamp_of
from parakeet_worker.audio.timeline import Clock, Timeline
from parakeet_worker.audio.tracks import AudioTrack, Track, choose
from parakeet_worker.engine import base
from parakeet_worker.engine.base import Samples
from parakeet_worker.errors import (
    AudioDamaged,
    AudioTooLong,
    AudioTooShort,
    AudioTruncated,
    AudioUndecodable,
    ClipOutside,
    DecoderKilled,
    DecodeTimeout,
    FfmpegMissing,
)
from parakeet_worker.notices import Notice
from parakeet_worker.options import Channels, OnDamage
from parakeet_worker.request import Clip

SAMPLE_RATE = base.SAMPLE_RATE
"""Samples per second of everything after this stage: what the model was trained on."""

MIN_SECONDS = 0.1
"""Shorter audio cannot hold a word."""

_SAMPLE_BYTES = 4
_SECOND_BYTES = SAMPLE_RATE * _SAMPLE_BYTES
_FIRST_READ_BYTES = 1 << 18
# Per buffer. Malicious headers (pictures, filters for odd rates) request far more, recordings far
# less: the index of 100 hours of AAC takes 400 MB, that of 4 hours 16.
_MAX_ALLOCATION_BYTES = 128 << 20
_READ_BYTES = 1 << 21
# A long recording is decoded in sections, where its samples are the same: long enough that the
# start of ffmpeg and of its decoder count little, short enough to be kept in memory. To find the
# beginning of one, an MP3 is read up to there, so that of several hours there are only enough of
# them to keep all processors busy.
_SECTION_SECONDS = 300
_LONGEST_SECTION_SECONDS = 1800
_SECTIONS_PER_CORE = 3
# Until a decoder and a resampler that begin in the middle are in the state of those that came
# there from the beginning, and how long that is compared then.
_LEAD_SECONDS = 2
_OVERLAP_SECONDS = 2
# A clip that begins later is entered there, if the container allows it; what comes before it is
# decoded in a second else. A declared duration may be wrong, but rarely by so much.
_SEEK_SECONDS = 300
# Where seeking ends further from there, it does not save much.
_MOST_LEAD_SECONDS = 120
_LATEST_SECONDS = 60
_DECLARED_AT_MOST = 1.5
_NEARLY_ALL = 0.98
# What cannot be decoded so close to a cut is part of it.
_LAST_PACKETS_SECONDS = 2.0
# Reads of many channels are at most that many times as large as those of one.
_WIDEST_READ = 8


# Since version 7 each stage of ffmpeg is a thread that passes single frames on. Frames of 16,384
# samples reduce this to a tenth after the decoder; the samples are the same.
_GATHER_FILTER = "asetnsamples=n=16384:p=0"

ResamplingPrecision = Literal["double", "single"]

_SAMPLE_FORMATS: Final[Mapping[ResamplingPrecision, str]] = {"double": "dblp", "single": "fltp"}

# Of ffmpeg 4.2, about `Lengths.packets`.
_UNKNOWN_OPTION = "Option max_size not found"


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


@dataclass(frozen=True, slots=True)
class Origin:
    """How the samples of a recording were made, for `debug`."""

    track: int = 1
    tracks: int = 1
    channels: int = 1
    """Of the track that was decoded."""
    inverted_channels: tuple[int, ...] = ()
    """Channels inverted before mixing."""
    silent_channels: tuple[int, ...] = ()
    gap_seconds: float = 0.0
    """Silence inserted for missing audio."""
    crosstalk_seconds: float = 0.0
    """Cross-talk removed from channels."""


class _OtherTrack(Exception):
    """Another track than the decoded one is selected."""

    def __init__(self, stream: int) -> None:
        super().__init__()
        self.stream = stream


class BlockSource(ABC):
    """A recording as blocks of samples."""

    @abstractmethod
    def blocks(self) -> Generator[Samples, None, None]:
        """Blocks of samples, in order, computed in the calling thread."""

    @abstractmethod
    def stop(self) -> None:
        """End `blocks` soon and without an error; callable from any thread."""

    async def samples(self) -> AsyncGenerator[Samples, None]:
        """The same as `blocks`, computed in a thread."""
        produced = threads.produced(self.blocks(), self.stop)
        async with aclosing(produced) as blocks:
            async for block in blocks:
                yield block


class Decoding(BlockSource):
    """One recording as 16 kHz samples on its own clock, decoded by ffmpeg while it is read.

    `blocks` is for a thread of its own, `samples` the same on an event loop. Raises
    `AudioTooLong` as soon as the cap is passed, and at the end of the file `AudioUndecodable`,
    `AudioMissing`, `AudioEmpty`, `AudioTooShort`, `ClipOutside`, `DecoderKilled` or
    `DecodeTimeout`; `AudioTruncated` or `AudioDamaged` where damage is to be refused. Whatever
    ends the iteration, the child process is dead afterwards.
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
        track: Track = None,
        on_damage: OnDamage = "warn",
        memory_bytes: int = 512 << 20,
        precision: ResamplingPrecision = "double",
        headerless: Headerless | None = None,
        section_seconds: int = _SECTION_SECONDS,
    ) -> None:
        """`memory_bytes` is what each ffmpeg may allocate, `precision` that of its resampler,
        `headerless` the layout of headerless samples, `section_seconds` the shortest section."""
        # A file with a header is read by its header, whatever the hint.
        fits = headerless is not None and headerless.fits(path)
        self._headerless = headerless if fits else None
        self._path = path
        self._ffmpeg = ffmpeg
        self._clip = clip
        self._separate = channels == "separate"
        self._track = track
        self._on_damage = on_damage
        self._precision: ResamplingPrecision = precision
        self._section_seconds = section_seconds
        self._max_samples = round(max_seconds * SAMPLE_RATE)
        self._max_seconds = max_seconds
        self._timeout_seconds = timeout_seconds
        self._left_seconds = timeout_seconds
        self._decoded = 0
        self._yielded = 0
        self._children = Children(memory_bytes)
        self._lengths = Lengths()
        self._cleaner, self._mixer, self._crosstalk = Cleaner(), Mixer(), CrossTalk()
        self._timeline = Timeline(0.0, None)
        self._channels = 1
        self._point = FROM_START
        self._gathers = True
        self.tracks: tuple[AudioTrack, ...] = ()
        """Audio tracks of the recording; available with the first samples."""
        self._chosen: AudioTrack | None = None
        self.begin_seconds = 0.0
        """Where in the recording its decoding began."""
        self.sections = 0
        """Number of ffmpeg processes whose output was used, each for another part."""
        self.warnings: tuple[Notice, ...] = ()
        """Damage and choices that did not prevent decoding."""

    @property
    def seconds(self) -> float:
        """Position of the decoder in the recording."""
        return self._decoded / SAMPLE_RATE

    @property
    def yielded_seconds(self) -> float:
        """Duration yielded so far: the decoded part of the clip."""
        return self._yielded / SAMPLE_RATE

    @property
    def origin(self) -> Origin:
        """How the samples were produced."""
        mixed = self._channels > 1 and not self._separate
        return Origin(
            track=self._chosen.number if self._chosen else 1,
            tracks=max(1, len(self.tracks)),
            channels=self._channels,
            inverted_channels=tuple(sorted(self._mixer.opposite)),
            silent_channels=tuple(sorted(self._mixer.silent)) if mixed else (),
            gap_seconds=round(self._timeline.gap_seconds, 3),
            crosstalk_seconds=round(self._crosstalk.seconds, 3),
        )

    def stop(self) -> None:
        """Kill ffmpeg, from any thread: `blocks` ends immediately without an error."""
        self._children.stop()

    def blocks(self) -> Generator[Samples, None, None]:
        """Blocks of samples, in order; those outside the clip are left out.

        Mixed they are (N,), separate (N, channels). They grow from 4.1 s to 33 s, so that a
        recording is transcribed early and a long one costs little per second. What is missing
        between them is silence.
        """
        with self._children, CORES.recording(), suppress(Stopped):
            if self._headerless is None:
                self._lengths = lengths(self._path)
            reading, first = self._opened()
            with closing(reading):
                yield from self._clipped(reading, first)
                if self._clip.end_seconds is None or self.seconds < self._clip.end_seconds:
                    self._judge(Report.read(reading.report()), reading.status())
            if self._yielded < MIN_SECONDS * SAMPLE_RATE:
                raise AudioTooShort(self._yielded / SAMPLE_RATE, MIN_SECONDS)

    def _opened(self) -> tuple[Sections, Content]:
        """Start the decoder of the selected track; returns it and its first output."""
        stream = f"a:{self._track - 1}" if isinstance(self._track, int) else "a:0"
        while True:
            child = self._children.start(self._command(stream))
            reading = Sections(self._children, child, self._timeout_seconds)
            first = self._read(reading, _FIRST_READ_BYTES)
            text = reading.log_text() if first else reading.report()
            if self._lengths.packets and not first and _UNKNOWN_OPTION in text:
                self._children.end(child)
                self._lengths = replace(self._lengths, packets=())
                continue
            try:
                self._look(Report.read(text), stream)
            except _OtherTrack as other:
                self._children.end(child)
                stream = str(other.stream)
                continue
            return reading, first

    def _look(self, report: Report, stream: str) -> None:
        """Evaluate ffmpeg's report of the file; raises `_OtherTrack`."""
        self.tracks = report.tracks
        report.check_rate()
        if demuxers.is_encrypted(self._path):
            raise AudioUndecodable(demuxers.ENCRYPTED)
        if not report.tracks:
            return  # reported at the end
        self._chosen = choose(report.tracks, self._track)
        first = isinstance(self._track, int) or self._chosen.number == 1
        if stream.startswith("a:") and not first:
            raise _OtherTrack(self._chosen.stream)
        if (self._chosen.many_channels or 0) > MAX_CHANNELS:
            count = self._chosen.many_channels
            raise AudioUndecodable(f"{count} channels, of which {MAX_CHANNELS} can be decoded")
        self._channels = report.channels
        declared = None if report.estimated else report.duration_seconds
        ends, stream_index = self._end_seconds, self._chosen.stream
        missing = () if self._headerless else holes(self._path, stream_index, ends)
        self._timeline = Timeline(ends, declared, missing)

    @property
    def _end_seconds(self) -> float:
        """Latest position at which decoding ends."""
        longest = self._clip.start_seconds + self._max_seconds
        return longest if self._clip.end_seconds is None else min(longest, self._clip.end_seconds)

    def _command(
        self, stream: str, point: SeekPoint = FROM_START, clock: str = CLOCK_FILTER
    ) -> list[str]:
        headerless = self._headerless
        of_file = (*self._lengths.options, *self._lengths.packets)
        options = headerless.options if headerless else of_file
        filters = (clock, _GATHER_FILTER) if self._gathers else (clock,)
        return _command(
            self._ffmpeg,
            self._path,
            stream,
            options=options,
            point=point,
            filters=filters,
            precision=self._precision,
        )

    def _clipped(self, reading: Sections, first: Content) -> Generator[Samples, None, None]:
        begin = round(self._clip.start_seconds * SAMPLE_RATE)
        end = self._clip.end_seconds
        beyond = sys.maxsize if end is None else round(end * SAMPLE_RATE)
        for block in self._decoded_blocks(reading, first):
            at = self._decoded
            self._decoded += len(block)
            kept = block[max(0, begin - at) : beyond - at]
            self._yielded += len(kept)
            if self._yielded > self._max_samples:
                raise AudioTooLong(self._max_seconds)
            if len(kept):
                yield kept
            if self._decoded >= beyond:
                return

    def _decoded_blocks(
        self, reading: Sections, content: Content
    ) -> Generator[Samples, None, None]:
        """All samples of the track, with silence for missing audio."""
        report = Report.read(reading.log_text())
        if begin_seconds := self._far_start(report):
            point = self._seek_point(reading, report, begin_seconds)
            # There is no output if the file declares more than it contains.
            content = self._seek(reading, point) or self._seek(reading, FROM_START)
        self._arrange(reading, report)
        # With channels to mix, reads as many samples per channel as of a single one.
        wide = 1 if self._separate else min(self._channels, _WIDEST_READ)
        size, rest = _FIRST_READ_BYTES, b""
        for number in itertools.count(1):
            if number > 1:
                content = self._read(reading, size * wide)
            places = reading.places(report.start_seconds)
            if reading.restarted and self._gathers:
                content = self._read_again(reading, reading.at - len(content))
                places = reading.places(report.start_seconds)
            self._timeline.add(places)
            self.sections = reading.count
            if not content:
                break
            samples, rest = self._samples(rest, content)
            yield from self._timeline.arranged(samples)
            if number > 1:
                size = min(2 * size, _READ_BYTES)
        yield from self._timeline.arranged(self._mixer.rest())
        yield from self._timeline.rest()

    def _far_start(self, report: Report) -> int:
        """Where to begin, a little before a clip that begins far in the recording; else 0.

        Raises `ClipOutside` for one that begins far after the end that the file declares.
        """
        start, declared = self._clip.start_seconds, report.declared_seconds
        if self._lengths.unknown or self._headerless or self._chosen is None:
            return 0
        if self._timeline.holes:
            return 0
        if declared is not None and start > _DECLARED_AT_MOST * declared + _SEEK_SECONDS:
            raise ClipOutside(start, declared)
        if start < _SEEK_SECONDS:
            return 0
        stream = self._chosen.stream
        if not report.enterable(stream) and not self._has_timestamps(report, stream):
            return 0
        # Of a clip after the end the end is decoded, which may lie elsewhere than is declared.
        ends = _NEARLY_ALL * (report.duration_seconds or sys.maxsize)
        return max(0, int(min(start, ends)) - _LEAD_SECONDS)

    def _has_timestamps(self, report: Report, stream: int) -> bool:
        """Whether a frame's timestamp is its place in the recording."""
        return report.seekable(stream) and not chained_ogg(self._path)

    def _seek_point(self, reading: Sections, report: Report, begin_seconds: int) -> SeekPoint:
        """Where to decode from; from the start, where the samples would not surely be the same."""
        assert self._chosen is not None
        if report.enterable(self._chosen.stream):
            return SeekPoint(begin_seconds, file_seconds=begin_seconds)
        head = reading.marks()
        while len(head) < 2 and self._read(reading, _FIRST_READ_BYTES):
            head += reading.marks()
        if not steady(head):
            return FROM_START
        places = Clock().places(head[:2], report.start_seconds)
        late_seconds = min(place.offset_seconds for place in places)  # as the timeline counts it
        seconds = begin_seconds - math.ceil(max(0.0, late_seconds))
        if late_seconds > _LATEST_SECONDS or seconds <= _LEAD_SECONDS:
            return FROM_START
        file_seconds = seconds + late_seconds - _LEAD_SECONDS
        point = SeekPoint(seconds, file_seconds, 0.0, late_seconds)
        frames = self._frames(point, head[0].seconds + seconds)
        for earlier in range(_LEAD_SECONDS):
            first_seconds = timestamp_of(
                (seconds - earlier) * head[0].rate,
                head,
                frames,
                rounded=report.rounds_timestamps,
                codec=self._chosen.codec,
            )
            if first_seconds is not None:
                return replace(point, seconds=seconds - earlier, first_seconds=first_seconds)
        return FROM_START

    def _frames(self, point: SeekPoint, until_seconds: float) -> list[Mark]:
        """The clock of each frame between two times, decoded for that alone."""
        command = self._command(self._stream, point, FRAME_FILTER)
        child = self._children.start(command)
        reading, frames = Sections(self._children, child, self._timeout_seconds), list[Mark]()
        while self._read(reading, _FIRST_READ_BYTES):
            frames += reading.marks()
            passed = frames and frames[-1].seconds > until_seconds + _LEAD_SECONDS
            if passed or (frames and frames[0].seconds < until_seconds - _MOST_LEAD_SECONDS):
                break
        self._children.end(child)
        # How many more there are depends on how far ffmpeg was ahead.
        return before(frames, until_seconds + _LEAD_SECONDS)

    def _seek(self, reading: Sections, point: SeekPoint) -> Content:
        """Read from another ffmpeg, which begins there; what it wrote first."""
        self._point = point
        child = self._children.start(self._command(self._stream, point))
        at = point.seconds * SAMPLE_RATE
        self._timeline.begin(at, point.late_seconds)
        self._decoded = at + self._timeline.inserted
        self.begin_seconds = self.seconds
        reading.restart(child, at * _SAMPLE_BYTES * self._channels, at)
        return self._read(reading, _FIRST_READ_BYTES)

    def _read_again(self, reading: Sections, at: int) -> Content:
        """Decode again up to this byte, without gathering frames; what comes then.

        Where the rate or the number of channels changes, ffmpeg discards the frames gathered.
        """
        self._gathers = False
        child = self._children.start(self._command(self._stream, self._point))
        first = self._point.seconds * SAMPLE_RATE
        reading.restart(child, first * _SAMPLE_BYTES * self._channels, first)
        while reading.at < at and self._read(reading, min(_READ_BYTES, at - reading.at)):
            pass
        return self._read(reading, _FIRST_READ_BYTES)

    @property
    def _stream(self) -> str:
        return "a:0" if self._chosen is None else str(self._chosen.stream)

    def _read(self, reading: Sections, size: int) -> Content:
        """Read the next bytes; the timeout covers time spent waiting here only."""
        started = time.monotonic()
        try:
            content = reading.read(size, self._left_seconds)
        except DecodingTooSlow as failure:
            raise DecodeTimeout(self._timeout_seconds) from failure
        self._left_seconds -= time.monotonic() - started
        return content

    def _samples(self, rest: bytes, content: Content) -> tuple[Samples, bytes]:
        """Convert all whole samples; returns them and the remaining bytes."""
        content = rest + content if rest else content
        whole = len(content) - len(content) % (_SAMPLE_BYTES * self._channels)
        samples: Samples = np.frombuffer(content[:whole], dtype="<f4")
        if self._channels > 1 or self._separate:
            samples = samples.reshape(-1, self._channels)
        samples = self._cleaner.clean(samples.astype(np.float32, copy=False))
        if self._separate:
            samples = self._crosstalk.removed(samples)
        elif self._channels > 1:
            samples = self._mixer.mix(samples)
        return samples, bytes(content[whole:])

    def _arrange(self, reading: Sections, report: Report) -> None:
        """Lower the priority of a long recording; decode it in sections if seeks are exact.

        Without the lower priority, a clip takes several times as long during a long recording.
        """
        ends = min(report.duration_seconds or 0.0, self._end_seconds)
        each = int(ends) // (_SECTIONS_PER_CORE * CORES.count)
        most = CORES.section_bytes // (_SECOND_BYTES * self._channels)
        each = max(self._section_seconds, min(each, most, _LONGEST_SECTION_SECONDS))
        bounds = range(each, int(ends) - each // 2, each)
        if not bounds:
            return
        reading.step_back()
        chosen = self._chosen
        if chosen is None or self._separate or self._lengths.unknown:
            return
        if report.divisible(chosen.stream):
            reading.divide(self._plan(bounds, str(chosen.stream)))

    def _plan(self, bounds: range, stream: str) -> Plan:
        """A plan with sections at these bounds."""
        second_bytes = _SECOND_BYTES * self._channels

        def command(begin: int) -> list[str]:
            begin_seconds = begin // second_bytes - _LEAD_SECONDS
            return self._command(stream, SeekPoint(begin_seconds, file_seconds=begin_seconds))

        return Plan(
            bounds=[bound * second_bytes for bound in bounds],
            section_bytes=bounds.step * second_bytes,
            overlap_bytes=_OVERLAP_SECONDS * second_bytes,
            command=command,
            skipped_bytes=_LEAD_SECONDS * second_bytes,
            sample_bytes=_SAMPLE_BYTES * self._channels,
        )

    def _judge(self, report: Report, status: int) -> None:
        """Translate ffmpeg's exit into errors and warnings."""
        self._children.check()
        if status == -signal.SIGKILL:
            raise DecoderKilled(self.seconds)
        if self._decoded == 0:
            raise clearer(report.refusal(status), report.text, self._path)
        if self._decoded <= self._clip.start_seconds * SAMPLE_RATE:
            raise ClipOutside(self._clip.start_seconds, self.seconds)
        self.warnings = tuple(self._notices(report, status))
        if self._on_damage == "refuse":
            self._refuse(report)

    def _notices(self, report: Report, status: int) -> Iterator[Notice]:
        if self._chosen is not None:
            self._timeline.damaged(report.corrupt_seconds(self._chosen.stream))
            yield from tracks.notices(self.tracks, self._chosen, self._track)
        yield from self._lengths.notices
        yield from self._cleaner.notices()
        missing = [each for each in self._timeline.notices() if self._concerns(each)]
        headers = report.undecodable_headers
        if headers and inner_headers(self._path) >= headers:
            missing = [each for each in missing if each.code != "audio_damaged"]
        cut = None if self._lengths.unknown else self._cut(report, status)
        cut = cut or ogg_cut(self._path, self.seconds)
        if cut is None:
            yield from missing
            return
        # The last packet is part of the cut.
        nearly = self.seconds - _LAST_PACKETS_SECONDS
        for notice in missing:
            if notice.code != "audio_damaged" or (notice.start_seconds or 0.0) < nearly:
                yield notice
        yield cut

    def _cut(self, report: Report, status: int) -> Notice | None:
        return report.cut(self.seconds, status, self._lengths.declared_seconds)

    def _concerns(self, notice: Notice) -> bool:
        """Whether it concerns the requested clip."""
        end = self._clip.end_seconds
        after = end is not None and (notice.start_seconds or 0.0) >= end
        return not after and (notice.end_seconds or sys.maxsize) >= self._clip.start_seconds

    def _refuse(self, report: Report) -> None:
        """Raise the first damage as an error."""
        for notice in self.warnings:
            if notice.code == "audio_cut":
                raise AudioTruncated(self.seconds, report.declared_seconds, notice.message)
            if notice.damage:
                raise AudioDamaged(notice.message, notice.start_seconds, notice.end_seconds)


def _command(
    ffmpeg: Path,
    path: Path,
    stream: str,
    *,
    options: Sequence[str],
    point: SeekPoint,
    filters: Sequence[str],
    precision: ResamplingPrecision,
) -> list[str]:
    return [
        str(ffmpeg),
        *("-nostdin", "-hide_banner", "-nostats", "-loglevel", "repeat+info"),
        *("-max_alloc", str(_MAX_ALLOCATION_BYTES), "-filter_threads", "1"),
        # With the container's timestamps as they are: otherwise some count from this stream's.
        "-copyts",
        *("-protocol_whitelist", "file", "-format_whitelist", demuxers.WHITELIST),
        *options,
        *point.input_options,
        # One thread decodes: several wait for each other longer than a frame takes.
        *("-threads", "1", "-i", f"file:{path}"),
        *("-map", f"0:{stream}", "-vn", "-sn", "-dn", "-map_metadata", "-1"),
        # Near silence, single precision produces denormal numbers, which take many processors 20
        # times as long unless the ffmpeg treats them as zero.
        *("-ar", str(SAMPLE_RATE), "-internal_sample_fmt", _SAMPLE_FORMATS[precision]),
        *("-af", ",".join((*point.filters, *filters))),
        # Write full buffers instead of single packets, which would be 14 writes for each.
        *("-f", "f32le", "-flush_packets", "0", "pipe:1"),
    ]
