"""What must work before the first job is taken."""

import asyncio
import subprocess

from parakeet_worker.errors import EngineLost
from parakeet_worker.pipeline import Pipeline
from parakeet_worker.request import FileSource, Request
from parakeet_worker.verification import CLIP

_FFMPEG_SECONDS = 20.0


class Unfit(Exception):
    """This worker cannot do its work."""


async def check_scratch(pipeline: Pipeline) -> None:
    """There is room for a job's files; raises `Unfit`."""
    shortage = pipeline.scratch.shortage()
    if shortage is not None:
        raise Unfit(str(shortage))


async def check_ffmpeg(pipeline: Pipeline) -> None:
    """ffmpeg runs on this machine; raises `Unfit`."""
    command = [str(pipeline.ffmpeg), "-hide_banner", "-version"]
    try:
        ran = await asyncio.to_thread(
            subprocess.run,
            command,
            capture_output=True,
            timeout=_FFMPEG_SECONDS,
            check=False,
            start_new_session=True,
        )
    except (OSError, subprocess.TimeoutExpired) as failure:
        raise Unfit(f"{pipeline.ffmpeg} does not run: {failure}") from failure
    if ran.returncode != 0:
        raise Unfit(f"{pipeline.ffmpeg} ends with status {ran.returncode}")


async def check_hearing(pipeline: Pipeline) -> None:
    """The model hears words in a clip of clear speech, on the device that will serve.

    Random weights hear something too, and a broken GPU mostly does not come back; so this finds
    a device that does not answer, and a model that hears nothing. Raises `Unfit`.
    """
    if pipeline.settings.engine == "tones":
        return
    try:
        heard = await pipeline.transcribe(Request(source=FileSource(CLIP)))
    except EngineLost as failure:
        raise Unfit(str(failure)) from failure
    if not heard.words:
        raise Unfit("the model hears nothing in a clip of clear speech")
