"""Recordings of kinds that are sent in practice, made from one sample, with the expected result.

Each `Case` is one row of docs/recordings.md.
"""

import struct
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import imageio_ffmpeg
import numpy as np

from parakeet_worker.engine.base import Samples
from recordings import RATE, encode
from speech import sample

SPEECH = sample("en").path
SECONDS = sample("en").seconds
_PAUSE_SECONDS = 1.7
"""A place between two words of the sample."""
_OGG_HEADER_PAGES = 2
_TS_PACKET_BYTES = 188
_TS_AUDIO = 0x100
Make = Callable[[Path, Samples], None]


@dataclass(frozen=True, slots=True)
class Case:
    """One kind of recording."""

    make: Make
    done: str
    """The result, for the documentation."""
    late_from: float = 0.0
    """Words of the sample from this time on are delayed by `late_seconds`."""
    late_seconds: float = 0.0
    codes: tuple[str, ...] = ()
    """The warnings that the answer has."""
    lost: tuple[float, float] | None = None
    """Words that touch this part of the sample, in seconds, are not expected."""


def ffmpeg(*options: object) -> None:
    program = imageio_ffmpeg.get_ffmpeg_exe()
    command = [program, "-hide_banner", "-loglevel", "error", "-y", *map(str, options)]
    subprocess.run(command, check=True)


def riff(samples: Samples, *, declared: int | None = None, tag: int = 1) -> bytes:
    """(N, channels) as a WAV file whose `data` chunk declares that many bytes."""
    columns = samples.reshape(len(samples), -1)
    kind = "<i2" if tag == 1 else "<f4"
    scaled = np.round(columns * 32767) if tag == 1 else columns
    body, count, width = scaled.astype(kind).tobytes(), columns.shape[1], int(kind[-1])
    size = len(body) if declared is None else declared
    head = struct.pack("<HHIIHH", tag, count, RATE, RATE * count * width, count * width, 8 * width)
    parts = b"WAVE" + b"fmt " + struct.pack("<I", len(head)) + head
    return (
        b"RIFF"
        + struct.pack("<I", min(size + 36, 2**32 - 1))
        + parts
        + b"data"
        + struct.pack("<I", size)
        + body
    )


def late(seconds: float, *codecs: str) -> Make:
    def make(path: Path, _: Samples) -> None:
        picture = ("-f", "lavfi", "-i", "color=black:s=64x64:r=10:d=12")
        ffmpeg(
            *picture,
            "-itsoffset",
            seconds,
            "-i",
            SPEECH,
            "-map",
            "0:v",
            "-map",
            "1:a",
            *codecs,
            path,
        )

    return make


def hole(at: float, seconds: float, *codecs: str) -> Make:
    def make(path: Path, _: Samples) -> None:
        whole = path.with_name(f"whole-{path.name}")
        ffmpeg("-i", SPEECH, "-ar", "48000", *codecs, whole)
        later = f"setts=ts='if(gte(TS*TB,{at}),TS+{seconds}/TB,TS)'"
        ffmpeg("-i", whole, "-c", "copy", "-bsf:a", later, path)

    return make


def placeholder(declared: int) -> Make:
    return lambda path, samples: void(path.write_bytes(riff(samples, declared=declared)))


def void(_: object) -> None:
    """Discard a return value."""


def voice(at: int, of: int) -> Make:
    def make(path: Path, samples: Samples) -> None:
        columns = np.zeros((len(samples), of), dtype=np.float32)
        columns[:, at] = samples
        path.write_bytes(riff(columns))

    return make


def inverted(path: Path, samples: Samples) -> None:
    path.write_bytes(riff(np.stack([samples, -samples], axis=1)))


def spoiled(value: float) -> Make:
    def make(path: Path, samples: Samples) -> None:
        wrong = samples.copy()
        wrong[3 * RATE] = value
        path.write_bytes(riff(wrong, tag=3))

    return make


def two_tracks(path: Path, _: Samples) -> None:
    silent = ("-f", "lavfi", "-i", "anullsrc=r=48000:cl=mono:d=6")
    flags = ("-disposition:a:0", "0", "-disposition:a:1", "default")
    ffmpeg(*silent, "-i", SPEECH, "-map", "0", "-map", "1", "-c:a", "libopus", *flags, path)


def subtitled(path: Path, _: Samples) -> None:
    text = path.with_suffix(".srt")
    text.write_text("1\n00:00:09,000 --> 00:00:12,000\nend\n")
    ffmpeg(
        "-i", SPEECH, "-i", text, "-map", "0", "-map", "1", "-c:a", "aac", "-c:s", "mov_text", path
    )


def joined(path: Path, samples: Samples) -> None:
    one = encode(path.with_name(f"one-{path.name}"), "-id3v2_version", "3", samples=samples)
    silence = np.zeros(2 * RATE, dtype=np.float32)
    quiet = encode(path.with_name(f"two-{path.name}"), samples=silence)
    path.write_bytes(one.read_bytes() + quiet.read_bytes())


