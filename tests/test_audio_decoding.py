import asyncio
import json
import os
import re
import resource
import subprocess
import sys
import tracemalloc
from collections.abc import Callable, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any

import imageio_ffmpeg
import numpy as np
import psutil
import pytest

from parakeet_worker import threads
from parakeet_worker.audio import decoding
from parakeet_worker.audio.decoding import SAMPLE_RATE, Decoding
from parakeet_worker.engine.base import Samples
from parakeet_worker.errors import (
    AudioDamaged,
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
    ParakeetError,
)
from parakeet_worker.request import Clip
from parakeet_worker.vad.base import BLOCK_SAMPLES
from recordings import RATE, cut, encode, noise, pitch, repeat, silence, tone, wav

pytestmark = pytest.mark.usefixtures("children")

SECONDS = 3.0
HERTZ = 440
# A test that hangs shall fail; it is no bound on how fast anything is.
PATIENCE_SECONDS = 60
Children = Callable[[], list[psutil.Process]]
VIDEO = ("-f", "lavfi", "-i", "color=black:s=64x64:r=5:d={}", "-c:v", "mpeg4", "-b:v", "20k")


def video(seconds: float) -> tuple[str, ...]:
    """Options for a video track of that length."""
    return tuple(option.format(seconds) for option in VIDEO)


def decoder(path: Path, ffmpeg: Path, **chosen: Any) -> Decoding:
    return Decoding(path, ffmpeg=ffmpeg, **{"max_seconds": 600, "timeout_seconds": 60, **chosen})


async def samples_of(run: Decoding) -> Samples:
    async with asyncio.timeout(PATIENCE_SECONDS):
        return np.concatenate([block async for block in run.samples()])


def codes(run: Decoding) -> list[str]:
    return [warning.code for warning in run.warnings]


@pytest.mark.parametrize(("ending", "rate"), [("mp3", "48000"), ("aac", "44100")])
async def test_a_change_of_rate_and_channels_loses_nothing(
    ffmpeg: Path, tmp_path: Path, ending: str, rate: str
) -> None:
    """ffmpeg sets up its filters anew there, and discards what they hold."""
    first = np.concatenate([tone(440, 2.0), silence(0.5), tone(660, 1.5)])
    second = tone(880, 3.0)
    both = tmp_path / f"both.{ending}"
    codec = ("-c:a", "libmp3lame" if ending == "mp3" else "aac")
    parts = (
        encode(tmp_path / f"first.{ending}", *codec, "-ar", "44100", samples=first),
        encode(tmp_path / f"second.{ending}", *codec, "-ar", rate, "-ac", "2", samples=second),
    )
    both.write_bytes(b"".join(part.read_bytes() for part in parts))
    run = decoder(both, ffmpeg)
    samples = await samples_of(run)
    assert codes(run) == []
    assert len(samples) == pytest.approx(len(first) + len(second), abs=0.15 * RATE)
    assert pitch(samples[round(2.6 * RATE) : round(3.9 * RATE)]) == pytest.approx(660, abs=5)
    assert pitch(samples[round(4.1 * RATE) : round(6.8 * RATE)]) == pytest.approx(880, abs=5)
    loud = np.abs(samples[round(2.6 * RATE) : round(6.8 * RATE)]) > 0.01
    assert loud.mean() > 0.9


