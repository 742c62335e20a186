"""RunPod's job API on loopback, indistinguishable for the SDK.

It holds requests for jobs and stops open as the platform does, assigns jobs singly or in batches,
sends stops, stores what the worker posts, and injects faults on request. It does not retry or
expire jobs. The benchmarks use it too.
"""

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Literal, Self, TypeAlias

from aiohttp import web

from parakeet_worker.entrypoints.queue.sdk import Sdk

Fault: TypeAlias = int | Literal["drop", "lose", "garbage"]
"""A status; a connection that is dropped immediately, or after the request was processed; or an
unparsable response."""

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
    """Every posted result; normally one."""
    streamed: list[bool] = field(default_factory=list)
    """For each result, whether it is marked as the end of a stream."""
    chunks: list[Any] = field(default_factory=list)
    """Streamed partial results."""
    progress: list[Any] = field(default_factory=list)
    order: list[str] = field(default_factory=list)
    """`chunk`, `progress` and `done`, in the order of arrival."""


class JobApi:
    """One endpoint with one queue; `submit` from any thread, `result` waits for the answer."""

    def __init__(
        self,
        *,
        hold_seconds: float = _HOLD_SECONDS,
        max_result_bytes: int = _MAX_RESULT_BYTES,
        too_large_status: int = 400,
    ) -> None:
        self._hold_seconds = hold_seconds
        self._max_result_bytes = max_result_bytes
        self._too_large_status = too_large_status
        self.requests: Counter[str] = Counter()
        """The worker's requests by route, including failed ones."""
        self.faults: dict[str, deque[Fault]] = defaultdict(deque)
        """Faults of the next requests to a route: `job-take`, `job-stop`, `job-done`,
        `job-stream`, and `progress`, which shares the route of results."""
        self.wire_open = True
        """If false, assigned jobs stay in transit."""
        self.results_open = True
        """If false, posted results stay in transit."""
        self.progress_delay_seconds = 0.0
        """Duration of a progress request."""
        self.pinged: set[str] = set()
        """Jobs named by heartbeats."""
        self.unhealthy: list[dict[str, str]] = []
        """Reports of workers that failed their checks."""
        self.open_takes = 0
        """Requests for jobs that are open now."""
        self._queue: deque[dict[str, Any]] = deque()
        self._stops: list[str] = []
        self.stopped: set[str] = set()
        """Jobs whose stop was sent to the worker."""
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

    @contextmanager
    def changing(self) -> Iterator[None]:
        """Submit several jobs at the same moment."""
        with self._changed:
            yield

    def submit_text(self, job: str, text: str) -> None:
        """Submit a job with this text as its input; it may be invalid JSON."""
        with self._changed:
            self._queue.append({"id": job, "text": text})
            self.deliveries[job] = Delivery()
            self._changed.notify_all()

    def withdraw(self, job: str) -> bool:
        """Remove a job that no worker has taken; return whether it was removed."""
        with self._changed:
            waiting = [entry for entry in self._queue if entry["id"] == job]
            for entry in waiting:
                self._queue.remove(entry)
        return bool(waiting)

    @property
    def stops_fetched(self) -> bool:
        """Whether the worker has fetched every stop."""
        return not self._stops

    def stop(self, job: str) -> None:
        """Send a stop for a job, which may already have a result."""
        with self._changed:
            self._stops.append(job)
            self.stopped.add(job)

    def polled(self, timeout_seconds: float = 60.0) -> bool:
        """Wait until a worker requests jobs; return whether one does."""
        with self._changed:
            return self._changed.wait_for(lambda: self.open_takes > 0, timeout_seconds)

    def wait_until(self, condition: Callable[[], bool], timeout_seconds: float = 60.0) -> None:
        """Wait for a state that callers or the worker cause."""
        ends = time.monotonic() + timeout_seconds
        while not condition():
            assert time.monotonic() < ends, "it did not come about"
            time.sleep(0.01)

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

    def sdk(self) -> Sdk:
        """The SDK's parts for a loop in this very process, at this API.

        The SDK itself reads its addresses once in the life of a process.
        """
        import aiohttp

        base = f"http://127.0.0.1:{self.port}/v2/{_ENDPOINT}"

        def take_url(most: int) -> str:
            route = "job-take-batch" if most > 1 else "job-take"
            return f"{base}/{route}/{_WORKER}?gpu=none&batch_size={most}&job_in_progress=0"

        async def stop_signals(session: aiohttp.ClientSession) -> list[str]:
            async with session.get(f"{base}/job-stop/{_WORKER}?gpu=none") as response:
                response.raise_for_status()
                if response.status != 200:
                    return []
                jobs: list[str] = (await response.json())["jobsToStop"]
                return jobs

        async def no_check() -> None:
            """Nothing is checked."""

        return Sdk(
            session=aiohttp.ClientSession,
            take_url=take_url,
            stop_signals=stop_signals,
            done_url=f"{base}/job-done/{_WORKER}/$ID?gpu=none",
            stream_url=f"{base}/job-stream/{_WORKER}/$ID?gpu=none",
            check_fitness=no_check,
            in_progress=set[str](),
            start_heartbeat=lambda: None,
        )

    async def _start(self) -> None:
        app = web.Application(client_max_size=1 << 30)
        app.router.add_get(f"/v2/{_ENDPOINT}/job-take/{{worker}}", self._take)
        app.router.add_get(f"/v2/{_ENDPOINT}/job-take-batch/{{worker}}", self._take)
        app.router.add_get(f"/v2/{_ENDPOINT}/job-stop/{{worker}}", self._stop)
        app.router.add_get(f"/v2/{_ENDPOINT}/ping/{{worker}}", self._ping)
        app.router.add_post(f"/v2/{_ENDPOINT}/job-done/{{worker}}/{{job}}", self._done)
        app.router.add_post(f"/v2/{_ENDPOINT}/job-stream/{{worker}}/{{job}}", self._stream)
        self._runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.port = self._runner.addresses[0][1]

    def _fault(self, route: str) -> Fault | None:
        with self._changed:
            self.requests[route] += 1
            self._changed.notify_all()
            return self.faults[route].popleft() if self.faults[route] else None

    async def _take(self, request: web.Request) -> web.StreamResponse:
        fault = self._fault("job-take")
        if fault is not None and fault != "lose":
            return _faulty(request, fault)
        requested = int(request.query.get("batch_size", "1"))
        try:
            with self._changed:
                self.takes += 1
                self.open_takes += 1
                self._changed.notify_all()
            taken = await self._held(lambda: self._pop(requested))
        finally:
            self.open_takes -= 1
        if not taken:
            return web.Response(status=204)
        batched = "/job-take-batch/" in request.path
        written = ", ".join(map(_written, taken))
        try:
            while not self.wire_open:  # noqa: ASYNC110  # tests open it in other threads
                await asyncio.sleep(_LOOK_SECONDS)
            text = f"[{written}]" if batched else written
            response = web.Response(text=text, content_type="application/json")
            await response.prepare(request)
            await response.write_eof()
        finally:
            if request.transport is None or request.transport.is_closing():
                self._put_back(taken)
        return response

    async def _held(self, look: Callable[[], list[Any]]) -> list[Any]:
        """Return the first non-empty result of `look`, or an empty one after the holding time."""
        ends = time.monotonic() + self._hold_seconds
        while not (entries := look()) and time.monotonic() < ends:  # noqa: ASYNC110
            await asyncio.sleep(_LOOK_SECONDS)  # jobs are submitted in other threads
        return entries

    def _pop(self, requested: int) -> list[dict[str, Any]]:
        with self._changed:
            taken = [self._queue.popleft() for _ in range(min(requested, len(self._queue)))]
            for job in taken:
                self.deliveries[job["id"]].taken = time.monotonic()
            self._changed.notify_all()
        return taken

    def _put_back(self, taken: list[dict[str, Any]]) -> None:
        """Requeue jobs whose request was disconnected."""
        with self._changed:
            for job in reversed(taken):
                self.deliveries[job["id"]].taken = 0.0
                self._queue.appendleft(job)

    def _pop_stops(self) -> list[str]:
        with self._changed:
            stops, self._stops = self._stops, []
        return stops

    async def _stop(self, request: web.Request) -> web.StreamResponse:
        fault = self._fault("job-stop")
        if fault is not None:
            return _faulty(request, fault)
        stops = await self._held(self._pop_stops)
        return web.json_response({"jobsToStop": stops}) if stops else web.Response(status=204)

    async def _ping(self, request: web.Request) -> web.Response:
        with self._changed:
            self.requests["ping"] += 1
            self.pinged.update(request.query.get("job_id", "").split(","))
            if request.query.get("status") == "unhealthy":
                self.unhealthy.append(dict(request.query))
            self._changed.notify_all()
        return web.Response(text="ok")

    async def _done(self, request: web.Request) -> web.StreamResponse:
        text = await request.text()
        body = json.loads(text, parse_constant=_no_json)
        kind = "progress" if body.get("status") == "IN_PROGRESS" else "done"
        while kind == "done" and not self.results_open:  # noqa: ASYNC110  # as above
            await asyncio.sleep(_LOOK_SECONDS)
        fault = self._fault("progress" if kind == "progress" else "job-done")
        if fault is not None and fault != "lose":
            return _faulty(request, fault)
        if kind == "progress":
            await asyncio.sleep(self.progress_delay_seconds)
        if len(text.encode()) > self._max_result_bytes:
            return web.Response(status=self._too_large_status, text="exceeded max body size")
        with self._changed:
            delivery = self.deliveries[request.match_info["job"]]
            if kind == "progress":
                delivery.progress.append(body["output"])
            else:
                delivery.done = time.monotonic()
                delivery.bodies.append(body)
                delivery.streamed.append(request.query.get("isStream") == "true")
            delivery.order.append(kind)
            self._changed.notify_all()
        return _faulty(request, fault) if fault else web.Response(text="ok")

    async def _stream(self, request: web.Request) -> web.StreamResponse:
        body = json.loads(await request.text(), parse_constant=_no_json)
        fault = self._fault("job-stream")
        if fault is not None and fault != "lose":
            return _faulty(request, fault)
        with self._changed:
            delivery = self.deliveries[request.match_info["job"]]
            delivery.chunks.append(body["output"])
            delivery.order.append("chunk")
            self._changed.notify_all()
        return _faulty(request, fault) if fault else web.Response(text="ok")


