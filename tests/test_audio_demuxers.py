"""What ffmpeg may read and what it may not, headerless formats, and reasons in clear words."""

import os
import re
import subprocess
from base64 import b64encode
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from parakeet_worker import answers
from parakeet_worker.audio import demuxers
from parakeet_worker.audio.decoding import Decoding
from parakeet_worker.audio.demuxers import Headerless, headerless
from parakeet_worker.errors import AudioUndecodable, InvalidRequest, ParakeetError
from parakeet_worker.request import Request
from parakeet_worker.settings import Settings
from parakeet_worker.wire.native import parse
from parakeet_worker.worker import open_pipeline
from recordings import encode, pitch, tone, wav

GROUPS = {
    "allowed": demuxers.ALLOWED,
    "opens others": demuxers.OPENS_OTHERS,
    "devices": demuxers.DEVICES,
    "without audio": demuxers.WITHOUT_AUDIO,
    "synthesised": demuxers.SYNTHESISED,
}
TONE = tone(440, 2.0)


def known_demuxers(ffmpeg: Path) -> set[str]:
    listed = subprocess.run(
        [str(ffmpeg), "-hide_banner", "-demuxers"], capture_output=True, text=True, check=True
    ).stdout
    result = re.findall(r"^ ?D ?[d ]? +(\S+)", listed.partition("--\n")[2], re.MULTILINE)
    assert len(result) > 100
    return set(result) - {"="}


async def samples_of(path: Path, ffmpeg: Path, message: str | None = None) -> np.ndarray:
    run = Decoding(
        path, ffmpeg=ffmpeg, max_seconds=100.0, timeout_seconds=60.0, headerless=headerless(message)
    )
    return np.concatenate([block async for block in run.samples()])


async def refusal(path: Path, ffmpeg: Path) -> ParakeetError:
    with pytest.raises(ParakeetError) as caught:
        await samples_of(path, ffmpeg)
    return caught.value


# Which demuxers


def test_every_demuxer_is_in_exactly_one_group(ffmpeg: Path) -> None:
    for name in known_demuxers(ffmpeg):
        groups = [group for group, names in GROUPS.items() if name in names]
        assert len(groups) == 1, f"{name} is in {groups or 'no group'}: look at what it opens"


def test_no_excluded_group_contains_an_allowed_demuxer() -> None:
    allowed = {part for name in demuxers.ALLOWED for part in name.split(",")}
    for group, names in GROUPS.items():
        if group != "allowed":
            assert not allowed & {part for name in names for part in name.split(",")}
    assert set(demuxers.WHITELIST.split(",")) == allowed - demuxers._RAW