async def refusal(path: Path, ffmpeg: Path, **chosen: Any) -> ParakeetError:
    with pytest.raises(ParakeetError) as caught:
        await samples_of(decoder(path, ffmpeg, **chosen))
    return caught.value


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Three seconds of a tone in a container with options, encoded once."""
    folder = tmp_path_factory.mktemp("shelf")

    def get(name: str, *options: str, samples: Samples | None = None, **layout: int) -> Path:
        path = folder / name
        if not path.exists():
            rate = layout.get("rate", RATE)
            encode(
                path,
                *options,
                samples=tone(HERTZ, SECONDS, rate) if samples is None else samples,
                **layout,
            )
        return path

    return get


# What ffmpeg reads

CONTAINERS: dict[str, tuple[str, ...]] = {
    "plain.m4a": (),
    "faststart.m4a": ("-movflags", "+faststart"),
    "alac.m4a": ("-c:a", "alac"),
    "vorbis.ogg": (),
    "opus.ogg": ("-c:a", "libopus"),
    "plain.opus": (),
    "plain.mp3": (),
    "variable.mp3": ("-q:a", "4"),
    "headless.mp3": ("-q:a", "4", "-write_xing", "0", "-id3v2_version", "0"),
    "plain.flac": (),
    "plain.aac": (),
    "plain.wma": (),
    "plain.aiff": (),
    "plain.webm": (),
    "plain.mka": (),
    "opus.mka": ("-c:a", "libopus"),
    "video.mp4": video(SECONDS),
    "video.mkv": video(SECONDS),
    "long-video.mp4": video(9),
    "fragments.mp4": ("-movflags", "frag_keyframe+empty_moov", "-frag_duration", "500000"),
    "narrow.amr": ("-ar", "8000"),
    "telephone.3gp": ("-c:a", "libopencore_amrnb", "-ar", "8000"),
    "plain.wav": (),
    "8-bit.wav": ("-c:a", "pcm_u8"),
    "24-bit.wav": ("-c:a", "pcm_s24le"),
    "float.wav": ("-c:a", "pcm_f32le"),
    "ulaw.wav": ("-c:a", "pcm_mulaw", "-ar", "8000"),
    "44100.wav": ("-ar", "44100"),
    "48000.wav": ("-ar", "48000"),
    "8000.wav": ("-ar", "8000"),
    "stereo.wav": ("-ac", "2"),
    "surround.wav": ("-ac", "6", "-ar", "48000"),
    "surround.m4a": ("-ac", "6", "-ar", "48000"),
    "stereo.mp3": ("-ac", "2", "-ar", "44100"),
}


@pytest.mark.parametrize("name", CONTAINERS)
async def test_every_container_gives_the_tone_at_16_khz_mono(
    name: str, ffmpeg: Path, shelf: Callable[..., Path]
) -> None:
    run = decoder(shelf(name, *CONTAINERS[name]), ffmpeg)
    samples = await samples_of(run)
    assert samples.dtype == np.float32
    assert samples.ndim == 1
    assert len(samples) / SAMPLE_RATE == pytest.approx(SECONDS, abs=0.1)
    assert run.seconds == pytest.approx(len(samples) / SAMPLE_RATE)
    assert pitch(samples) == pytest.approx(HERTZ, abs=3)
    assert 0.05 < np.abs(samples).max() < 0.5
    assert run.warnings == ()


async def test_both_channels_of_a_call_are_in_the_mix(
    ffmpeg: Path, shelf: Callable[..., Path]
) -> None:
    left, right = tone(HERTZ, SECONDS), tone(880, SECONDS)
    both = np.stack([left, right], axis=1).ravel()
    path = shelf("call.wav", samples=both, channels=2)
    run = decoder(path, ffmpeg)
    samples = await samples_of(run)
    assert np.corrcoef(samples, left + right)[0, 1] > 0.999
    assert run.origin.channels == 2


async def test_the_content_decides_and_not_the_name(
    ffmpeg: Path, tmp_path: Path, shelf: Callable[..., Path]
) -> None:
    for name in ("talk.wav", "talk", "talk.m3u8", "talk.txt"):
        path = tmp_path / name
        path.write_bytes(shelf("plain.flac").read_bytes())
        assert pitch(await samples_of(decoder(path, ffmpeg))) == pytest.approx(HERTZ, abs=3)


@pytest.mark.parametrize(
    "name",
    [
        "-i.wav",
        "two words.wav",
        "a:b.wav",
        "http:x.wav",
        "50%d.wav",
        "%03d.wav",
        "concat:a|b.wav",
        "[x]*?.wav",
        "$(date) 'q' \"r\".wav",
        "für\tdich\n.wav",
    ],
)
async def test_any_name_of_a_file_is_only_a_name(
    name: str, ffmpeg: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path(name).write_bytes(wav(tone(HERTZ, 1)))
    assert len(await samples_of(decoder(Path(name), ffmpeg))) == RATE


@pytest.mark.parametrize("name", ["cover.mp3", "cover.flac"])
async def test_a_cover_picture_is_not_taken_for_a_video(
    name: str, ffmpeg: Path, shelf: Callable[..., Path], tmp_path: Path
) -> None:
    picture = ("-f", "lavfi", "-i", "color=red:s=64x64:r=1:d=1", "-map", "0:a", "-map", "1:v")
    options = (*picture, "-c:v", "mjpeg", "-disposition:v", "attached_pic", "-id3v2_version", "3")
    whole = shelf(name, *options)
    assert len(await samples_of(decoder(whole, ffmpeg))) / RATE == pytest.approx(SECONDS, abs=0.1)
    # A picture has no length, so the length that is declared is that of the sound.
    broken = cut(whole, tmp_path / name)
    run = decoder(broken, ffmpeg)
    assert 0 < len(await samples_of(run)) / RATE < SECONDS - 0.5
    assert codes(run) == ["audio_cut"]


# Streaming


async def test_a_large_file_is_decoded_in_blocks_with_bounded_memory(
    ffmpeg: Path, tmp_path: Path
) -> None:
    path = tmp_path / "large.wav"
    path.write_bytes(wav(np.tile(tone(HERTZ, 60), 7)))
    run = decoder(path, ffmpeg, max_seconds=600)
    tracemalloc.start()
    try:
        count, first_seconds = 0, 0.0
        async for block in run.samples():
            count += len(block)
            first_seconds = first_seconds or run.seconds
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert count == 420 * RATE
    assert 0 < first_seconds < 60
    assert peak < count * 4 / 3


async def test_samples_arrive_in_few_large_blocks_after_a_small_first_one(
    ffmpeg: Path, tmp_path: Path
) -> None:
    """In multiples of a detector's frame."""
    path = tmp_path / "speech.wav"
    path.write_bytes(wav(tone(HERTZ, 120)))
    lengths = [len(block) async for block in decoder(path, ffmpeg).samples()]
    blocks = [1, 1, 2, 4, 8, 8]
    assert lengths == [
        *(count * BLOCK_SAMPLES for count in blocks),
        120 * RATE - sum(blocks) * BLOCK_SAMPLES,
    ]