def chained(path: Path, samples: Samples) -> None:
    codec = ("-c:a", "libopus")
    one = encode(path.with_name(f"one-{path.name}"), *codec, samples=samples)
    quiet = np.zeros(RATE, dtype=np.float32)
    two = encode(path.with_name(f"two-{path.name}"), *codec, samples=quiet)
    path.write_bytes(one.read_bytes() + two.read_bytes())


def cut_end(path: Path, samples: Samples) -> None:
    quiet = np.concatenate((samples, np.zeros(2 * RATE, dtype=np.float32)))
    content = riff(quiet)
    path.write_bytes(content[: -RATE * 2])


def lossy(one_of: int) -> Make:
    def make(path: Path, _: Samples) -> None:
        whole = path.with_name(f"whole-{path.name}")
        ffmpeg("-i", SPEECH, "-c:a", "libopus", whole)
        dropped = rf"noise=drop='not(mod(n\,{one_of}))*gt(n\,0)'"
        ffmpeg("-i", whole, "-c", "copy", "-bsf:a", dropped, path)

    return make


def torn(block_starts: bool) -> Make:
    """Without one packet of audio in the pause: the first of its block, or another one."""

    def make(path: Path, _: Samples) -> None:
        whole = path.with_name(f"whole-{path.name}")
        ffmpeg("-i", SPEECH, "-c:a", "aac", whole)
        content = whole.read_bytes()
        starts = range(0, len(content), _TS_PACKET_BYTES)
        packets = [content[start : start + _TS_PACKET_BYTES] for start in starts]
        first = round(len(packets) * _PAUSE_SECONDS / SECONDS)
        at = first + [starts_block(packet) for packet in packets[first:]].index(True)
        at += 0 if block_starts else 1
        path.write_bytes(b"".join(packets[:at] + packets[at + 1 :]))

    return make


def starts_block(packet: bytes) -> bool:
    """Whether a packet of a transport stream with one track is the first of a block of audio."""
    track = int.from_bytes(packet[1:3], "big") & 0x1FFF
    return track == _TS_AUDIO and bool(packet[1] & 0x40)


def ogg_pages(path: Path) -> list[bytes]:
    """The sample in Opus, in pages of 0.2 s."""
    whole = path.with_name(f"whole-{path.name}")
    ffmpeg("-i", SPEECH, "-c:a", "libopus", "-page_duration", 200_000, whole)
    return [b"OggS" + page for page in whole.read_bytes().split(b"OggS")[1:]]


def lost_page(path: Path, _: Samples) -> None:
    pages = ogg_pages(path)
    at = _OGG_HEADER_PAGES + int(_PAUSE_SECONDS / 0.2)
    path.write_bytes(b"".join(pages[:at] + pages[at + 1 :]))


