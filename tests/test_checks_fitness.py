"""Checks before the first job; that a worker exits if one fails is tested in test_serverless."""

from pathlib import Path

import pytest

from faulty_worker import FaultyEngine, faulty_pipeline
from odd_workers import SilentEngine
from parakeet_worker.checks.fitness import (
    FitnessError,
    check_ffmpeg,
    check_scratch,
    check_transcription,
)
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


async def test_a_working_ffmpeg_passes(tmp_path: Path, ffmpeg: Path) -> None:
    await check_of(tmp_path, ffmpeg)


@pytest.mark.parametrize("script", ["exit 1", "kill -SEGV $$"])
async def test_a_failing_ffmpeg_does_not_pass(tmp_path: Path, script: str) -> None:
    with pytest.raises(FitnessError, match="exits with status"):
        await check_of(tmp_path, program(tmp_path / "ffmpeg", script))


async def test_a_missing_or_invalid_ffmpeg_does_not_pass(tmp_path: Path) -> None:
    with pytest.raises(FitnessError, match="does not run"):
        await check_of(tmp_path, tmp_path / "nothing")
    (tmp_path / "text").write_text("not a program")
    with pytest.raises(FitnessError, match="does not run"):
        await check_of(tmp_path, tmp_path / "text")


async def test_a_model_that_transcribes_speech_passes(tmp_path: Path) -> None:
    with open_pipeline(Settings(model="demo", scratch=tmp_path)) as pipeline:
        await check_transcription(pipeline)


async def test_a_model_that_emits_nothing_does_not_pass(tmp_path: Path) -> None:
    with (
        faulty_pipeline(Settings(scratch=tmp_path), SilentEngine()) as pipeline,
        pytest.raises(FitnessError, match="emits no words"),
    ):
        await check_transcription(pipeline)


async def test_a_failing_device_does_not_pass(tmp_path: Path) -> None:
    with (
        faulty_pipeline(Settings(scratch=tmp_path), FaultyEngine(1, batches=0)) as pipeline,
        pytest.raises(FitnessError, match="illegal memory access"),
    ):
        await check_transcription(pipeline)


async def test_the_tones_engine_is_not_checked(tmp_path: Path) -> None:
    settings = Settings(engine="tones", scratch=tmp_path)
    with faulty_pipeline(settings, SilentEngine()) as pipeline:
        await check_transcription(pipeline)


async def test_a_worker_without_space_for_job_files_does_not_pass(tmp_path: Path) -> None:
    settings = Settings(engine="tones", scratch=tmp_path, scratch_least_bytes=1 << 60)
    with (
        faulty_pipeline(settings, ToneEngine()) as pipeline,
        pytest.raises(FitnessError, match="scratch_full"),
    ):
        await check_scratch(pipeline)
