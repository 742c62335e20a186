"""Zeroed bytes in files without timestamps: the clean recording's times, and what is missing."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from odd_recordings import ffmpeg as run_ffmpeg
from parakeet_worker.audio.decoding import Decoding, find_ffmpeg
from parakeet_worker.audio.holes import holes
from parakeet_worker.engine.base import Samples
from parakeet_worker.notices import Notice
from recordings import RATE, encode

SECONDS = 16
_MOST_LATE_SECONDS = 0.1
FORMATS = {
    "constant.mp3": ("-ar", "44100", "-b:a", "64k"),
    "variable.mp3": ("-q:a", "5"),
    "without-length.mp3": ("-write_xing", "0", "-b:a", "32k"),
    "mp3.avi": ("-ar", "44100", "-c:a", "libmp3lame"),
    "pcm.avi": ("-c:a", "pcm_s16le"),
}


def sound() -> Samples:
    """Noise of varying level: every second of it is recognizable."""
    rng = np.random.default_rng(3)
    at = np.arange(SECONDS * RATE) / RATE
    return (0.1 * (1.2 + np.sin(3 * at)) * rng.standard_normal(len(at))).astype(np.float32)


Decoded = tuple[Samples, tuple[Notice, ...]]


@pytest.fixture(scope="module")
def originals(clean: dict[str, Path]) -> dict[str, Samples]:
    return {name: decoded(path)[0] for name, path in clean.items()}


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("clean")
    paths = {
        name: encode(folder / name, *options, samples=sound()) for name, options in FORMATS.items()
    }
    with_picture = folder / "picture.avi"
    picture = ("-f", "lavfi", "-i", f"testsrc=s=64x64:r=10:d={SECONDS}")
    run_ffmpeg(*picture, "-i", paths["pcm.avi"], "-c:v", "mpeg4", "-c:a", "copy", with_picture)
    return {**paths, "picture.avi": with_picture}


def decoded(path: Path) -> Decoded:
    decoding = Decoding(path, ffmpeg=find_ffmpeg(), max_seconds=1e5, timeout_seconds=60)
    return np.concatenate(list(decoding.blocks())), decoding.warnings


def late_seconds(samples: Samples, original: Samples, second: int) -> float:
    """How much later that second of the original is in the samples."""
    part, margin = original[second * RATE : (second + 1) * RATE], RATE // 2
    around = samples[second * RATE - margin : (second + 1) * RATE + margin]
    size = 4 * RATE
    spectrum = np.fft.rfft(around, size) * np.conj(np.fft.rfft(part, size))
    return (int(np.argmax(np.fft.irfft(spectrum, size)[: 2 * margin])) - margin) / RATE


@settings(max_examples=6)
@given(
    zeroed=st.lists(
        st.tuples(st.floats(0.1, 0.7), st.floats(2.0, 4.3).map(lambda power: int(10**power))),
        min_size=1,
        max_size=3,
    )
)
@pytest.mark.parametrize("name", [*FORMATS, "picture.avi"])
def test_zeroed_bytes_are_silence_of_their_length_and_named(clean, originals, name, zeroed):
    content = bytearray(clean[name].read_bytes())
    for share, count in zeroed:
        at = round(share * len(content))
        content[at : at + count] = bytes(min(count, len(content) * 9 // 10 - at))
    damaged = clean[name].with_name(f"damaged-{name}")
    damaged.write_bytes(content)
    samples, warnings = decoded(damaged)
    assert {notice.code for notice in warnings} <= {"audio_gap", "audio_damaged"}
    named = [(notice.start_seconds or 0.0, notice.end_seconds or 0.0) for notice in warnings]
    compared = 0
    for second in range(1, SECONDS - 1):
        if all(end + 0.2 < second or second + 1 < start - 0.2 for start, end in named):
            compared += 1
            assert abs(late_seconds(samples, originals[name], second)) <= _MOST_LATE_SECONDS
    assert compared >= 2
    for start, end in named:
        inside = samples[round((start + 0.3) * RATE) : round((end - 0.3) * RATE)]
        assert len(inside) < RATE or not inside.all()


def test_a_whole_file_has_no_hole(clean: dict[str, Path]) -> None:
    for path in clean.values():
        assert holes(path, 1 if path.name == "picture.avi" else 0, 1e5) == ()


def test_tags_between_files_are_no_hole(clean: dict[str, Path], tmp_path: Path) -> None:
    whole = clean["constant.mp3"].read_bytes()
    path = tmp_path / "joined.mp3"
    old_tag = b"TAG" + bytes(125)
    new_tag = b"ID3\x04\0\0\0\0\x10\0" + bytes(2048)
    path.write_bytes(whole + old_tag + new_tag + whole)
    assert holes(path, 0, 1e5) == ()


def test_one_hole_is_measured_to_the_frame(
    clean: dict[str, Path], originals: dict[str, Samples], tmp_path: Path
) -> None:
    for name in ("constant.mp3", "variable.mp3"):
        content = bytearray(clean[name].read_bytes())
        third = len(content) // 3
        content[third : 2 * third] = bytes(third)
        path = tmp_path / name
        path.write_bytes(content)
        (hole,) = holes(path, 0, 1e5)
        assert hole.at_seconds == pytest.approx(SECONDS / 3, abs=1)
        samples, _ = decoded(path)
        assert len(samples) == pytest.approx(len(originals[name]), abs=0.06 * RATE)


def test_a_header_without_a_frame_behind_a_run_of_frames_ends(tmp_path: Path) -> None:
    frame = b"\xff\xfb\x10\0" + bytes(100)
    reserved_rate = b"\xff\xfb\x1c\0"  # has the pattern of a header
    path = tmp_path / "odd.mp3"
    path.write_bytes(frame * 5 + reserved_rate + bytes(500) + frame * 5)
    assert len(holes(path, 0, 60.0)) == 1


@pytest.mark.parametrize("name", ["constant.mp3", "pcm.avi"])
def test_any_bytes_are_survived(clean: dict[str, Path], tmp_path: Path, name: str) -> None:
    rng = np.random.default_rng(1)
    content = clean[name].read_bytes()
    for number in range(40):
        changed = bytearray(content[: int(rng.integers(20, len(content)))])
        for at in rng.integers(0, min(len(changed), 2000), 30):
            changed[at] = rng.integers(256)
        path = tmp_path / f"{number}"
        path.write_bytes(changed + bytes(64))
        for hole in holes(path, 0, 100.0):
            assert hole.at_seconds >= 0
            assert hole.seconds > 0
