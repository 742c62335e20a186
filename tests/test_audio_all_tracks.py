"""Recordings with several audio tracks, all transcribed, also if some are broken."""

import asyncio
from base64 import b64encode
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from http_server import serving_pipeline
from odd_recordings import ffmpeg as run_ffmpeg
from parakeet_worker.answers import answer
from parakeet_worker.audio.all_tracks import AllTracks, decoding
from parakeet_worker.audio.tracks import MAX_TRACKS
from parakeet_worker.engine.base import SAMPLE_RATE
from parakeet_worker.errors import AudioUndecodable, ClipOutside, InvalidRequest
from parakeet_worker.pipeline import Pipeline
from parakeet_worker.settings import Settings
from parakeet_worker.worker import open_pipeline
from recordings import encode, tone

HERTZ = (400, 700, 500)
SECONDS = (2.0, 5.0, 3.0)


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pipeline]:
    settings = Settings(engine="tones", scratch=tmp_path_factory.mktemp("scratch"))
    with open_pipeline(settings) as opened:
        yield opened


def of_tracks(
    folder: Path, name: str, *options: object, late_seconds: Sequence[float] = ()
) -> Path:
    """A tone a track, each of another length."""
    inputs: list[object] = []
    for index, (hertz, seconds) in enumerate(zip(HERTZ, SECONDS, strict=True)):
        one = encode(folder / f"{index}.wav", samples=tone(hertz, seconds))
        late = ("-itsoffset", late_seconds[index]) if late_seconds else ()
        inputs += [*late, "-i", one]
    maps = [each for index in range(len(HERTZ)) for each in ("-map", index)]
    path = folder / name
    run_ffmpeg(*inputs, *maps, *options, path)
    return path


def unknown(path: Path, marker: bytes, tracks: Sequence[int]) -> Path:
    """Give tracks, from 1, a codec that does not exist."""
    parts = path.read_bytes().split(marker)
    assert len(parts) > len(HERTZ)
    content = parts[0]
    for number, part in enumerate(parts[1:], start=1):
        content += (b"A_NONE"[: len(marker)] if number in tracks else marker) + part
    path.write_bytes(content)
    return path


async def answered(pipeline: Pipeline, path: Path, **fields: object) -> dict[str, Any]:
    content = b64encode(path.read_bytes()).decode()
    payload = {"audio_base64": content, "format": "verbose_json", "debug": True, **fields}
    result = await answer(pipeline, payload)
    assert isinstance(result, dict)
    return result


def log_text(document: dict[str, Any]) -> set[tuple[int, str]]:
    return {(word["channel"], word["word"]) for word in document["words"]}


def codes(document: dict[str, Any]) -> list[str]:
    return [warning["code"] for warning in document.get("warnings", ())]


@pytest.mark.parametrize(
    ("name", "codec"),
    [("a.mka", "libopus"), ("a.m4a", "aac"), ("a.ts", "aac"), ("a.mkv", "flac"), ("a.mov", "alac")],
)
async def test_all_tracks_are_transcribed_separately(name, codec, pipeline, tmp_path) -> None:
    path = of_tracks(tmp_path, name, "-c:a", codec)
    result = await answered(pipeline, path, track="all")
    assert log_text(result) == {
        (number, f"{hertz}.") for number, hertz in enumerate(HERTZ, start=1)
    }
    assert codes(result) == []
    assert result["duration"] == pytest.approx(max(SECONDS), abs=0.15)
    assert result["debug"]["decoded"]["tracks"] == 3


async def test_all_tracks_are_transcribed_over_http(pipeline, tmp_path) -> None:
    path = of_tracks(tmp_path, "a.mka", "-c:a", "libopus")
    settings = Settings(engine="tones", scratch=tmp_path)
    async with serving_pipeline(pipeline, settings) as server:
        result = await server.client.post(
            "/transcribe",
            files={"file": (path.name, path.read_bytes())},
            data={"format": "verbose_json", "track": "all"},
        )
    assert log_text(result.json()) == {(1, "400."), (2, "700."), (3, "500.")}


async def test_tracks_keep_their_times(pipeline, tmp_path) -> None:
    path = of_tracks(tmp_path, "a.mka", "-c:a", "libopus", late_seconds=(0.0, 2.0, 4.0))
    result = await answered(pipeline, path, track="all")
    starts = {word["channel"]: word["start"] for word in result["words"]}
    assert starts[2] - starts[1] == pytest.approx(2.0, abs=0.1)
    assert starts[3] - starts[1] == pytest.approx(4.0, abs=0.1)
    assert codes(result) == []


async def test_a_clip_is_one_of_every_track(pipeline, tmp_path) -> None:
    path = of_tracks(tmp_path, "a.mka", "-c:a", "libopus")
    result = await answered(pipeline, path, track="all", clip={"start": 2.5, "end": 4.5})
    assert log_text(result) == {(2, "700."), (3, "500.")}


