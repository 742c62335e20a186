"""Lengths that files declare are compared with what is there."""

import os
import struct
from pathlib import Path

import numpy as np
import pytest

from odd_recordings import ffmpeg as run_ffmpeg
from odd_recordings import riff
from parakeet_worker.audio.file_lengths import Lengths, inner_headers, lengths, ogg_cut
from recordings import RATE, cut, encode, tone

TONE = tone(440, 2.0)
BYTES = 2 * len(TONE)
PACKETS = ("-f", "wav", "-max_size", "8192")
IGNORED = ("-f", "wav", "-ignore_length", "1")


def of(path: Path, content: bytes) -> Lengths:
    path.write_bytes(content)
    return lengths(path)


def test_a_whole_wav_is_read_in_packets_of_a_quarter_of_a_second(tmp_path) -> None:
    assert of(tmp_path / "a.wav", riff(TONE)) == Lengths(packets=PACKETS)
    encode(tmp_path / "stereo.wav", "-ar", "44100", "-ac", "2", samples=TONE)
    assert lengths(tmp_path / "stereo.wav").packets == ("-f", "wav", "-max_size", "32768")


def test_compressed_audio_in_a_wav_is_read_as_before(tmp_path) -> None:
    encode(tmp_path / "a.wav", "-c:a", "adpcm_ms", samples=TONE)
    assert lengths(tmp_path / "a.wav") == Lengths()


def test_a_voice_recorders_file_with_the_header_of_a_wav_is_not_read_as_one(tmp_path) -> None:
    content = riff(TONE)[:44] + bytes(212) + b"\x84" + bytes(BYTES - 213)
    assert of(tmp_path / "a.act", content) == Lengths()


@pytest.mark.parametrize("declared", [0, 36])
def test_a_wav_that_declares_next_to_nothing_is_read_to_its_end(declared, tmp_path) -> None:
    result = of(tmp_path / "a.wav", riff(TONE, declared=declared))
    assert result == Lengths(IGNORED, PACKETS, unknown=True)


@pytest.mark.parametrize(
    "declared", [0x7FFFFFFF, 0x7FFFF000, 0x80000000, 2_000_000_000, 0xFFFFFFF0, 0xFFFFFFFF]
)
def test_a_placeholder_is_no_length(declared, tmp_path) -> None:
    assert of(tmp_path / "a.wav", riff(TONE, declared=declared)) == Lengths(
        packets=PACKETS, unknown=True
    )