# Limits

MINUTES = {
    "minute.opus": ("-b:a", "6k", "-frame_duration", "60"),
    "minute.flac": (),
    "silent.mp3": ("-b:a", "8k"),
}


@pytest.mark.parametrize("name", MINUTES)
async def test_an_hour_of_silence_in_a_small_file_fails_at_the_cap(
    name: str, ffmpeg: Path, tmp_path: Path, shelf: Callable[..., Path]
) -> None:
    minute = shelf(name, *MINUTES[name], samples=silence(60, 8000), rate=8000)
    path = repeat(minute, tmp_path / name, times=60)
    assert path.stat().st_size < 5_000_000
    run = decoder(path, ffmpeg, max_seconds=20)
    with pytest.raises(AudioTooLong) as caught:
        await samples_of(run)
    assert caught.value.facts["limit"] == 20
    assert run.seconds < 120, "far from the end"


async def test_the_cap_is_exact(ffmpeg: Path, tmp_path: Path) -> None:
    path = tmp_path / "exact.wav"
    path.write_bytes(wav(tone(HERTZ, 2)))
    assert len(await samples_of(decoder(path, ffmpeg, max_seconds=2))) == 2 * RATE
    path.write_bytes(wav(np.append(tone(HERTZ, 2), np.float32(0))))
    assert isinstance(await refusal(path, ffmpeg, max_seconds=2), AudioTooLong)


async def test_the_cap_counts_the_clip_and_not_what_lies_before(
    ffmpeg: Path, shelf: Callable[..., Path]
) -> None:
    run = decoder(shelf("plain.wav"), ffmpeg, max_seconds=1, clip=Clip(1.5, 2.5))
    assert len(await samples_of(run)) == RATE


async def test_too_little_to_hold_a_word_is_refused(ffmpeg: Path, tmp_path: Path) -> None:
    path = tmp_path / "short.wav"
    path.write_bytes(wav(tone(HERTZ, 0.05)))
    error = await refusal(path, ffmpeg)
    assert isinstance(error, AudioTooShort)
    assert error.facts == {"seconds": 0.05, "minimum": decoding.MIN_SECONDS}
    path.write_bytes(wav(tone(HERTZ, decoding.MIN_SECONDS)))
    assert len(await samples_of(decoder(path, ffmpeg))) == decoding.MIN_SECONDS * RATE


# Clips


CLIPS = [(0, 0.5), (0.5, 1.75), (1.23456, 2.34567), (2.5, None), (0, 3), (2.5, 100), (0, None)]


async def test_a_clip_is_exact_to_the_sample(ffmpeg: Path, tmp_path: Path) -> None:
    path = tmp_path / "noise.wav"
    path.write_bytes(wav(noise(SECONDS, level=0.1)))
    whole = await samples_of(decoder(path, ffmpeg))
    assert len(whole) == SECONDS * RATE
    for start, end in CLIPS:
        part = await samples_of(decoder(path, ffmpeg, clip=Clip(start, end)))
        beyond = None if end is None else round(end * RATE)
        np.testing.assert_array_equal(part, whole[round(start * RATE) : beyond])


@pytest.mark.parametrize("clip", [Clip(3.0), Clip(3.5, 4), Clip(100)])
async def test_a_clip_after_the_end_is_refused(
    clip: Clip, ffmpeg: Path, shelf: Callable[..., Path]
) -> None:
    error = await refusal(shelf("plain.wav"), ffmpeg, clip=clip)
    assert isinstance(error, ClipOutside)
    assert error.facts == {"field": "clip.start", "seconds": SECONDS}


async def test_a_clip_of_next_to_nothing_is_too_short(
    ffmpeg: Path, shelf: Callable[..., Path]
) -> None:
    for clip in (Clip(1, 1.05), Clip(2.95)):
        assert isinstance(await refusal(shelf("plain.wav"), ffmpeg, clip=clip), AudioTooShort)


async def test_a_clip_from_the_intact_part_of_a_broken_file_is_decoded(
    ffmpeg: Path, shelf: Callable[..., Path], tmp_path: Path
) -> None:
    broken = cut(shelf("plain.wav"), tmp_path / "cut.wav")
    assert len(await samples_of(decoder(broken, ffmpeg, clip=Clip(0, 1)))) == RATE


# Files that are not what they seem


@pytest.mark.parametrize("name", ["only.mp4", "only.mkv", "picture.png"])
async def test_a_file_without_audio_is_an_error(
    name: str, ffmpeg: Path, shelf: Callable[..., Path]
) -> None:
    picture = ("-frames:v", "1") if name.endswith("png") else ()
    path = shelf(name, *video(1)[:4], "-map", "1:v", *picture)
    error = await refusal(path, ffmpeg)
    expected = AudioUndecodable if picture else AudioMissing
    assert isinstance(error, expected)