@pytest.mark.parametrize(
    ("name", "codec", "marker"),
    [("a.mka", "libopus", b"A_OPUS"), ("a.mkv", "flac", b"A_FLAC")],
)
async def test_a_track_with_an_unknown_codec_is_passed_over(
    name, codec, marker, pipeline, tmp_path
) -> None:
    path = unknown(of_tracks(tmp_path, name, "-c:a", codec), marker, [1])
    result = await answered(pipeline, path)
    assert {word["word"] for word in result["words"]} == {"700."}
    assert result["debug"]["decoded"]["track"] == 2
    assert codes(result) == ["track_skipped", "several_tracks"]
    assert "track 1" in result["warnings"][0]["message"]


async def test_a_requested_track_with_an_unknown_codec_is_an_error(pipeline, tmp_path) -> None:
    path = unknown(of_tracks(tmp_path, "a.mka", "-c:a", "libopus"), b"A_OPUS", [1])
    with pytest.raises(AudioUndecodable):
        await answered(pipeline, path, track=1)


async def test_decodable_tracks_are_transcribed_under_their_numbers(pipeline, tmp_path) -> None:
    path = unknown(of_tracks(tmp_path, "a.mka", "-c:a", "libopus"), b"A_OPUS", [2])
    result = await answered(pipeline, path, track="all")
    assert log_text(result) == {(1, "400."), (3, "500.")}
    assert codes(result) == ["track_skipped"]
    assert "track 2" in result["warnings"][0]["message"]


@pytest.mark.parametrize("track", [None, "all"])
async def test_unknown_codecs_alone_are_an_error(track, pipeline, tmp_path) -> None:
    path = unknown(of_tracks(tmp_path, "a.mka", "-c:a", "libopus"), b"A_OPUS", [1, 2, 3])
    with pytest.raises(AudioUndecodable):
        await answered(pipeline, path, track=track)


@pytest.mark.parametrize("track", [4, "eng"])
async def test_a_track_that_is_not_there_is_named(track, pipeline, tmp_path) -> None:
    path = of_tracks(tmp_path, "a.mka", "-c:a", "libopus")
    with pytest.raises(InvalidRequest, match="the recording has: 1, 2, 3"):
        await answered(pipeline, path, track=track)


async def test_all_tracks_and_separate_channels_exclude_each_other(pipeline, tmp_path) -> None:
    path = of_tracks(tmp_path, "a.mka", "-c:a", "libopus")
    with pytest.raises(InvalidRequest, match="all"):
        await answered(pipeline, path, track="all", channels="separate")


def test_of_too_many_tracks_none_is_decoded(pipeline, tmp_path) -> None:
    one = encode(tmp_path / "one.wav", samples=tone(440, 0.5))
    path = tmp_path / "many.mka"
    maps = [each for _ in range(MAX_TRACKS + 1) for each in ("-map", 0)]
    run_ffmpeg("-i", one, *maps, "-c:a", "flac", path)
    with pytest.raises(InvalidRequest, match=f"at most {MAX_TRACKS}"):
        list(all_of(path, pipeline).blocks())


def test_columns_are_of_equal_length_and_silent_after_their_end(pipeline, tmp_path) -> None:
    path = of_tracks(tmp_path, "a.mkv", "-c:a", "flac")
    result = all_of(path, pipeline)
    lengths = [0, 0, 0]
    at = 0
    for block in result.blocks():
        assert block.shape[1] == 3
        for column in range(3):
            sounding = abs(block[:, column]) > 1e-3
            if sounding.any():
                lengths[column] = at + int(sounding.nonzero()[0][-1])
        at += len(block)
    assert [length / SAMPLE_RATE for length in lengths] == pytest.approx(SECONDS, abs=0.01)
    assert result.yielded_seconds == pytest.approx(max(SECONDS), abs=0.01)


async def test_a_stop_ends_all(pipeline, tmp_path, children) -> None:
    result = all_of(of_tracks(tmp_path, "a.mkv", "-c:a", "flac"), pipeline)
    blocks = result.blocks()
    await asyncio.to_thread(next, blocks)
    result.stop()
    blocks.close()
    assert children() == []


def test_a_stop_before_the_first_block_leaves_nothing(pipeline, tmp_path) -> None:
    result = all_of(of_tracks(tmp_path, "a.mkv", "-c:a", "flac"), pipeline)
    result.stop()
    assert list(result.blocks()) == []


async def test_a_track_without_samples_is_reported_and_the_others_are_transcribed(
    pipeline, tmp_path
) -> None:
    empty, one = tmp_path / "empty.wav", encode(tmp_path / "one.wav", samples=tone(700, 3.0))
    encode(empty, samples=tone(400, 0.01))
    path = tmp_path / "a.mkv"
    run_ffmpeg("-i", empty, "-i", one, "-map", 0, "-map", 1, "-c:a", "flac", path)
    result = await answered(pipeline, path, track="all", clip={"start": 0.5, "end": 3.0})
    assert log_text(result) == {(2, "700.")}
    assert codes(result) == ["track_skipped"]
    with pytest.raises(ClipOutside):
        await answered(pipeline, path, track="all", clip={"start": 9.0, "end": 10.0})


def all_of(path: Path, pipeline: Pipeline) -> AllTracks:
    result = decoding(
        path, track="all", ffmpeg=pipeline.ffmpeg, max_seconds=60.0, timeout_seconds=60.0
    )
    assert isinstance(result, AllTracks)
    return result
