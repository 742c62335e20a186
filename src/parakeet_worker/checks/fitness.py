"""Checks that a worker must pass before it takes the first job."""

import asyncio
import subprocess

from parakeet_worker.checks.verify import CLIP
from parakeet_worker.errors import EngineLost
from parakeet_worker.pipeline import Pipeline
from parakeet_worker.request import FileSource, Request

_FFMPEG_TIMEOUT_SECONDS = 20.0


class FitnessError(Exception):
    """This worker cannot process jobs."""


async def check_scratch(pipeline: Pipeline) -> None:
    """Check the free space for job files; raises `FitnessError`."""
    shortage = pipeline.scratch.shortage()
    if shortage is not None:
        raise FitnessError(str(shortage))


async def check_ffmpeg(pipeline: Pipeline) -> None:
    """Check that ffmpeg runs; raises `FitnessError`."""
    command = [str(pipeline.ffmpeg), "-hide_banner", "-version"]
    try:
        completed = await asyncio.to_thread(
            subprocess.run,
            command,
            capture_output=True,
            timeout=_FFMPEG_TIMEOUT_SECONDS,
            check=False,
            start_new_session=True,
        )
    except (OSError, subprocess.TimeoutExpired) as failure:
        raise FitnessError(f"{pipeline.ffmpeg} does not run: {failure}") from failure
    if completed.returncode != 0:
        raise FitnessError(f"{pipeline.ffmpeg} exits with status {completed.returncode}")


async def check_transcription(pipeline: Pipeline) -> None:
    """Check that a clip of clear speech gives words; raises `FitnessError`.

    Finds a device that does not answer, and a model that emits nothing. The words themselves are
    not compared, since any model may be configured.
    """
    if pipeline.settings.engine == "tones":
        return
    try:
        transcript = await pipeline.transcribe(Request(source=FileSource(CLIP)))
    except EngineLost as failure:
        raise FitnessError(str(failure)) from failure
    if not transcript.words:
        raise FitnessError("the model emits no words for a clip of clear speech")