@pytest.mark.parametrize(
    "content",
    [
        b"This is not a recording.\n" * 400,
        b"\x00" * 10_000,
        b"\xff" * 10_000,
        b"<!DOCTYPE html><html><body>404</body></html>",
        b"PK\x03\x04" + bytes(range(256)) * 20,
        b"x",
    ],
    ids=["text", "zeros", "ones", "HTML", "ZIP", "one byte"],
)
async def test_what_is_no_recording_is_undecodable_in_one_short_sentence(
    content: bytes, ffmpeg: Path, tmp_path: Path
) -> None:
    path = tmp_path / "secret-name.mp3"
    path.write_bytes(content)
    error = await refusal(path, ffmpeg)
    assert isinstance(error, AudioUndecodable)
    assert len(str(error)) < 250
    assert "\n" not in str(error)
    assert "secret-name" not in str(error), "paths of this machine stay private"


@pytest.mark.parametrize("name", ["none.wav", "none.flac", "none.opus"])
async def test_a_recording_without_samples_is_empty(
    name: str, ffmpeg: Path, tmp_path: Path
) -> None:
    path = tmp_path / name
    if name == "none.wav":
        path.write_bytes(wav(silence(0)))
    else:
        encode(path, samples=silence(0))
    assert isinstance(await refusal(path, ffmpeg), AudioEmpty | AudioUndecodable)


async def test_silence_is_audio_like_any_other(ffmpeg: Path, tmp_path: Path) -> None:
    path = tmp_path / "silence.wav"
    path.write_bytes(wav(silence(1)))
    assert not (await samples_of(decoder(path, ffmpeg))).any()


PLAYLISTS = {
    "list.m3u8": "#EXTM3U\n#EXT-X-TARGETDURATION:3\n#EXTINF:3,\n{0}\n#EXT-X-ENDLIST\n",
    "list.ffconcat": "ffconcat version 1.0\nfile '{0}'\n",
    "list.sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=-\nc=IN IP4 127.0.0.1\nm=audio 9 RTP/AVP 0\n",
    "list.mpd": '<MPD type="static"><Period><AdaptationSet contentType="audio">'
    '<Representation id="1"><BaseURL>{0}</BaseURL></Representation></AdaptationSet></Period></MPD>',
}