def test_a_wav_that_is_cut_declares_how_long_it_was(tmp_path) -> None:
    result = of(tmp_path / "a.wav", riff(TONE)[: -BYTES // 2])
    assert result == Lengths(packets=PACKETS, declared_seconds=pytest.approx(2.0))


def test_a_wav_longer_than_declared_is_decoded_to_its_end_with_a_warning(tmp_path) -> None:
    result = of(tmp_path / "a.wav", riff(TONE, declared=BYTES // 2))
    (notice,) = result.notices
    assert (result.options, result.unknown) == (IGNORED, True)
    assert (notice.code, notice.start_seconds, notice.end_seconds) == ("length_wrong", 1.0, 2.0)


def test_two_wav_in_one_file_are_read_to_the_end(tmp_path) -> None:
    result = of(tmp_path / "a.wav", riff(TONE) * 2)
    assert result.options == IGNORED
    assert [notice.code for notice in result.notices] == ["length_wrong"]


@pytest.mark.parametrize("length", [7, 8, 4000])
def test_other_chunks_after_the_samples_are_no_samples(length, tmp_path) -> None:
    chunk = b"LIST" + struct.pack("<I", length) + bytes(length + length % 2)
    assert of(tmp_path / "a.wav", riff(TONE) + chunk * 2) == Lengths(packets=PACKETS)


def test_chunks_before_the_samples_are_passed_over(tmp_path) -> None:
    content = riff(TONE, declared=BYTES // 2)
    at = content.index(b"data")
    junk = b"JUNK" + struct.pack("<I", 5) + bytes(6)
    assert of(tmp_path / "a.wav", content[:at] + junk + content[at:]).options == IGNORED


@pytest.mark.parametrize("length", [0, 4, 11, 12, 20, 30, 44])
def test_a_header_that_is_cut_is_no_error(length, tmp_path) -> None:
    assert of(tmp_path / "a.wav", riff(TONE)[:length]).notices == ()


def test_random_bytes_after_a_header_are_no_error(tmp_path) -> None:
    random = np.random.default_rng(0)
    for head in (b"RIFF\0\0\0\0WAVE", b"\0\0\0\x18ftypM4A "):
        for _ in range(50):
            assert of(tmp_path / "a", head + random.bytes(400)).declared_seconds in {None, 0.0}


def test_a_second_m4a_behind_the_first_is_named(tmp_path) -> None:
    one = encode(tmp_path / "one.m4a", samples=TONE).read_bytes()
    assert of(tmp_path / "a.m4a", one) == Lengths()
    (notice,) = of(tmp_path / "b.m4a", one * 2).notices
    assert (notice.code, notice.damage) == ("audio_unread", True)
    assert str(len(one)) in notice.message


def test_a_fragmented_mp4_is_one_file(tmp_path) -> None:
    path = encode(tmp_path / "a.mp4", "-movflags", "frag_every_frame+empty_moov", samples=TONE)
    assert lengths(path) == Lengths()


def test_of_a_pipe_nothing_is_read(tmp_path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    assert lengths(pipe) == Lengths()
    assert ogg_cut(pipe, 1.0) is None
    assert inner_headers(pipe) == 0


@pytest.mark.parametrize("codec", ["libopus", "libvorbis", "flac"])
def test_an_ogg_without_its_last_page_is_cut(codec, tmp_path) -> None:
    whole = encode(tmp_path / "whole.ogg", "-c:a", codec, samples=TONE)
    assert ogg_cut(whole, 2.0) is None
    notice = ogg_cut(cut(whole, tmp_path / "cut.ogg"), 1.2)
    assert notice is not None
    assert (notice.code, notice.start_seconds, notice.damage) == ("audio_cut", 1.2, True)
    assert ogg_cut(cut(whole, tmp_path / "nearly.ogg", 0.999), 2.0) is not None


def test_chained_ogg_is_cut_only_if_its_last_part_is(tmp_path) -> None:
    one = encode(tmp_path / "one.ogg", "-c:a", "libopus", samples=TONE).read_bytes()
    chained = tmp_path / "chained.ogg"
    chained.write_bytes(one * 3)
    assert ogg_cut(chained, 6.0) is None
    chained.write_bytes(one * 2 + one[: len(one) // 2])
    assert ogg_cut(chained, 5.0) is not None


def test_the_headers_of_appended_files_are_counted(tmp_path) -> None:
    tagged = encode(tmp_path / "a.mp3", "-id3v2_version", "3", samples=TONE)
    assert inner_headers(tagged) == 0
    joined = tmp_path / "joined.mp3"
    joined.write_bytes(tagged.read_bytes() * 4)
    assert inner_headers(joined) == 3
    joined.write_bytes(tagged.read_bytes() + b"ID3 in a text, ID3\xff\xff\xff\xff\xff\xff\xff")
    assert inner_headers(joined) == 0


def test_the_headers_of_chained_ogg_are_counted_not_those_of_streams_side_by_side(tmp_path) -> None:
    one = encode(tmp_path / "one.ogg", "-c:a", "libopus", samples=TONE)
    assert inner_headers(one) == 0
    chained = tmp_path / "chained.ogg"
    chained.write_bytes(one.read_bytes() * 3)
    assert inner_headers(chained) == 4  # a head and tags each
    other = tmp_path / "other.ogg"
    run_ffmpeg("-i", one, "-i", one, "-map", "0", "-map", "1", "-c", "copy", other)
    assert inner_headers(other) <= 1


def test_a_length_is_in_seconds_of_the_files_own_rate(tmp_path) -> None:
    content = bytearray(riff(TONE, declared=BYTES // 2))
    at = content.index(b"fmt ") + 8
    struct.pack_into("<II", content, at + 4, RATE // 2, RATE)
    (notice,) = of(tmp_path / "a.wav", bytes(content)).notices
    assert (notice.start_seconds, notice.end_seconds) == (2.0, 4.0)
