"""RunPod's way in: `python -m parakeet_worker.entrypoints.serverless`."""

import logging
import os
import sys
from collections.abc import Awaitable, Callable
from typing import Any

from parakeet_worker.errors import EngineLost, ParakeetError, SetupError
from parakeet_worker.pipeline import Pipeline
from parakeet_worker.settings import Settings
from parakeet_worker.worker import open_pipeline

log = logging.getLogger(__name__)

Handler = Callable[[dict[str, Any]], Awaitable[object]]


def handler_of(pipeline: Pipeline) -> Handler:
    """The function that the RunPod SDK calls with each job."""

    async def handle(job: dict[str, Any]) -> object:
        try:
            return await pipeline.answer(job.get("input"))
        except ParakeetError as error:
            log.warning("job %s: %s", job.get("id"), error)
            replaced = {"refresh_worker": True} if isinstance(error, EngineLost) else {}
            return {**error.document(), **replaced}

    return handle


def serve(pipeline: Pipeline) -> None:
    """Answer jobs until the SDK's loop ends: by a signal, or because the engine is lost."""
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


def main() -> None:
    """Load the model, then hand over to the SDK's job loop, local API or `--test_input`."""
    # The SDK reads this once, at import; its default prints every transcript to the log.
    os.environ.setdefault("RUNPOD_LOG_LEVEL", "INFO")
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    try:
        settings = Settings.from_environment(os.environ)
        with open_pipeline(settings) as pipeline:
            serve(pipeline)
    except SetupError as error:
        sys.exit(f"parakeet: {error}")


if __name__ == "__main__":
    main()