def half(path: Path, _: Samples) -> None:
    content = b"".join(ogg_pages(path))
    path.write_bytes(content[: len(content) // 2])


def zeroed(path: Path, samples: Samples) -> None:
    content = bytearray(encode(path.with_name(f"whole-{path.name}"), samples=samples).read_bytes())
    at = round(len(content) * _PAUSE_SECONDS / SECONDS)
    content[at : at + 1000] = bytes(1000)
    path.write_bytes(content)


def two_lengths(path: Path, _: Samples) -> None:
    ffmpeg("-i", SPEECH, "-i", sample("de").path, "-map", "0", "-map", "1", "-c:a", "aac", path)


def second(path: Path, _: Samples) -> None:
    silent = ("-f", "lavfi", "-i", "anullsrc=r=48000:cl=mono:d=6")
    ffmpeg(*silent, "-i", SPEECH, "-map", "0", "-map", "1", "-c:a", "libopus", path)


def inverted_mp3(path: Path, samples: Samples) -> None:
    encode(path, "-b:a", "128k", samples=np.stack([samples, -samples], axis=1), channels=2)


def click(path: Path, samples: Samples) -> None:
    """50 dB down, after a click of 2.5 ms."""
    quiet = samples * np.float32(10 ** (-50 / 20))
    quiet[1600:1640] = 0.5 * (-1.0) ** np.arange(40)
    path.write_bytes(riff(quiet, tag=3))


CASES: Mapping[str, Case] = {
    "late.mkv": Case(
        late(4.9, "-c:v", "mpeg4", "-c:a", "libopus"),
        "audio that starts after the picture: words have the times of a player",
        late_seconds=4.9,
    ),
    "late.mp4": Case(
        late(4.9, "-c:v", "mpeg4", "-c:a", "aac"), "the same in MP4", late_seconds=4.9
    ),
    "late.ts": Case(
        late(4.9, "-c:v", "mpeg2video", "-c:a", "aac"), "the same in MPEG-TS", late_seconds=4.9
    ),
    "late.webm": Case(
        late(4.9, "-c:v", "libvpx", "-c:a", "libopus"), "the same in WebM", late_seconds=4.9
    ),
    "late.mka": Case(
        lambda path, _: ffmpeg("-itsoffset", 3, "-i", SPEECH, "-c:a", "libopus", path),
        "audio only, first timestamp 3 s: times count from there",
    ),
    "first-time.ogg": Case(
        lambda path, _: ffmpeg("-itsoffset", 0.86, "-i", SPEECH, "-c:a", "libopus", path),
        "audio only, first timestamp not zero: times count from there",
    ),
    "hole.mka": Case(
        hole(2.0, 5.0, "-c:a", "libopus"),
        "missing packets: replaced by silence of that length",
        late_from=2.0,
        late_seconds=5.0,
        codes=("audio_gap",),
    ),
    "hole.m4a": Case(
        hole(2.0, 5.0, "-c:a", "aac"),
        "the same in M4A",
        late_from=2.0,
        late_seconds=5.0,
        codes=("audio_gap",),
    ),
    "hole.flv": Case(
        hole(2.0, 5.0, "-ar", "44100", "-c:a", "aac"),
        "the same in FLV",
        late_from=2.0,
        late_seconds=5.0,
        codes=("audio_gap",),
    ),
    "lossy-250.webm": Case(lossy(250), "one of 250 packets is lost: no warning, times are correct"),
    "lossy-50.webm": Case(
        lossy(50), "one of 50 packets is lost: times are correct", codes=("audio_gap", "audio_gap")
    ),
    "torn.ts": Case(
        torn(block_starts=True),
        "a packet of a transport stream is lost, the first of its block: replaced by silence",
        codes=("audio_gap",),
    ),
    "damaged.ts": Case(
        torn(block_starts=False),
        "another packet of a block is lost: times are correct",
        codes=("audio_damaged",),
    ),
    "page.ogg": Case(lost_page, "an Ogg page is lost: replaced by silence", codes=("audio_gap",)),
    "half.ogg": Case(
        half,
        "half of an upload: the existing part is transcribed",
        codes=("audio_cut",),
        lost=(2.5, 9.0),
    ),
    "zeroed.flac": Case(
        zeroed, "1,000 bytes of a FLAC are zero: replaced by silence", codes=("audio_gap",)
    ),
    **{
        f"declared-{size:x}.wav": Case(
            placeholder(size), f"a streamed WAV that declares {size} bytes: transcribed to its end"
        )
        for size in (0, 36, 0x7FFFFFFF, 0x7FFFF000, 0x80000000, 2_000_000_000, 0xFFFFFFF0)
    },
    "declared-short.wav": Case(
        placeholder(2 * RATE),
        "a WAV that continues after its declared length: transcribed to its end",
        codes=("length_wrong",),
    ),
    "cut.wav": Case(
        cut_end,
        "a file that ends before its declared end: the existing part is transcribed",
        codes=("audio_cut",),
    ),
    "subtitled.mp4": Case(subtitled, "subtitles that end after the audio: no warning"),
    "joined.mp3": Case(joined, "two MP3 files in one: both are transcribed, no warning"),
    "two.m4a": Case(
        two_lengths,
        "two tracks of different length: the first is transcribed to its end",
        codes=("several_tracks",),
    ),
    "second.mkv": Case(
        second,
        "two tracks without flags, the first silent: the first is transcribed",
        codes=("several_tracks",),
        lost=(0.0, 9.0),
    ),
    "chained.ogg": Case(chained, "several Ogg files in one: all are transcribed, no warning"),
    "second-default.mkv": Case(
        two_tracks,
        "several audio tracks: the one flagged as default is transcribed",
        codes=("several_tracks",),
    ),
    "inverted.wav": Case(inverted, "a right channel that is the inverted left one: inverted again"),
    "inverted.mp3": Case(inverted_mp3, "the same in MP3"),
    **{
        f"voice-{at}-of-{of}.wav": Case(
            voice(at, of), f"{of} channels with a voice on one of them: that voice is transcribed"
        )
        for at, of in ((2, 3), (3, 6), (0, 10), (5, 12), (15, 16), (30, 32), (63, 64))
    },
    "nan.wav": Case(
        spoiled(float("nan")),
        "a sample that is not a number: replaced by silence",
        codes=("samples_invalid",),
    ),
    "inf.wav": Case(
        spoiled(float("inf")), "an infinite sample: replaced by silence", codes=("samples_invalid",)
    ),
    "click.wav": Case(click, "speech at -50 dB after a loud click: raised as without the click"),
    "huge.wav": Case(
        spoiled(1e30), "a sample of 1e30: replaced by silence", codes=("samples_invalid",)
    ),
}