@pytest.mark.parametrize("name", PLAYLISTS)
@pytest.mark.parametrize("ending", [None, ".wav"])
async def test_a_playlist_is_refused_and_what_it_names_is_not_opened(
    name: str, ending: str | None, ffmpeg: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other.wav"
    os.mkfifo(other)
    path = tmp_path / (name + (ending or ""))
    path.write_text(PLAYLISTS[name].format(other))
    # Opening the other one would wait for a writer, and end by the time limit.
    assert isinstance(await refusal(path, ffmpeg, timeout_seconds=20), AudioUndecodable)


# Cut files

CUT = {
    "plain.wav": AudioTruncated,
    "24-bit.wav": AudioTruncated,
    "plain.mp3": AudioTruncated,
    "variable.mp3": AudioTruncated,
    "plain.flac": AudioTruncated,
    "faststart.m4a": AudioTruncated,
    "plain.m4a": AudioUndecodable,
    "video.mp4": AudioUndecodable,
    "plain.webm": AudioTruncated,
    "plain.mka": AudioTruncated,
    "plain.aiff": AudioTruncated,
    "fragments.mp4": AudioTruncated,
}


@pytest.mark.parametrize("name", CUT)
async def test_a_cut_file_is_decoded_to_its_end_or_refused_on_request(
    name: str, ffmpeg: Path, shelf: Callable[..., Path], tmp_path: Path
) -> None:
    broken = cut(shelf(name, *CONTAINERS[name]), tmp_path / f"cut-{name}")
    if CUT[name] is AudioTruncated:
        run = decoder(broken, ffmpeg)
        samples = await samples_of(run)
        assert codes(run) == ["audio_cut"]
        assert run.warnings[0].start_seconds == pytest.approx(len(samples) / RATE)
    error = await refusal(broken, ffmpeg, on_damage="refuse")
    assert type(error) is CUT[name]
    if isinstance(error, AudioTruncated):
        assert 0 < float(str(error.facts["seconds"])) < SECONDS


async def test_a_file_cut_within_its_index_is_not_called_empty(
    ffmpeg: Path, shelf: Callable[..., Path], tmp_path: Path
) -> None:
    broken = cut(shelf("plain.m4a"), tmp_path / "cut.m4a", 0.97)
    assert isinstance(await refusal(broken, ffmpeg), AudioUndecodable)


@pytest.mark.parametrize("name", ["long.ogg", "long-opus.ogg"])
@pytest.mark.parametrize("share", [0.4, 0.99])
async def test_a_cut_ogg_file_is_decoded_to_its_end_with_a_warning(
    name: str, share: float, ffmpeg: Path, shelf: Callable[..., Path], tmp_path: Path
) -> None:
    codec = ("-c:a", "libopus") if "opus" in name else ()
    whole = shelf(name, *codec, samples=tone(HERTZ, 12))
    run = decoder(cut(whole, tmp_path / name, share), ffmpeg)
    samples = await samples_of(run)
    assert 1 < len(samples) / RATE < 12
    assert "cut off" in " ".join(map(str, run.warnings))


@pytest.mark.parametrize(
    ("name", "options"), [("minute.mp3", ("-b:a", "32k")), ("minute.aiff", ())]
)
async def test_a_little_that_is_missing_of_much_is_a_warning(
    name: str, options: tuple[str, ...], ffmpeg: Path, shelf: Callable[..., Path], tmp_path: Path
) -> None:
    whole = shelf(name, *options, samples=tone(HERTZ, 60))
    run = decoder(cut(whole, tmp_path / name, 1 - 0.8 / 60), ffmpeg)
    assert len(await samples_of(run)) / RATE == pytest.approx(59.2, abs=0.2)
    assert re.search(r"ends 0\.\d+ s before", " ".join(map(str, run.warnings)))


def piped(container: str) -> bytes:
    """Three seconds of a tone, written to a pipe, so that the length cannot be filled in."""
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-loglevel", "error", "-f", "lavfi"]
    command += ["-i", "sine=440:d=3:r=16000", "-f", container, "-"]
    return subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout


@pytest.mark.parametrize("container", ["wav", "flac", "matroska", "webm", "mp3", "adts"])
async def test_a_file_written_to_a_pipe_has_no_length_and_is_complete(
    container: str, ffmpeg: Path, tmp_path: Path
) -> None:
    path = tmp_path / "piped"
    path.write_bytes(piped(container))
    run = decoder(path, ffmpeg)
    assert len(await samples_of(run)) / RATE == pytest.approx(SECONDS, abs=0.1)
    assert run.warnings == ()


@pytest.mark.parametrize("name", ["headless.mp3", "plain.aac"])
async def test_a_duration_estimated_from_a_quiet_start_is_ignored(
    name: str, ffmpeg: Path, shelf: Callable[..., Path]
) -> None:
    growing = np.concatenate((silence(20), noise(5, level=0.3)))
    path = shelf(f"growing-{name}", *CONTAINERS[name], samples=growing)
    run = decoder(path, ffmpeg)
    assert len(await samples_of(run)) / RATE == pytest.approx(25, abs=0.2)
    assert run.warnings == ()


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("minute.flac", ()),
        ("minute.flv", ("-c:a", "aac")),
        ("minute.ts", ("-c:a", "aac")),
    ],
)
async def test_a_hole_in_the_middle_keeps_its_length_and_is_named(
    name: str, options: tuple[str, ...], ffmpeg: Path, shelf: Callable[..., Path], tmp_path: Path
) -> None:
    """Behind it, a higher tone begins when it does in the whole file."""
    samples = np.concatenate((tone(HERTZ, 40), tone(880, 20)))
    content = bytearray(shelf(f"tones-{name}", *options, samples=samples).read_bytes())
    first = len(content) * 2 // 5
    content[first : first + 3000] = bytes(3000)
    path = tmp_path / f"hurt-{name}"
    path.write_bytes(content)
    run = decoder(path, ffmpeg)
    result = await samples_of(run)
    assert len(result) / RATE == pytest.approx(60, abs=0.15)
    assert pitch(result[round(39.0 * RATE) : round(39.85 * RATE)]) == pytest.approx(HERTZ, abs=5)
    assert pitch(result[round(40.15 * RATE) : round(41.0 * RATE)]) == pytest.approx(880, abs=5)
    assert set(codes(run)) <= {"audio_gap", "audio_damaged"}
    (first_notice, *_) = run.warnings
    assert first_notice.start_seconds == pytest.approx(60 * 2 / 5, abs=3)
    error = await refusal(path, ffmpeg, on_damage="refuse")
    assert isinstance(error, AudioDamaged)
    assert error.facts["start"] == round(first_notice.start_seconds or 0, 3)


async def test_a_broken_middle_is_decoded_with_a_warning(
    ffmpeg: Path, shelf: Callable[..., Path], tmp_path: Path
) -> None:
    content = bytearray(shelf("minute.mp3", "-b:a", "32k", samples=tone(HERTZ, 60)).read_bytes())
    middle = len(content) // 2
    content[middle : middle + 600] = bytes(range(200)) * 3
    path = tmp_path / "broken.mp3"
    path.write_bytes(content)
    run = decoder(path, ffmpeg)
    assert len(await samples_of(run)) / RATE == pytest.approx(60, abs=1)
    assert "could not be decoded" in " ".join(map(str, run.warnings))


# The child process


async def test_a_file_that_never_comes_ends_by_the_time_limit(
    ffmpeg: Path, tmp_path: Path, children: Children
) -> None:
    path = tmp_path / "never.wav"
    os.mkfifo(path)
    error = await refusal(path, ffmpeg, timeout_seconds=0.5)
    assert isinstance(error, DecodeTimeout)
    assert error.facts["limit"] == 0.5
    assert children() == []


