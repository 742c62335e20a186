"""The queue worker: load the model, take jobs until a signal, exit when the engine is lost."""

import asyncio
import logging
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

from parakeet_worker.bootstrap import variables
from parakeet_worker.checks import fitness
from parakeet_worker.entrypoints.queue import sdk
from parakeet_worker.entrypoints.queue.delivery import Delivery
from parakeet_worker.entrypoints.queue.handler import Record, answer_job, answered
from parakeet_worker.entrypoints.queue.loop import Job, JobLoop
from parakeet_worker.errors import SetupError
from parakeet_worker.logs import JsonLines, NonBlockingHandler, PlainLines
from parakeet_worker.pipeline import Pipeline
from parakeet_worker.remote import retries
from parakeet_worker.settings import Settings
from parakeet_worker.worker import VARIABLES, give_back_memory, open_pipeline

log = logging.getLogger(__name__)

Handler = Callable[[dict[str, Any]], Awaitable[object]]

_LOCAL = ("--test_input", "--rp_serve_api")


def handler_of(pipeline: Pipeline) -> Handler:
    """The function that the SDK's public start calls with each job."""

    async def handle(job: dict[str, Any]) -> object:
        return await answered(pipeline, job.get("input"), Record())

    return handle


def serve_public(pipeline: Pipeline) -> None:
    """By the SDK's public start: its local modes, and an SDK that is not the known one."""
    import runpod

    handle = handler_of(pipeline)
    options: dict[str, Any] = {"concurrency_modifier": lambda _: pipeline.settings.concurrency}

    async def handle_or_end(job: dict[str, Any]) -> object:
        answer = await handle(job)
        if pipeline.batcher.lost:
            # Beside any answer, a list's too: another worker is asked for, no more jobs are taken.
            options["refresh_worker"] = True
        return answer

    options["handler"] = handle_or_end
    runpod.serverless.start(options)


async def serve_queue(pipeline: Pipeline, parts: sdk.Sdk) -> None:
    """By our own loop, until a signal ends it or the engine is lost."""
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
        when_idle=give_back_memory,
        shortage=pipeline.scratch.shortage,
    )
    checks = (fitness.check_scratch, fitness.check_ffmpeg, fitness.check_hearing)
    _register(*(partial(check, pipeline) for check in checks))
    await parts.check_fitness()
    # The heartbeat is a process that is forked off here, and ended by a signal when this one is
    # done: it must not inherit that the signal is none of its business.
    parts.start_heartbeat()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, loop.end)
    log.info("taking jobs, %d at a time", settings.concurrency)
    await loop.run()
    log.info("no more jobs are taken, and all that were are answered")
    if loop.unusable is not None:
        sys.exit(f"parakeet: {loop.unusable}; the process ends so that it is replaced")


def _register(*checks: Callable[[], Awaitable[None]]) -> None:
    import runpod

    for check in checks:

        async def named(check: Callable[[], Awaitable[None]] = check) -> None:
            await check()

        named.__name__ = getattr(check, "func", check).__name__
        runpod.serverless.register_fitness_check(named)


def serve(pipeline: Pipeline, *, local: bool = False) -> None:
    """Answer jobs until a signal ends it, or the loss of the engine, with exit status 1."""
    if local:
        serve_public(pipeline)
        return
    try:
        parts = sdk.load()
    except sdk.SdkChanged as change:
        log.warning("this SDK is not the known one, its own job loop serves: %s", change)
        serve_public(pipeline)
        return
    asyncio.run(serve_queue(pipeline, parts))
    if pipeline.batcher.lost:
        sys.exit("parakeet: the engine is lost; another worker is asked for")


def main() -> None:
    """Load the model, then take jobs, or hand over to the SDK's local API or `--test_input`."""
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
    asked = any(argument.startswith(_LOCAL) for argument in sys.argv[1:])
    local = asked or not os.environ.get("RUNPOD_WEBHOOK_GET_JOB")
    try:
        settings = Settings.from_environment(os.environ)
        with open_pipeline(settings) as pipeline:
            serve(pipeline, local=local)
    except SetupError as error:
        sys.exit(f"parakeet: {error}")
    finally:
        lines.close()  # before what ends the process is said