def _written(job: Mapping[str, Any]) -> str:
    text = job["text"] if "text" in job else json.dumps(job["input"])
    return f'{{"input": {text}, "id": {json.dumps(job["id"])}}}'


def _no_json(word: str) -> None:
    raise ValueError(f"{word} is not JSON")


def _faulty(request: web.Request, fault: Fault) -> web.StreamResponse:
    if isinstance(fault, int):
        if fault == 304:
            return web.Response(status=fault)
        # The target of a redirect answers everything with 200, like a login page.
        to = {"Location": request.path.rpartition("/job-")[0] + "/ping/login"}
        headers = to if 300 <= fault < 400 else {}
        return web.Response(status=fault, text="injected fault", headers=headers)
    if fault == "garbage":
        return web.Response(text='[{"id": "cut o', content_type="application/json")
    assert request.transport is not None
    request.transport.abort()
    return web.Response()


@contextmanager
def running_worker(
    api: JobApi,
    home: Path,
    environment: Mapping[str, str],
    *,
    module: Sequence[str] = ("parakeet_worker.entrypoints.queue",),
    log: IO[str] | int = subprocess.PIPE,
    prefix: Sequence[str] = (),
) -> Iterator[subprocess.Popen[str]]:
    """The worker as RunPod runs it, in its own process group so that all of it ends.

    The output of many jobs exceeds the buffer of an unread pipe: pass a file as `log`.
    `prefix` is a command that runs it under other conditions.
    """
    worker = subprocess.Popen(
        [*prefix, sys.executable, "-m", *module],
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
