"""RunPod's job API on loopback, as faithful as the SDK can tell.

It holds takes and stop polls open as the platform does, hands out jobs singly or in batches, stops
jobs that are told to, and keeps what the worker posts. What it does not do is retry or expire a
job. The bench stands on it too, and finds it here as it finds the other things of the tests.
"""

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Self

from aiohttp import web

_HOLD_SECONDS = 5.0
_LOOK_SECONDS = 0.02
_MAX_RESULT_BYTES = 20 * 1024 * 1024
_ENDPOINT = "loopback"
_WORKER = "worker-1"


@dataclass(slots=True)
class Delivery:
    """What became of a job; times by the monotonic clock."""

    taken: float = 0.0
    done: float = 0.0
    bodies: list[Any] = field(default_factory=list)
    """Everything that was posted for it: one body, if all is well."""


class JobApi:
    """One endpoint with one queue; `submit` from any thread, `result` waits for the answer."""

    def __init__(self) -> None:
        self._queue: deque[dict[str, Any]] = deque()
        self._stops: list[str] = []
        self.stopped: set[str] = set()
        """Jobs that the worker was told to give up."""
        self.deliveries: dict[str, Delivery] = {}
        self._changed = threading.Condition()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._runner: web.AppRunner | None = None
        self.port = 0
        self.takes = 0

    def __enter__(self) -> Self:
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._start(), self._loop).result()
        return self

    def __exit__(self, *_: object) -> None:
        assert self._runner is not None
        asyncio.run_coroutine_threadsafe(self._runner.cleanup(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def submit(self, job: str, payload: object) -> None:
        with self._changed:
            self._queue.append({"id": job, "input": payload})
            self.deliveries[job] = Delivery()
            self._changed.notify_all()

    def stop(self, job: str) -> None:
        """Tell the worker to give a job up, which it may have answered already."""
        with self._changed:
            self._stops.append(job)
            self.stopped.add(job)

    def asked(self, timeout_seconds: float) -> bool:
        """Wait until a worker asks for jobs; whether one does."""
        with self._changed:
            return self._changed.wait_for(lambda: self.takes > 0, timeout_seconds)

    @property
    def queued(self) -> int:
        """Jobs that no worker has taken."""
        return len(self._queue)

    def taken(self, job: str, timeout_seconds: float) -> bool:
        """Wait until a worker has taken `job`; whether one has."""
        with self._changed:
            return self._changed.wait_for(lambda: self.deliveries[job].taken > 0, timeout_seconds)

    def result(self, job: str, timeout_seconds: float = 60.0) -> Any:
        """The body that the worker posted for `job`."""
        delivery = self.deliveries[job]
        with self._changed:
            arrived = self._changed.wait_for(lambda: delivery.bodies, timeout_seconds)
            assert arrived, f"no result for {job}"
            return delivery.bodies[-1]

    def answered(self, jobs: Sequence[str], timeout_seconds: float) -> bool:
        """Wait until every one of `jobs` has an answer; whether they have."""
        ends = time.monotonic() + timeout_seconds
        waiting = [self.deliveries[job] for job in jobs]
        with self._changed:
            while waiting := [delivery for delivery in waiting if not delivery.bodies]:
                if not self._changed.wait(ends - time.monotonic()):
                    return False
        return True

    def environment(self, home: Path) -> dict[str, str]:
        """What the platform sets for a worker; `home` keeps the user's own key file out."""
        base = f"http://127.0.0.1:{self.port}/v2/{_ENDPOINT}"
        return {
            "RUNPOD_WEBHOOK_GET_JOB": f"{base}/job-take/$ID?gpu=none",
            "RUNPOD_WEBHOOK_POST_OUTPUT": f"{base}/job-done/$RUNPOD_POD_ID/$ID?gpu=none",
            "RUNPOD_WEBHOOK_POST_STREAM": f"{base}/job-stream/$RUNPOD_POD_ID/$ID?gpu=none",
            "RUNPOD_WEBHOOK_PING": f"{base}/ping/$RUNPOD_POD_ID?gpu=none",
            "RUNPOD_PING_INTERVAL": "1000",
            "RUNPOD_POD_ID": _WORKER,
            "RUNPOD_ENDPOINT_ID": _ENDPOINT,
            "RUNPOD_AI_API_KEY": "key",
            "RUNPOD_SKIP_AUTO_SYSTEM_CHECKS": "true",
            "RUNPOD_SKIP_GPU_CHECK": "true",
            "HOME": str(home),
        }

    async def _start(self) -> None:
        app = web.Application(client_max_size=_MAX_RESULT_BYTES)
        app.router.add_get(f"/v2/{_ENDPOINT}/job-take/{{worker}}", self._take)
        app.router.add_get(f"/v2/{_ENDPOINT}/job-take-batch/{{worker}}", self._take)
        app.router.add_get(f"/v2/{_ENDPOINT}/job-stop/{{worker}}", self._stop)
        app.router.add_get(f"/v2/{_ENDPOINT}/ping/{{worker}}", self._ping)
        app.router.add_post(f"/v2/{_ENDPOINT}/job-done/{{worker}}/{{job}}", self._done)
        self._runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.port = self._runner.addresses[0][1]

    async def _take(self, request: web.Request) -> web.Response:
        with self._changed:
            self.takes += 1
            self._changed.notify_all()
        wanted = int(request.query.get("batch_size", "1"))
        for _ in range(int(_HOLD_SECONDS / _LOOK_SECONDS)):
            with self._changed:
                taken = [self._queue.popleft() for _ in range(min(wanted, len(self._queue)))]
                for job in taken:
                    self.deliveries[job["id"]].taken = time.monotonic()
                self._changed.notify_all()
            if taken:
                batched = "/job-take-batch/" in request.path
                return web.json_response(taken if batched else taken[0])
            await asyncio.sleep(_LOOK_SECONDS)
        return web.Response(status=204)

    async def _stop(self, _: web.Request) -> web.Response:
        for _ in range(int(_HOLD_SECONDS / _LOOK_SECONDS)):
            with self._changed:
                stops, self._stops = self._stops, []
            if stops:
                return web.json_response({"jobsToStop": stops})
            await asyncio.sleep(_LOOK_SECONDS)
        return web.Response(status=204)

    async def _ping(self, _: web.Request) -> web.Response:
        return web.Response(text="ok")

    async def _done(self, request: web.Request) -> web.Response:
        body = json.loads(await request.text())
        with self._changed:
            delivery = self.deliveries[request.match_info["job"]]
            delivery.done = time.monotonic()
            delivery.bodies.append(body)
            self._changed.notify_all()
        return web.Response(text="ok")


@contextmanager
def running_worker(
    api: JobApi,
    home: Path,
    environment: Mapping[str, str],
    *,
    module: Sequence[str] = ("parakeet_worker.entrypoints.serverless",),
    log: IO[str] | int = subprocess.PIPE,
) -> Iterator[subprocess.Popen[str]]:
    """The worker as RunPod runs it, in a process group of its own so that all of it ends.

    What many jobs make it say is more than a pipe holds that nobody reads: that goes to `log`.
    """
    worker = subprocess.Popen(
        [sys.executable, "-m", *module],
        env={"PATH": os.environ["PATH"], **api.environment(home), **environment},
        cwd=home,
        start_new_session=True,
        stdout=log,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        yield worker
    finally:
        if worker.poll() is None:
            os.killpg(worker.pid, signal.SIGKILL)
        worker.communicate()