async def test_the_time_of_the_listener_does_not_count(shelf: Callable[..., Path]) -> None:
    path = shelf("slow.wav", samples=tone(HERTZ, 60))
    run = decoder(path, decoding.find_ffmpeg(), timeout_seconds=2)
    async with aclosing(run.samples()) as samples:
        await anext(samples)
        await asyncio.sleep(2.2)
        assert sum([len(block) async for block in samples]) > 30 * RATE


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


async def test_an_ffmpeg_that_is_killed_fails_its_recording_alone(
    ffmpeg: Path, shelf: Callable[..., Path], children: Children
) -> None:
    """As the kernel does where memory runs out."""
    path = shelf("slow.wav", samples=tone(HERTZ, 60))
    async with aclosing(decoder(path, ffmpeg).samples()) as samples:
        await anext(samples)
        (child,) = children()
        child.kill()
        other = asyncio.create_task(samples_of(decoder(path, ffmpeg)))
        with pytest.raises(DecoderKilled) as caught:
            [block async for block in samples]
    assert 0 < float(str(caught.value.facts["seconds"])) < 60
    assert len(await other) == 60 * RATE


async def test_an_ffmpeg_without_the_option_for_larger_packets_reads_a_wav(
    tmp_path, ffmpeg
) -> None:
    old = tmp_path / "ffmpeg"
    refusal = "case \"$*\" in *-max_size*) echo 'Option max_size not found.' >&2; exit 1;; esac"
    old.write_text(f'#!/bin/sh\n{refusal}\nexec {ffmpeg} "$@"\n')
    old.chmod(0o755)
    path = tmp_path / "a.wav"
    encode(path, samples=tone(HERTZ, SECONDS))
    expected = await samples_of(decoder(path, ffmpeg))
    assert np.array_equal(await samples_of(decoder(path, old)), expected)
    assert len(expected) == SECONDS * SAMPLE_RATE


async def test_an_endless_ffmpeg_log_neither_blocks_nor_fills_memory(
    tmp_path: Path,
) -> None:
    chatty = tmp_path / "ffmpeg"
    chatty.write_text(
        "#!/bin/sh\nyes 'frame is broken' | head -c 3000000 >&2\nhead -c 640000 /dev/zero\n"
        "echo 'last: words' >&2\n"
    )
    chatty.chmod(0o755)
    path = tmp_path / "audio"
    path.write_bytes(b"anything")
    samples = await samples_of(decoder(path, chatty))
    assert len(samples) == 160_000


async def test_an_abandoned_decoding_leaves_no_process_and_no_pipe(
    ffmpeg: Path, shelf: Callable[..., Path], children: Children
) -> None:
    path = shelf("slow.wav", samples=tone(HERTZ, 60))
    before = open_files()
    async with (
        asyncio.timeout(PATIENCE_SECONDS),
        aclosing(decoder(path, ffmpeg).samples()) as samples,
    ):
        await anext(samples)
        await asyncio.sleep(0.2)
        assert children() != [], "ffmpeg waits for its pipe to be read"
    assert children() == []
    assert open_files() <= before


async def waiting(ffmpeg: Path, path: Path) -> None:
    """Read the first block, then block."""
    async with aclosing(decoder(path, ffmpeg).samples()) as samples:
        await anext(samples)
        await asyncio.Event().wait()


@pytest.mark.parametrize("place", ["reading", "busy"])
async def test_cancelling_kills_ffmpeg_at_any_point(
    place: str, ffmpeg: Path, tmp_path: Path, shelf: Callable[..., Path], children: Children
) -> None:
    before = open_files()
    if place == "reading":
        path = tmp_path / "never.wav"
        os.mkfifo(path)
        task = asyncio.create_task(samples_of(decoder(path, ffmpeg)))
    else:
        path = shelf("slow.wav", samples=tone(HERTZ, 60))
        task = asyncio.create_task(waiting(ffmpeg, path))
    await asyncio.sleep(0.3)
    assert children() != []
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(task, PATIENCE_SECONDS)
    assert children() == []
    assert open_files() <= before


async def test_decoders_without_output_do_not_keep_others_waiting(
    ffmpeg: Path, tmp_path: Path, shelf: Callable[..., Path]
) -> None:
    pipe = tmp_path / "never.wav"
    os.mkfifo(pipe)
    count = threads.SLOTS.free + 1
    stalled = [asyncio.create_task(samples_of(decoder(pipe, ffmpeg))) for _ in range(count)]
    path = shelf("slow.wav", samples=tone(HERTZ, 60))
    samples = await asyncio.wait_for(samples_of(decoder(path, ffmpeg)), PATIENCE_SECONDS)
    assert len(samples) == 60 * SAMPLE_RATE
    for task in stalled:
        assert not task.done()
        task.cancel()
    await asyncio.wait(stalled)