@pytest.mark.parametrize("name", sorted(demuxers.OPENS_OTHERS))
def test_demuxers_that_open_other_files_are_refused_even_on_request(
    name: str, ffmpeg: Path, tmp_path: Path
) -> None:
    """A job cannot name a demuxer; here one is named in spite of that."""
    (tmp_path / "precious.wav").write_bytes(wav(TONE))
    (tmp_path / "list").write_text("ffconcat version 1.0\nfile 'precious.wav'\n")
    assert headerless(name) is None
    ran = subprocess.run(
        [
            str(ffmpeg), "-nostdin", "-hide_banner", "-protocol_whitelist", "file",
            "-format_whitelist", demuxers.WHITELIST, "-f", name, "-i", f"file:{tmp_path}/list",
            "-f", "null", "-",
        ],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ran.returncode != 0
    refused = ("not on whitelist", "not in allowed list", "unknown input format")
    assert any(words in ran.stderr.lower() for words in refused)


@pytest.mark.parametrize(
    "ending", ["g722", "sf", "wtv", "mmf", "mka", "amr", "w64", "caf", "au", "aiff"]
)
async def test_uncommon_formats_are_read(ending: str, ffmpeg: Path, tmp_path: Path) -> None:
    options = {"mmf": ("-ar", "8000"), "amr": ("-ar", "8000", "-ac", "1")}.get(ending, ())
    path = tmp_path / f"talk.{ending}"
    try:
        encode(path, *options, samples=TONE)
    except subprocess.CalledProcessError:
        pytest.skip(f"this ffmpeg has no encoder for {ending}")
    result = await samples_of(path, ffmpeg)
    assert pitch(result[1600:-1600]) == pytest.approx(440, abs=5)


async def test_sphere_is_read(ffmpeg: Path, tmp_path: Path) -> None:
    samples = (TONE * 32767).astype("<i2")
    fields = (
        "NIST_1A\n   1024\nchannel_count -i 1\nsample_rate -i 16000\nsample_n_bytes -i 2\n"
        f"sample_byte_format -s2 01\nsample_coding -s3 pcm\nsample_count -i {len(samples)}\n"
        "end_head\n"
    )
    path = tmp_path / "talk.sph"
    path.write_bytes(fields.encode().ljust(1024) + samples.tobytes())
    assert pitch(await samples_of(path, ffmpeg)) == pytest.approx(440, abs=5)


# Headerless formats


@pytest.mark.parametrize(
    ("message", "meant"),
    [
        ("ulaw", Headerless("mulaw", 8000, 1)),
        ("pcmu", Headerless("mulaw", 8000, 1)),
        ("alaw:16000", Headerless("alaw", 16000, 1)),
        ("s16le:44100:2", Headerless("s16le", 44100, 2)),
        ("f32be:48000", Headerless("f32be", 48000, 1)),
        ("g722", Headerless("g722")),
        ("mp3", None),
        ("concat", None),
        (None, None),
    ],
)
def test_a_headerless_format_is_named_with_rate_and_channels(message, meant) -> None:
    assert headerless(message) == meant


@pytest.mark.parametrize(
    "message",
    [
        "s16le",
        "s16le:10",
        "s16le:999999",
        "s16le:16000:0",
        "s16le:16000:65",
        "mp3:16000",
        "g722:8000",
        "concat:16000",
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_by_the_name_of_the_field(message: str) -> None:
    (request,) = parse(
        {"inputs": [{"audio_url": "http://a.test/a", "audio_format": message}]}
    ).requests
    assert isinstance(request, InvalidRequest)
    assert request.facts["field"] == "inputs[0].audio_format"


def test_a_request_declares_the_sample_layout() -> None:
    (request,) = parse({"audio_url": "http://a.test/a", "audio_format": "S16LE:22050:2"}).requests
    assert isinstance(request, Request)
    assert request.headerless == Headerless("s16le", 22050, 2)
    assert request.audio_format == "s16le"


@pytest.mark.parametrize(
    ("message", "muxer", "options"),
    [
        ("ulaw", "mulaw", ("-ar", "8000")),
        ("alaw:16000", "alaw", ("-ar", "16000")),
        ("s16le:22050", "s16le", ("-ar", "22050")),
        ("s16be:48000:2", "s16be", ("-ar", "48000", "-ac", "2")),
        ("f32le:16000", "f32le", ()),
        ("g722", "g722", ()),
    ],
)
async def test_headerless_audio_is_decoded_at_its_own_rate(
    message: str, muxer: str, options: tuple[str, ...], ffmpeg: Path, tmp_path: Path
) -> None:
    path = encode(tmp_path / "audio", *options, "-f", muxer, samples=TONE)
    result = await samples_of(path, ffmpeg, message)
    assert len(result) == pytest.approx(len(TONE), abs=800)
    assert pitch(result) == pytest.approx(440, abs=5)


async def test_a_file_with_a_header_is_decoded_by_its_header(ffmpeg: Path, tmp_path: Path) -> None:
    path = tmp_path / "talk.wav"
    path.write_bytes(wav(TONE))
    assert np.array_equal(
        await samples_of(path, ffmpeg, "s16le:8000"), await samples_of(path, ffmpeg)
    )


# Reasons

CONTENTS = {
    "an HTML page": b"\n<!DOCTYPE html><html><body>log in</body></html>",
    "a playlist": b"#EXTM3U\n#EXTINF:3,\nhttp://a.test/a.mp3\n",
    "a ZIP archive": b"PK\x03\x04" + bytes(500),
    "a PDF document": b"%PDF-1.7\n" + b"x" * 500,
    "a picture": b"\x89PNG\r\n\x1a\n" + bytes(500),
    "a MIDI file": b"MThd\x00\x00\x00\x06" + bytes(100),
    "a JSON document": b'{"error": "expired"}',
    "a git-lfs pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n",
    "text": b"This is no audio.\n",
    "only zeros": bytes(100_000),
}


@pytest.mark.parametrize("name", CONTENTS)
async def test_files_that_are_not_recordings_are_identified(
    name: str, ffmpeg: Path, tmp_path: Path
) -> None:
    path = tmp_path / "talk.mp3"
    path.write_bytes(CONTENTS[name])
    error = await refusal(path, ffmpeg)
    assert isinstance(error, AudioUndecodable)
    assert name in str(error)


async def test_an_encrypted_file_is_identified(ffmpeg: Path, tmp_path: Path) -> None:
    path = encode(
        tmp_path / "talk.mp4", "-c:a", "aac", "-encryption_scheme", "cenc-aes-ctr",
        "-encryption_key", "0" * 31 + "1", "-encryption_kid", "0" * 31 + "2", samples=TONE,
    )  # fmt: skip
    error = await refusal(path, ffmpeg)
    assert isinstance(error, AudioUndecodable)
    assert "encrypted" in str(error)
    # Its table, at the end or the beginning of the file: some frames may decode, as noise.
    moved = encode(
        tmp_path / "moved.mp4", "-c:a", "aac", "-encryption_scheme", "cenc-aes-ctr",
        "-encryption_key", "0" * 31 + "1", "-encryption_kid", "0" * 31 + "2",
        "-movflags", "+faststart", samples=TONE,
    )  # fmt: skip
    assert demuxers.is_encrypted(path)
    assert demuxers.is_encrypted(moved)
    assert not demuxers.is_encrypted(encode(tmp_path / "plain.mp4", "-c:a", "aac", samples=TONE))


def test_a_pipe_is_not_opened(tmp_path: Path) -> None:
    """Opening it without a writer would block, also after ffmpeg was killed."""
    pipe = tmp_path / "pipe.wav"
    os.mkfifo(pipe)
    assert not demuxers.is_encrypted(pipe)
    assert demuxers.clear_reason("", pipe) is None
    layout = headerless("s16le:16000")
    assert layout is not None
    assert layout.fits(pipe)


async def test_an_unknown_codec_is_named(ffmpeg: Path, tmp_path: Path) -> None:
    content = bytearray(wav(TONE))
    content[20:22] = b"\x34\x12"  # a format tag that nothing uses
    path = tmp_path / "talk.wav"
    path.write_bytes(content)
    error = await refusal(path, ffmpeg)
    assert "codec" in str(error)
    assert "codec none" not in str(error)


async def test_the_reason_is_never_uninformative(ffmpeg: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(7)
    whole = encode(tmp_path / "whole.mp4", samples=TONE).read_bytes()
    reasons = []
    for number in range(12):
        content = bytearray(whole[: rng.integers(10, len(whole))])
        for at in rng.integers(0, len(content), 400):
            content[at] = rng.integers(256)
        path = tmp_path / f"{number}.mp4"
        path.write_bytes(content)
        with suppress(ParakeetError):
            await samples_of(path, ffmpeg)
            continue
        reasons.append(str(await refusal(path, ffmpeg)))
    assert len(reasons) > 3
    for reason in reasons:
        for empty in ("Conversion failed", "Invalid argument", "codec none"):
            assert empty not in reason


@pytest.mark.parametrize(
    ("ending", "muxer", "audio_format"), [("ul", "mulaw", "ulaw"), ("sw", "s16le", "s16le:8000")]
)
async def test_no_rate_is_assumed_for_the_ending_of_a_name(
    ffmpeg: Path, tmp_path: Path, ending: str, muxer: str, audio_format: str
) -> None:
    path = encode(tmp_path / f"call.{ending}", "-ar", "8000", "-f", muxer, samples=TONE)
    assert "'audio_format' must name its format" in str(await refusal(path, ffmpeg))
    samples = await samples_of(path, ffmpeg, audio_format)
    assert pitch(samples[1600:-1600]) == pytest.approx(440, abs=5)


async def test_a_job_names_a_headerless_format(tmp_path: Path) -> None:
    settings = Settings(engine="tones", scratch=tmp_path)
    encoded = b64encode((TONE * 32767).astype("<i2").tobytes()).decode()
    with open_pipeline(settings) as pipeline:
        job = {"audio_base64": encoded, "audio_format": "s16le:16000", "language": "auto"}
        assert await answers.answer(pipeline, job) == {"text": "440."}
