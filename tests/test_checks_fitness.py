"""What must work before the first job is taken; that a worker ends is proved in test_serverless."""

from pathlib import Path

import pytest

from faulty_worker import FaultyEngine, faulty_pipeline
from odd_workers import DeafEngine
from parakeet_worker.checks.fitness import Unfit, check_ffmpeg, check_hearing, check_scratch
from parakeet_worker.engine.tones import ToneEngine
from parakeet_worker.settings import Settings
from parakeet_worker.worker import open_pipeline


def program(path: Path, script: str) -> Path:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


async def check_of(tmp_path: Path, ffmpeg: Path) -> None:
    settings = Settings(engine="tones", ffmpeg=ffmpeg, scratch=tmp_path)
    with faulty_pipeline(settings, ToneEngine()) as pipeline:
        await check_ffmpeg(pipeline)


async def test_an_ffmpeg_that_runs_is_fit(tmp_path: Path, ffmpeg: Path) -> None:
    await check_of(tmp_path, ffmpeg)


@pytest.mark.parametrize("script", ["exit 1", "kill -SEGV $$"])
async def test_an_ffmpeg_that_fails_is_unfit(tmp_path: Path, script: str) -> None:
    with pytest.raises(Unfit, match="ends with status"):
        await check_of(tmp_path, program(tmp_path / "ffmpeg", script))


async def test_an_ffmpeg_that_is_not_there_or_none_is_unfit(tmp_path: Path) -> None:
    with pytest.raises(Unfit, match="does not run"):
        await check_of(tmp_path, tmp_path / "nothing")
    (tmp_path / "text").write_text("I am no program")
    with pytest.raises(Unfit, match="does not run"):
        await check_of(tmp_path, tmp_path / "text")


async def test_a_model_that_hears_speech_is_fit(tmp_path: Path) -> None:
    with open_pipeline(Settings(model="demo", scratch=tmp_path)) as pipeline:
        await check_hearing(pipeline)


async def test_a_model_that_hears_nothing_is_unfit(tmp_path: Path) -> None:
    with (
        faulty_pipeline(Settings(scratch=tmp_path), DeafEngine()) as pipeline,
        pytest.raises(Unfit, match="hears nothing"),
    ):
        await check_hearing(pipeline)


async def test_a_device_that_fails_is_unfit(tmp_path: Path) -> None:
    with (
        faulty_pipeline(Settings(scratch=tmp_path), FaultyEngine(1, batches=0)) as pipeline,
        pytest.raises(Unfit, match="illegal memory access"),
    ):
        await check_hearing(pipeline)


async def test_the_scripted_engine_which_hears_no_speech_is_fit(tmp_path: Path) -> None:
    settings = Settings(engine="tones", scratch=tmp_path)
    with faulty_pipeline(settings, DeafEngine()) as pipeline:
        await check_hearing(pipeline)


async def test_a_worker_without_room_for_a_jobs_files_is_unfit(tmp_path: Path) -> None:
    settings = Settings(engine="tones", scratch=tmp_path, scratch_least_bytes=1 << 60)
    with (
        faulty_pipeline(settings, ToneEngine()) as pipeline,
        pytest.raises(Unfit, match="scratch_full"),
    ):
        await check_scratch(pipeline)
