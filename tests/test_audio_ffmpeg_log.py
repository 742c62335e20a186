"""What ffmpeg writes is divided into marks, errors and the text that is kept of the rest."""

import math
import os
import subprocess
from itertools import pairwise
from pathlib import Path

import pytest

from odd_recordings import ffmpeg as run_ffmpeg
from parakeet_worker.audio.ffmpeg_log import CLOCK_FILTER, DecodeError, Log, Mark
from recordings import encode, tone

MARK = b"48000.000000\n1.007000\n48000.000000\n"


def read(content: bytes, piece_bytes: int = 1 << 20) -> Log:
    log = Log()
    for first in range(0, len(content), piece_bytes):
        log.feed(content[first : first + piece_bytes])
    return log


@pytest.mark.parametrize("piece_bytes", [1, 2, 7, 1 << 20])
def test_marks_errors_and_text_are_separated_for_any_division_of_the_output(piece_bytes) -> None:
    content = (
        b"Input #0, ogg, from 'x':\n" + MARK + b"[opus @ 0x1] Error parsing\n"
        b"[dec:opus @ 0x2] Error submitting packet to decoder: Invalid data\n" + MARK
    )
    log = read(content, piece_bytes)
    mark = Mark(48_000, 1.007, 48_000)
    assert log.take() == [mark, DecodeError("Error submitting packet"), mark]
    assert log.take() == []
    text = "Input #0, ogg, from 'x':\n[opus @ 0x1] Error parsing\n"
    assert (
        log.text() == f"{text}[dec:opus @ 0x2] Error submitting packet to decoder: Invalid data\n"
    )


def test_numbers_in_other_lines_are_no_marks() -> None:
    content = b"size= 12.000000\n 12.000000\n12.5\n12\n-0.000000\r\n"
    log = read(content)
    assert (log.take(), log.text()) == ([], "size= 12.000000\n 12.000000\n12.5\n12\n")


def test_a_timestamp_that_is_unknown_is_a_mark_still() -> None:
    (mark,) = read(b"0.000000\nnan\n16000.000000\n").take()
    assert isinstance(mark, Mark)
    assert math.isnan(mark.seconds)
    assert read(b"0.000000\n0.000000\n0.000000\n").take() == []  # a rate of 0


@pytest.mark.parametrize(
    "line",
    [
        b"Error while decoding stream #0:0: Invalid data",
        b"[aist#0:0] Decoding error: Invalid data",
        b"[mp3float @ 0x1] Header missing",
        b"corrupt decoded frame in stream 0",
    ],
)
def test_decode_errors_of_every_version_are_recognised(line) -> None:
    (error,) = read(line + b"\n").take()
    assert error.text in line.decode()


def test_a_file_broken_throughout_has_one_error_per_mark() -> None:
    log = read((b"Header missing\n" * 1000 + MARK) * 3)
    assert [type(event) for event in log.take()] == [DecodeError, Mark] * 3


def test_of_a_long_text_the_head_and_the_tail_are_kept() -> None:
    lines = [f"line {number}\n".encode() for number in range(100_000)]
    text = read(b"".join(lines), 10_000).text()
    assert text.startswith("line 0\nline 1\n")
    assert text.endswith("line 99998\nline 99999\n")
    assert len(text) <= 1 << 16


def test_a_line_without_an_end_is_not_kept_whole() -> None:
    assert len(read(b"x" * 10_000_000, 1 << 16).text()) <= 1 << 17


def test_log_lines_of_frames_after_a_reset_are_dropped() -> None:
    noise = b"[f32le @ 0x1] Application provided invalid, non monotonically increasing dts to muxer"
    assert read(b"first\n" + (noise + b"\n") * 10_000 + b"last\n").text() == "first\nlast\n"


def marks(path: Path, ffmpeg: Path) -> list[Mark]:
    quiet = ("-nostdin", "-nostats", "-loglevel", "repeat+info", "-copyts")
    command = [ffmpeg, *quiet, "-i", path, "-af", CLOCK_FILTER, "-f", "f32le", "-y", os.devnull]
    ran = subprocess.run(command, capture_output=True, check=True)
    return [event for event in read(ran.stderr).take() if isinstance(event, Mark)]


def test_the_filter_marks_every_second_and_both_sides_of_a_jump(tmp_path, ffmpeg) -> None:
    samples = tone(440, 5.0, rate=48_000)
    whole = encode(tmp_path / "whole.mka", "-c:a", "libopus", samples=samples, rate=48_000)
    assert 5 <= len(marks(whole, ffmpeg)) <= 8
    holed = tmp_path / "holed.mka"
    later = "setts=ts='if(gte(TS*TB,2.0),TS+7/TB,TS)'"
    run_ffmpeg("-i", whole, "-c", "copy", "-bsf:a", later, holed)
    ahead = [mark.seconds - mark.samples / mark.rate for mark in marks(holed, ffmpeg)]
    jumps = [after - before for before, after in pairwise(ahead)]
    assert max(jumps) == pytest.approx(7.0, abs=0.05)
    first = jumps.index(max(jumps)) + 1
    near = marks(holed, ffmpeg)[first : first + 2]
    assert (near[1].samples - near[0].samples) / near[0].rate <= 0.03
