"""The facts in what ffmpeg writes about one file."""

import re
from dataclasses import dataclass
from pathlib import Path

from parakeet_worker.audio import demuxers
from parakeet_worker.audio.tracks import AudioTrack
from parakeet_worker.errors import (
    AudioEmpty,
    AudioMissing,
    AudioUndecodable,
    ParakeetError,
    echo,
)
from parakeet_worker.notices import Notice

# Some containers round the declared duration, and encoders add or drop some samples.
_DECLARED_SLACK_SECONDS = 0.5
_KILOBITS_OF_CHANNEL = 512

# Decoding these gives the same samples from any start: positions are exact and the decoder's state
# spans one or two frames. Not AAC, whose noise substitution uses a generator, Opus, whose state
# decays without an end, and Matroska, whose timestamps are in milliseconds.
_EXACT_CONTAINER = re.compile(
    r"^Input #0, (?:wav|w64|aiff|caf|au|flac|mp3|ogg|mov,\S*), from ", re.MULTILINE
)
_EXACT_CODEC = re.compile(r"(?:pcm_\w+|flac|mp3|alac|vorbis)\b")
# The duration is the last timestamp, so that nothing is declared beyond the content.
_UNDECLARED_CONTAINER = re.compile(r"^Input #0, (?:ogg|mpegts|mpeg), from ", re.MULTILINE)
# The duration is the end time, counted from zero, wherever the audio starts.
_DECLARES_END = re.compile(r"^Input #0, (?:matroska,\S*|nut|asf), from ", re.MULTILINE)
_GAPLESS = re.compile(r"^Input #0, (?:wav|w64|aiff|caf|au|flac|mp3), from ", re.MULTILINE)
# ffmpeg seeks in these by an index or by bisection, and each frame has a timestamp. Matroska rounds
# it to milliseconds.
_SEEKABLE = re.compile(r"^Input #0, (matroska|ogg|mov),", re.MULTILINE)
# Decoders whose state spans a few frames, except for noise generators.
_SEEKABLE_CODEC = re.compile(r"(?:pcm_\w+|flac|alac|mp[23]|aac|e?ac3|opus|vorbis)\b")
# Of the first audio stream. Telephones have 8,000 Hz, instruments for bats 500,000, and a bit
# stream of DSD is shown as up to 2,822,400.
_RATE = re.compile(r"^  Stream #0:\d+.*: Audio: .*?, (\d+) Hz", re.MULTILINE)
_MIN_RATE, _MAX_RATE = 1000, 4_000_000
_STREAM = re.compile(
    r"^  Stream #0:(\d+)(?:\[\w+\])?(?:\((\w+)\))?: (\w+): (\S+)(.*)$", re.MULTILINE
)
_MANY_CHANNELS = re.compile(r", (\d{1,5}) channels\b")
_FLAGS = re.compile(r"\((default|comment|visual impaired)\)")
_DURATION = re.compile(
    r"^  Duration: (?:(\d+):(\d\d):(\d\d\.\d+)|N/A)(?:, start: (-?\d+\.\d+))?", re.MULTILINE
)
_OUTPUT = re.compile(r"^  Stream #0:0.*: Audio: pcm_f32le, .* (\d+) kb/s", re.MULTILINE)
_CUT = re.compile(
    r"partial file|File ended prematurely|Truncating packet|corrupt input packet|Packet corrupt"
)
# In a transport stream a packet may be corrupt anywhere, and its time is known.
_MPEG = re.compile(r"^Input #0, mpegts, from ", re.MULTILINE)
_CORRUPT = re.compile(r"Packet corrupt \(stream = (\d+), dts = (\d+)\)")
_MPEG_TICKS = 90_000
_UNDECODABLE = re.compile(r"Error while decoding|Error submitting packet")
BROKEN = re.compile(r"Error while decoding|Decoding error|Error submitting packet|Header missing")
_PREFIX = re.compile(r"^(\[[^\]]*\] ?)+")
_NOISE = re.compile(r"^\s|^(Input|Output|Stream mapping|Guessed|Press|size=|video:|To ignore)")


