"""`/stream` of the SDK's local API (`--rp_serve_api`).

The SDK chooses one kind of handler for all routes: with a generator, `/stream` works, but
`/runsync` and `/status` return a list of everything that was yielded instead of the answer. The
worker's handler is a coroutine, and `/stream` is replaced by a route that collects the segments.
"""

from collections.abc import Awaitable, Callable
from typing import Any

from parakeet_worker.entrypoints.queue.handler import Segment
from parakeet_worker.entrypoints.queue.sdk import SdkChanged

StreamingHandler = Callable[[object, Segment], Awaitable[object]]
"""Answers an `input` and passes its segments on."""


def install(handle: StreamingHandler) -> None:
    """Replace the route in the SDK, before its `start`. Raises `SdkChanged`."""
    from runpod.serverless.modules import rp_fastapi

    try:
        base, jobs = rp_fastapi.WorkerAPI, rp_fastapi.job_list
        refused = base._sim_stream  # noqa: SLF001
        find = jobs.get
    except AttributeError as failure:
        raise SdkChanged(str(failure)) from failure

    class LocalApi(base):  # type: ignore[misc, valid-type]  # the SDK has no types
        """The SDK's routes, with this `/stream`."""

        async def _sim_stream(self, job_id: str) -> dict[str, Any]:
            job = find(job_id)
            if job is None:
                answer: dict[str, Any] = await refused(self, job_id)
                return answer
            # The job stays: as on the platform, `/status` returns the whole answer afterwards.
            return await streamed(job_id, job.input, handle)

    rp_fastapi.WorkerAPI = LocalApi


async def streamed(job_id: str, payload: object, handle: StreamingHandler) -> dict[str, Any]:
    """The segments of a job, in the format of `/stream`."""
    parts: list[dict[str, Any]] = []

    async def segment(chunk: dict[str, Any]) -> bool:
        parts.append({"output": chunk})
        return True

    answer = await handle(payload, segment)
    if isinstance(answer, dict) and "error" in answer:
        return {"id": job_id, "status": "FAILED", "stream": parts, "error": answer["error"]}
    return {"id": job_id, "status": "COMPLETED", "stream": parts}