async def test_cancelling_at_any_moment_of_the_start_leaves_nothing(
    ffmpeg: Path, shelf: Callable[..., Path], children: Children
) -> None:
    path = shelf("slow.wav", samples=tone(HERTZ, 60))
    before = open_files()
    for steps in range(12):
        task = asyncio.create_task(samples_of(decoder(path, ffmpeg)))
        for _ in range(steps):
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert children() == []
    assert open_files() <= before


# Which ffmpeg


def test_the_chosen_ffmpeg_comes_before_every_other(tmp_path: Path) -> None:
    assert decoding.find_ffmpeg(tmp_path / "mine") == tmp_path / "mine"


def test_the_system_s_ffmpeg_comes_before_the_packaged_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = tmp_path / "ffmpeg"
    own.write_text("#!/bin/sh\n")
    own.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert decoding.find_ffmpeg() == own
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    packaged = decoding.find_ffmpeg()
    assert packaged.is_file()
    assert "imageio_ffmpeg" in packaged.parts


async def test_an_ffmpeg_that_does_not_exist_is_the_operator_s_affair(
    tmp_path: Path, shelf: Callable[..., Path]
) -> None:
    error = await refusal(shelf("plain.wav"), tmp_path / "no-ffmpeg")
    assert isinstance(error, FfmpegMissing)


# memory

_DECODE = """
import json, resource, sys
from pathlib import Path
from parakeet_worker.audio.decoding import Decoding
from parakeet_worker.errors import ParakeetError

ffmpeg, *paths = map(Path, sys.argv[1:])
for path in paths:
    decoding = Decoding(path, ffmpeg=ffmpeg, max_seconds=600, timeout_seconds=60)
    try:
        became = sum(map(len, decoding.blocks()))
    except ParakeetError as error:
        became = error.code
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss >> 10
    print(json.dumps([path.name, became, peak]))
"""


def with_rate(path: Path, rate: int) -> Path:
    """The WAV file with another sample rate in its header."""
    content = bytearray(wav(noise(0.25)))
    content[24:28] = rate.to_bytes(4, "little")
    content[28:32] = (2 * rate & 0xFFFFFFFF).to_bytes(4, "little")
    path.write_bytes(content)
    return path