@dataclass(frozen=True, slots=True)
class Report:
    """Parsed log of ffmpeg about one file."""

    text: str
    start_seconds: float | None
    """The container's first timestamp."""
    duration_seconds: float | None
    """As ffmpeg shows it."""
    estimated: bool
    """Whether that is a guess from the first frames."""
    declared_seconds: float | None
    """Declared by the file, which has a single track."""
    tracks: tuple[AudioTrack, ...]
    last_error: str | None

    @classmethod
    def read(cls, text: str) -> "Report":
        """Parse the whole log, or its head."""
        head = text.partition("\nStream mapping:")[0].partition("\nOutput #0")[0]
        estimated = "Estimating duration from bitrate" in head
        match, duration, start = _DURATION.search(head), None, None
        if match is not None:
            hours, minutes, seconds, begin = match.groups()
            if hours is not None:
                duration = int(hours) * 3600 + int(minutes) * 60 + float(seconds)
            start = None if begin is None else float(begin)
        if duration is not None and start is not None and _DECLARES_END.search(head):
            duration = max(0.0, duration - start)
        streams = [each for each in _STREAM.finditer(head) if "(attached pic)" not in each[5]]
        # With several, the declared duration is that of the longest.
        undeclared = estimated or len(streams) != 1 or _UNDECLARED_CONTAINER.search(head)
        audio = [each for each in streams if each[3] == "Audio"]
        tracks = tuple(_track(number, each, text) for number, each in enumerate(audio, start=1))
        declared = None if undeclared else duration
        return cls(text, start, duration, estimated, declared, tracks, _last(text))

    @property
    def channels(self) -> int:
        """Of what ffmpeg writes."""
        rates = _OUTPUT.findall(self.text)
        return max(1, int(rates[-1]) // _KILOBITS_OF_CHANNEL) if rates else 1

    def divisible(self, stream: int) -> bool:
        """Whether ffmpeg may begin in the middle of it."""
        exact = _EXACT_CODEC.match(self.codec(stream)) is not None
        return exact and _EXACT_CONTAINER.search(self.text) is not None

    def enterable(self, stream: int) -> bool:
        """Whether a decoding from a time in it has the samples of one from the start: its samples
        follow each other without gaps, and each has its place."""
        return self.divisible(stream) and _GAPLESS.search(self.text) is not None

    def seekable(self, stream: int) -> bool:
        """Whether decoding may begin at a timestamp of a frame."""
        return (
            _SEEKABLE_CODEC.match(self.codec(stream)) is not None
            and _SEEKABLE.search(self.text) is not None
        )

    @property
    def rounds_timestamps(self) -> bool:
        """Whether a timestamp may be off by some samples."""
        container = _SEEKABLE.search(self.text)
        return container is not None and container[1] == "matroska"

    def codec(self, stream: int) -> str:
        """ffmpeg's name of it."""
        return next((track.codec for track in self.tracks if track.stream == stream), "")

    def check_rate(self) -> None:
        """Raise `AudioUndecodable` for a sample rate that no recording has."""
        rate = _RATE.search(self.text)
        if rate is not None and not _MIN_RATE <= int(rate[1]) <= _MAX_RATE:
            reason = f"its sample rate of {rate[1]} Hz is not from {_MIN_RATE} to {_MAX_RATE}"
            raise AudioUndecodable(reason)

    def refusal(self, status: int) -> ParakeetError:
        """Why not a single sample came."""
        if "matches no streams" in self.text:
            return AudioMissing()
        if status == 0 and not BROKEN.search(self.text):
            return AudioEmpty("the file holds no samples of audio")
        reason = self.last_error or f"it ended with status {status}"
        return AudioUndecodable(f"ffmpeg cannot read it as audio: {reason}")

    def corrupt_seconds(self, stream: int) -> list[float]:
        """Times of damaged packets of a stream, on the recording's clock."""
        if not _MPEG.search(self.text):
            return []
        ticks = [int(dts) for number, dts in _CORRUPT.findall(self.text) if int(number) == stream]
        return [max(0.0, dts / _MPEG_TICKS - (self.start_seconds or 0.0)) for dts in ticks]

    def cut(
        self, seconds: float, status: int, declared_seconds: float | None = None
    ) -> Notice | None:
        """Evidence that the file continues after the decoded part.

        `declared_seconds` is the length in the file's header, if ffmpeg does not report it.
        """
        missing = (declared_seconds or self.declared_seconds or 0.0) - seconds
        if missing > _DECLARED_SLACK_SECONDS:
            reason = f"the file ends {missing:.2f} s before its declared end"
        elif _CUT.search(self.text) and not _MPEG.search(self.text):
            reason = "the last part of the file is cut off"
        elif status != 0:
            reason = f"ffmpeg ended with status {status}: {self.last_error}"
        else:
            return None
        end_seconds = seconds + missing if missing > 0 else None
        return Notice("audio_cut", reason, seconds, end_seconds, damage=True)

    @property
    def undecodable_headers(self) -> int:
        """Number of undecodable packets that may be headers of appended files."""
        if "Input #0, mp3," in self.text:
            return self.text.count("Header missing")
        if "Input #0, ogg," in self.text:
            return len(_UNDECODABLE.findall(self.text))
        return 0


def _track(number: int, stream: re.Match[str], text: str) -> AudioTrack:
    codec = stream[4].strip(",")
    if f"Decoder (codec {codec}) not found" in text:
        codec = "unknown"
    flags = frozenset(_FLAGS.findall(stream[5]))
    many = _MANY_CHANNELS.search(stream[5])
    language = None if stream[2] == "und" else stream[2]
    return AudioTrack(
        number, int(stream[1]), codec, language, flags, int(many[1]) if many else None
    )


def _last(text: str) -> str | None:
    """The last error in the log, without its subject."""
    lines = [_PREFIX.sub("", line) for line in text.splitlines() if not _NOISE.match(line)]
    informative = demuxers.informative([line for line in lines if line.strip()])
    return None if informative is None else echo(informative.rpartition(": ")[2] or informative)


def clearer(refusal: ParakeetError, text: str, path: Path) -> ParakeetError:
    """The same error with a clear reason in place of ffmpeg's message, if known."""
    if isinstance(refusal, AudioUndecodable | AudioMissing | AudioEmpty):
        reason = demuxers.clear_reason(text, path)
        if reason is not None:
            return AudioUndecodable(reason)
    return refusal
