"""The queue worker: load the model, take jobs until a signal, exit when the engine is lost."""

import asyncio
import logging
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

from parakeet_worker import heap
from parakeet_worker.bootstrap import variables
from parakeet_worker.checks import fitness
from parakeet_worker.entrypoints.queue import local_api, sdk
from parakeet_worker.entrypoints.queue.delivery import Delivery
from parakeet_worker.entrypoints.queue.handler import JobLog, Segment, answer_input, answer_job
from parakeet_worker.entrypoints.queue.loop import Job, JobLoop
from parakeet_worker.errors import SetupError
from parakeet_worker.logs import JsonLines, NonBlockingHandler, PlainLines
from parakeet_worker.pipeline import Pipeline
from parakeet_worker.remote import retries
from parakeet_worker.settings import Settings
from parakeet_worker.worker import VARIABLES, open_pipeline

log = logging.getLogger(__name__)

Handler = Callable[[dict[str, Any]], Awaitable[object]]

_LOCAL_API = "--rp_serve_api"
_LOCAL = ("--test_input", _LOCAL_API)


def handler_of(pipeline: Pipeline) -> Handler:
    """The handler for the SDK's public `start`."""

    async def handle(job: dict[str, Any]) -> object:
        return await answer_input(pipeline, job.get("input"), JobLog())

    return handle


def serve_public(pipeline: Pipeline) -> None:
    """Serve through the SDK's public `start`: for its local modes and for unknown SDK versions."""
    runpod = sdk.import_sdk()
    handle = handler_of(pipeline)
    options: dict[str, Any] = {"concurrency_modifier": lambda _: pipeline.settings.concurrency}

    async def handle_or_end(job: dict[str, Any]) -> object:
        answer = await handle(job)
        if pipeline.batcher.lost:
            # For every answer, including lists: the worker takes no more jobs and is replaced.
            options["refresh_worker"] = True
        return answer

    options["handler"] = handle_or_end
    if _LOCAL_API in sys.argv:
        _stream_locally(pipeline)
    runpod.serverless.start(options)


def _stream_locally(pipeline: Pipeline) -> None:
    async def handle(payload: object, segment: Segment) -> object:
        return await answer_input(pipeline, payload, JobLog(), segment)

    try:
        local_api.install(handle)
    except sdk.SdkChanged as change:
        log.warning("unsupported SDK version, its local API does not stream: %s", change)


async def serve_queue(pipeline: Pipeline, parts: sdk.Sdk) -> None:
    """Serve through `JobLoop` until a signal arrives or the engine is lost."""
    settings = pipeline.settings

    async def answer(job: Job, delivery: Delivery) -> None:
        try:
            await answer_job(pipeline, job, delivery)
        finally:
            if pipeline.batcher.lost:
                loop.end()

    loop = JobLoop(
        parts,
        answer,
        slots=settings.concurrency,
        delivery_seconds=settings.delivery_timeout_seconds,
        when_idle=heap.free,
        shortage=pipeline.scratch.shortage,
    )
    checks = (fitness.check_scratch, fitness.check_ffmpeg, fitness.check_transcription)
    _register(*(partial(check, pipeline) for check in checks))
    await parts.check_fitness()
    # Fork the heartbeat before installing signal handlers, or it would ignore SIGTERM too.
    parts.start_heartbeat()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, loop.end)
    log.info("taking jobs, %d at a time", settings.concurrency)
    await loop.run()
    log.info("no more jobs are taken; all taken jobs are answered")
    if loop.unusable is not None:
        sys.exit(f"parakeet: {loop.unusable}; exiting so that the worker is replaced")


def _register(*checks: Callable[[], Awaitable[None]]) -> None:
    runpod = sdk.import_sdk()
    for check in checks:

        async def named(check: Callable[[], Awaitable[None]] = check) -> None:
            await check()

        named.__name__ = getattr(check, "func", check).__name__
        runpod.serverless.register_fitness_check(named)


def serve(pipeline: Pipeline, *, local: bool = False) -> None:
    """Serve until a signal, or exit with status 1 if the engine is lost."""
    if local:
        serve_public(pipeline)
        return
    try:
        parts = sdk.load()
    except sdk.SdkChanged as change:
        log.warning("unsupported SDK version, using its public job loop: %s", change)
        serve_public(pipeline)
        return
    asyncio.run(serve_queue(pipeline, parts))
    if pipeline.batcher.lost:
        sys.exit("parakeet: the engine is lost; exiting so that the worker is replaced")


def main() -> None:
    """Load the model, then take jobs, or run the SDK's local API or `--test_input`."""
    for each in (signal.SIGTERM, signal.SIGINT):
        signal.signal(each, lambda number, _: sys.exit(128 + number))
    warnings = variables.clean(os.environ)
    # The SDK reads this once, at import; its default prints every transcript to the log.
    for name, value in {"RUNPOD_LOG_LEVEL": "INFO", **VARIABLES}.items():
        os.environ.setdefault(name, value)
    retries.log_retries()
    lines = NonBlockingHandler(1 if os.environ.get("RUNPOD_ENDPOINT_ID") else 2)
    lines.setFormatter(JsonLines() if os.environ.get("RUNPOD_ENDPOINT_ID") else PlainLines())
    logging.basicConfig(level=logging.INFO, handlers=[lines])
    for warning in warnings:
        log.warning("%s", warning)
    local_mode = any(argument.startswith(_LOCAL) for argument in sys.argv[1:])
    local = local_mode or not os.environ.get("RUNPOD_WEBHOOK_GET_JOB")
    try:
        settings = Settings.from_environment(os.environ)
        with open_pipeline(settings) as pipeline:
            serve(pipeline, local=local)
    except SetupError as error:
        sys.exit(f"parakeet: {error}")
    finally:
        lines.close()  # before the exit message is printed