@pytest.fixture(scope="module")
def cover(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MP3 of 2 s with a picture of 16,000 by 16,000."""
    path = tmp_path_factory.mktemp("cover") / "cover.mp3"
    picture = ("-f", "lavfi", "-i", "color=red:s=16000x16000:d=1:r=1")
    options = ("-map", "0", "-map", "1", "-c:v", "png", "-frames:v", "1")
    run_ffmpeg("-f", "lavfi", "-i", "sine=440:d=2", *picture, *options, path)
    return path


def test_no_header_makes_ffmpeg_take_more_than_its_memory(
    ffmpeg: Path, cover: Path, tmp_path: Path
) -> None:
    odd = [with_rate(tmp_path / f"{rate}.wav", rate) for rate in (1, 2, 10, 10**8, 2 * 10**9)]
    paths = [cover, *odd]
    run = [sys.executable, "-c", _DECODE, str(ffmpeg), *map(str, paths)]
    log_text = subprocess.run(run, check=True, capture_output=True, text=True).stdout
    reported = {
        name: (became, peak) for name, became, peak in map(json.loads, log_text.splitlines())
    }
    assert reported["cover.mp3"][0] > RATE / 2
    assert max(peak for _, peak in reported.values()) < 300, reported


async def test_a_transport_stream_with_the_name_of_a_service_is_decoded(
    ffmpeg: Path, tmp_path: Path
) -> None:
    path = encode(tmp_path / "a.ts", "-c:a", "mp2", samples=tone(440, 1))
    assert len(await samples_of(decoder(path, ffmpeg))) > 0.9 * RATE


# far into a recording


FAR = 310.3


def run_ffmpeg(*options: object) -> None:
    subprocess.run([imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", *map(str, options)], check=True)


@pytest.fixture(scope="module")
def far(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """More than five minutes in which no two seconds are the same, encoded once."""
    folder = tmp_path_factory.mktemp("far")
    clock = np.arange(320 * RATE) / RATE
    sweep = 0.3 * np.sin(2 * np.pi * (200 + 0.5 * clock) * clock) + noise(320, level=0.02)
    whole = encode(folder / "whole.wav", samples=sweep.astype(np.float32))

    def get(name: str, *options: object, before: Sequence[object] = ()) -> Path:
        path = folder / name
        if not path.exists():
            run_ffmpeg(*before, "-i", whole, *options, path)
        return path

    return get


async def far_clip(path: Path, ffmpeg: Path, **options: Any) -> tuple[Samples, Samples, float]:
    """A clip far in a recording, the same as it is decoded from the start, where decoding began."""
    clip = decoder(path, ffmpeg, clip=Clip(FAR, 314), **options)
    samples = await samples_of(clip)
    whole = await samples_of(decoder(path, ffmpeg, clip=Clip(290, 314), **options))
    return samples, whole[round((FAR - 290) * RATE) :], clip.begin_seconds


AAC = ("-c:a", "aac", "-aac_pns", "0", "-aac_coder", "fast", "-ar", "22050")
OPUS = ("-c:a", "libopus", "-compression_level", "0")
VORBIS = ("-c:a", "libvorbis", "-ar", "22050")


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a.wav", ()),
        ("a.flac", ()),
        ("a.mp3", ()),
        ("a.m4a", AAC),
        ("a.mov", ("-c:a", "pcm_s16le", "-ar", "22050")),
        ("fragments.mp4", (*AAC, "-movflags", "frag_keyframe+empty_moov")),
        ("a.mkv", AAC),
        ("a.mka", ("-c:a", "pcm_s16le")),
        ("a.webm", OPUS),
        ("live.webm", (*OPUS, "-live", "1")),
        ("vorbis.webm", VORBIS),
        ("a.opus", OPUS),
        ("a.ogg", VORBIS),
    ],
)
async def test_a_clip_far_in_a_recording_is_decoded_from_there_with_the_same_samples(
    ffmpeg: Path, far: Callable[..., Path], name: str, options: tuple[str, ...]
) -> None:
    samples, expected, begin_seconds = await far_clip(far(name, *options), ffmpeg)
    assert begin_seconds == pytest.approx(FAR - 3, abs=2)
    assert np.array_equal(samples, expected)


@pytest.mark.parametrize(
    ("name", "options"), [("a.flac", ()), ("a.mp3", ()), ("a.m4a", AAC), ("a.webm", OPUS)]
)
async def test_so_is_one_resampled_in_single_precision(
    ffmpeg: Path, far: Callable[..., Path], name: str, options: tuple[str, ...]
) -> None:
    path = far(name, *options)
    samples, expected, begin_seconds = await far_clip(path, ffmpeg, precision="single")
    assert begin_seconds == pytest.approx(FAR - 3, abs=2)
    assert np.array_equal(samples, expected)


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv"])
async def test_a_far_clip_of_sound_that_begins_after_the_picture_keeps_its_place(
    ffmpeg: Path, far: Callable[..., Path], name: str
) -> None:
    picture = (*VIDEO[:3], VIDEO[3].format(320), "-itsoffset", "1.2345")
    path = far(f"late-{name}", "-g", "100", "-shortest", *AAC, before=picture)
    samples, expected, begin_seconds = await far_clip(path, ffmpeg)
    assert begin_seconds == pytest.approx(FAR - 3, abs=2)
    assert np.array_equal(samples, expected)


async def test_a_far_clip_of_aac_with_generated_noise_differs_in_that_noise_only(
    ffmpeg: Path, far: Callable[..., Path]
) -> None:
    path = far("noise.m4a", "-c:a", "aac", "-aac_pns", "1", "-b:a", "24k")
    samples, expected, begin_seconds = await far_clip(path, ffmpeg)
    assert begin_seconds > 0
    assert 0 < np.abs(samples - expected).max() < 0.1
    assert np.corrcoef(samples, expected)[0, 1] > 0.99


async def test_a_far_clip_of_chained_ogg_is_decoded_from_the_start(
    ffmpeg: Path, far: Callable[..., Path], tmp_path: Path
) -> None:
    first = far("first.ogg", *VORBIS, "-serial_offset", 1, before=("-t", 200))
    second = far("second.ogg", *VORBIS, "-serial_offset", 9, before=("-ss", 200))
    path = tmp_path / "both.ogg"
    path.write_bytes(first.read_bytes() + second.read_bytes())
    samples, expected, begin_seconds = await far_clip(path, ffmpeg)
    assert begin_seconds == 0
    assert np.array_equal(samples, expected)


@pytest.fixture(scope="module")
def forty_hours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of silence, in less than a megabyte."""
    path = tmp_path_factory.mktemp("hours") / "silence.flac"
    source = ("-f", "lavfi", "-i", "anullsrc=r=1000:cl=mono", "-t", "144000")
    run_ffmpeg(*source, "-frame_size", "65535", path)
    assert path.stat().st_size < 1_000_000
    return path


async def test_far_clips_of_forty_hours_of_silence_cost_next_to_nothing(
    ffmpeg: Path, forty_hours: Path
) -> None:
    path, hour = forty_hours, 3600.0
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    assert (
        len(await samples_of(decoder(path, ffmpeg, clip=Clip(39 * hour, 39 * hour + 2))))
        == 2 * RATE
    )
    for start in (40.5 * hour, 70 * hour, 99e6):
        assert isinstance(await refusal(path, ffmpeg, clip=Clip(start)), ClipOutside)
    # Of processor time; to decode all of it takes ten times as much.
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before < 5


@pytest.mark.parametrize("rate", [1, 2, 10, 999, 4_000_001, 10**8, 2 * 10**9])
async def test_a_sample_rate_that_no_recording_has_is_refused_by_name(
    ffmpeg: Path, tmp_path: Path, rate: int
) -> None:
    error = await refusal(with_rate(tmp_path / "odd.wav", rate), ffmpeg)
    assert isinstance(error, AudioUndecodable)
    assert f"{rate} Hz" in error.sentence
