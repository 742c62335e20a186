"""Files of 16 kHz samples are read without ffmpeg, with the samples and errors of ffmpeg."""

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from parakeet_worker.audio.all_tracks import decoding
from parakeet_worker.audio.decoding import Decoding
from parakeet_worker.audio.demuxers import headerless
from parakeet_worker.audio.plain_samples import PlainDecoding, PlainSamples
from parakeet_worker.engine.base import Samples
from parakeet_worker.errors import AudioUndecodable, ParakeetError
from parakeet_worker.options import Channels
from parakeet_worker.request import Clip
from recordings import encode, noise, wav

SECONDS = 20.0
PCM = struct.pack("<HHIIHH", 1, 1, 16_000, 32_000, 2, 16)
NOISE = noise(SECONDS)
SAMPLES = (NOISE * 32767).astype("<i2").tobytes()


def chunk(name: bytes, content: bytes) -> bytes:
    return name + struct.pack("<I", len(content)) + content + bytes(len(content) % 2)


def riff(*chunks: bytes) -> bytes:
    content = b"WAVE" + b"".join(chunks)
    return b"RIFF" + struct.pack("<I", len(content)) + content


DATA = chunk(b"data", SAMPLES)
PLAIN = riff(chunk(b"fmt ", PCM), DATA)


def both(path: Path, ffmpeg: Path, **chosen: Any) -> tuple[PlainDecoding, Decoding]:
    """Without ffmpeg and with it."""
    options = {"max_seconds": 600.0, **chosen}
    layout = options.pop("headerless", None)
    plain = PlainSamples.of(path, layout)
    assert plain is not None
    others = {"timeout_seconds": 60, "headerless": layout}
    return PlainDecoding(plain, **options), Decoding(path, ffmpeg=ffmpeg, **options, **others)


def outcome(run: PlainDecoding | Decoding) -> tuple[Samples, object, float]:
    samples = np.concatenate([*run.blocks()])
    return samples, (run.warnings, run.origin), run.yielded_seconds


@pytest.mark.parametrize(
    "content",
    [
        PLAIN,
        riff(chunk(b"LIST", b"INFO"), chunk(b"fmt ", PCM + b"\0\0"), chunk(b"fact", b"1234"), DATA),
        riff(chunk(b"fmt ", PCM), DATA, chunk(b"LIST", b"INFOICMT")),
        PLAIN + b"\0",
    ],
    ids=["alone", "chunks before", "a chunk behind", "padded"],
)  # fmt: skip
@pytest.mark.parametrize("channels", ["mix", "separate"])
@pytest.mark.parametrize(
    "clip", [Clip(), Clip(3.21, 15.4), Clip(17.0, None), Clip(0.0, 500.0)], ids=str
)
def test_the_samples_are_those_of_ffmpeg(
    content: bytes, channels: Channels, clip: Clip, tmp_path: Path, ffmpeg: Path
) -> None:
    path = tmp_path / "plain.wav"
    path.write_bytes(content)
    (samples, facts, seconds), with_ffmpeg = [
        outcome(run) for run in both(path, ffmpeg, channels=channels, clip=clip)
    ]
    assert np.array_equal(samples, with_ffmpeg[0])
    assert samples.shape == with_ffmpeg[0].shape
    assert samples.dtype == np.float32
    assert (facts, seconds) == with_ffmpeg[1:]


def test_blocks_have_the_sizes_of_those_of_ffmpeg(tmp_path: Path, ffmpeg: Path) -> None:
    path = tmp_path / "long.wav"
    path.write_bytes(wav(noise(100.0)))
    plain, with_ffmpeg = ([*map(len, run.blocks())] for run in both(path, ffmpeg))
    assert plain == with_ffmpeg


def test_headerless_samples_are_those_of_ffmpeg(tmp_path: Path, ffmpeg: Path) -> None:
    path = tmp_path / "samples"
    path.write_bytes(SAMPLES)
    layout = headerless("s16le:16000")
    plain, with_ffmpeg = [outcome(run) for run in both(path, ffmpeg, headerless=layout)]
    assert np.array_equal(plain[0], with_ffmpeg[0])
    assert plain[1:] == with_ffmpeg[1:]


@pytest.mark.parametrize(
    "chosen",
    [
        {"clip": Clip(21.0, None)},
        {"clip": Clip(20.0, 30.0)},
        {"clip": Clip(3.0, 3.05)},
        {"clip": Clip(19.95, None)},
        {"max_seconds": 10.0},
        {"max_seconds": 10.0, "clip": Clip(5.0, 16.0)},
    ],
    ids=str,
)
def test_the_errors_are_those_of_ffmpeg(
    chosen: dict[str, Any], tmp_path: Path, ffmpeg: Path
) -> None:
    path = tmp_path / "plain.wav"
    path.write_bytes(PLAIN)
    errors = []
    for run in both(path, ffmpeg, **chosen):
        with pytest.raises(ParakeetError) as raised:
            list(run.blocks())
        errors.append((type(raised.value), str(raised.value)))
    assert errors[0] == errors[1]


@pytest.mark.parametrize(
    "content",
    [
        PLAIN[:-1],
        PLAIN[:-1000],
        PLAIN + bytes(1000),
        riff(chunk(b"fmt ", PCM), b"data" + bytes(4) + SAMPLES),
        riff(chunk(b"fmt ", PCM), b"data\xff\xff\xff\xff" + SAMPLES),
        riff(DATA, chunk(b"fmt ", PCM)),
        riff(chunk(b"fmt ", PCM), chunk(b"SMV0", bytes(16)), DATA),
        riff(chunk(b"fmt ", PCM), chunk(b"data", SAMPLES[:-1])),
        riff(chunk(b"fmt ", struct.pack("<HHIIHH", 1, 2, 16_000, 64_000, 4, 16)), DATA),
        riff(chunk(b"fmt ", struct.pack("<HHIIHH", 1, 1, 8_000, 16_000, 2, 16)), DATA),
        riff(chunk(b"fmt ", struct.pack("<HHIIHH", 1, 1, 16_000, 16_000, 1, 8)), DATA),
        riff(chunk(b"fmt ", struct.pack("<HHIIHH", 7, 1, 16_000, 32_000, 2, 16)), DATA),
        riff(chunk(b"fmt ", struct.pack("<HHIIHH", 1, 1, 16_000, 99, 2, 16)), DATA),
        riff(chunk(b"fmt ", PCM), chunk(b"data", b"")),
        PLAIN[:44] + bytes(212) + b"\x84" + PLAIN[257:],
        SAMPLES,
        b"RIFF",
        b"",
    ],
    ids=[
        "odd", "cut", "longer", "no length", "a placeholder", "format behind", "another chunk",
        "half a sample", "stereo", "8 kHz", "8 bits", "mu-law", "another byte rate", "empty data",
        "ACT", "no header", "no chunk", "empty",
    ],
)  # fmt: skip
def test_all_other_files_are_for_ffmpeg(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "other.wav"
    path.write_bytes(content)
    assert PlainSamples.of(path, None) is None


@pytest.mark.parametrize("layout", ["s16be:16000", "s16le:8000", "s16le:16000:2", "ulaw"])
def test_other_headerless_samples_are_for_ffmpeg(layout: str, tmp_path: Path) -> None:
    path = tmp_path / "samples"
    path.write_bytes(SAMPLES)
    assert PlainSamples.of(path, headerless(layout)) is None


def test_a_missing_file_is_for_ffmpeg_to_report(tmp_path: Path) -> None:
    assert PlainSamples.of(tmp_path / "none", headerless("s16le:16000")) is None


def test_a_hint_does_not_replace_a_header(tmp_path: Path) -> None:
    path = tmp_path / "plain.wav"
    path.write_bytes(PLAIN)
    assert PlainSamples.of(path, headerless("ulaw")) == PlainSamples(path, 44, len(NOISE))


def test_encoders_write_such_files(tmp_path: Path) -> None:
    for name, options in (("ffmpeg.wav", ()), ("exact.wav", ("-fflags", "+bitexact"))):
        path = tmp_path / name
        encode(path, "-ar", "16000", *options, samples=NOISE)
        plain = PlainSamples.of(path, None)
        assert plain is not None, name
        assert plain.count == len(NOISE)


@pytest.mark.parametrize(
    ("track", "kind"), [(None, PlainDecoding), (1, PlainDecoding), (2, Decoding), ("en", Decoding)]
)
def test_other_tracks_are_for_ffmpeg(
    track: int | str | None, kind: type, tmp_path: Path, ffmpeg: Path
) -> None:
    path = tmp_path / "plain.wav"
    path.write_bytes(PLAIN)
    run = decoding(path, track=track, ffmpeg=ffmpeg, max_seconds=600, timeout_seconds=60)
    assert type(run) is kind


def test_a_file_that_becomes_shorter_is_an_error_and_not_a_shorter_text(tmp_path: Path) -> None:
    path = tmp_path / "plain.wav"
    path.write_bytes(PLAIN)
    plain = PlainSamples.of(path, None)
    assert plain is not None
    blocks = PlainDecoding(plain, max_seconds=600).blocks()
    next(blocks)
    path.write_bytes(PLAIN[:-1000])
    with pytest.raises(AudioUndecodable, match="shorter"):
        list(blocks)


@pytest.mark.parametrize("stopping", [lambda _: None, PlainDecoding.stop], ids=["read", "stopped"])
def test_stop_ends_it_without_an_error(
    stopping: Callable[[PlainDecoding], None], tmp_path: Path
) -> None:
    path = tmp_path / "plain.wav"
    path.write_bytes(PLAIN)
    plain = PlainSamples.of(path, None)
    assert plain is not None
    run = PlainDecoding(plain, max_seconds=600)
    blocks = run.blocks()
    next(blocks)
    stopping(run)
    assert bool([*blocks]) is (stopping is not PlainDecoding.stop)
    assert run.yielded_seconds == (4.096 if stopping is PlainDecoding.stop else SECONDS)
