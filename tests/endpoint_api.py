"""The client side of RunPod's queue API on loopback, in front of the worker side.

Jobs of clients are assigned to a real worker, and its results are returned in the platform's
format. On request it injects faults: 429 or 500, dropped connections, or any end of a job that the
platform documents.
"""

import asyncio
import json
import time
from collections import Counter, deque
from dataclasses import dataclass, field
from typing import Any, Self
from uuid import uuid4

from aiohttp import web

from job_api import JobApi

KEY = "rpa_loopback"
_LATE_SECONDS = 0.3


@dataclass(slots=True)
class Posted:
    """A submitted job; times by the monotonic clock."""

    payload: Any
    sent: float = field(default_factory=time.monotonic)
    ended: dict[str, Any] | None = None
    """The outcome set by the platform, regardless of the worker."""


class EndpointApi(JobApi):
    """One complete endpoint: `url` for clients, the methods of `JobApi` for the worker."""

    def __init__(self, max_run_bytes: int = 10_000_000, max_runsync_bytes: int = 20_000_000):
        super().__init__()
        self.posted: dict[str, Posted] = {}
        self.cancelled: list[str] = []
        """Jobs cancelled by a client."""
        self.received: Counter[str] = Counter()
        """Requests of clients by route, including failed ones."""
        self.endings: deque[dict[str, Any]] = deque()
        """Outcomes of the next jobs, which are not assigned to a worker."""
        self._sent_chunks: Counter[str] = Counter()
        self._limits = {"run": max_run_bytes, "runsync": max_runsync_bytes}
        self._front: web.AppRunner | None = None
        self.url = ""

    def __enter__(self) -> Self:
        super().__enter__()
        asyncio.run_coroutine_threadsafe(self._open(), self._loop).result()
        return self

    def __exit__(self, *_: object) -> None:
        assert self._front is not None
        asyncio.run_coroutine_threadsafe(self._front.cleanup(), self._loop).result()
        super().__exit__()

    @property
    def base_url(self) -> str:
        """What `RUNPOD_ENDPOINT_BASE_URL` is to be."""
        return self.url.rpartition("/")[0]

    def inputs(self) -> list[Any]:
        """What callers have posted, in their order."""
        return [posted.payload for posted in self.posted.values()]

    async def _open(self) -> None:
        app = web.Application(client_max_size=1 << 30, middlewares=[self._judge])
        app.router.add_post("/v2/{endpoint}/run", self._run, name="run")
        app.router.add_post("/v2/{endpoint}/runsync", self._runsync, name="runsync")
        app.router.add_get("/v2/{endpoint}/status/{job}", self._status, name="status")
        app.router.add_get("/v2/{endpoint}/stream/{job}", self._stream_to_caller, name="stream")
        app.router.add_post("/v2/{endpoint}/cancel/{job}", self._cancel, name="cancel")
        app.router.add_get("/v2/{endpoint}/health", self._health, name="health")
        self._front = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
        await self._front.setup()
        await web.TCPSite(self._front, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{self._front.addresses[0][1]}/v2/loopback"

    @web.middleware
    async def _judge(self, request: web.Request, handler: Any) -> web.StreamResponse:
        route = request.match_info.route.name or "nothing"
        self.received[route] += 1
        if request.headers.get("Authorization") != f"Bearer {KEY}":
            return web.json_response({"error": "unauthorized"}, status=401)
        if route == "nothing" or request.match_info["endpoint"] != "loopback":
            return web.Response(status=404, text="404 page not found")
        fault = self.faults[route].popleft() if self.faults[route] else None
        if isinstance(fault, int):
            return web.Response(status=fault, headers={"Retry-After": "0"})
        answer: web.StreamResponse = web.Response()
        if fault != "drop":
            answer = await handler(request)
        if fault == "late":
            await asyncio.sleep(_LATE_SECONDS)
        elif fault is not None:
            assert request.transport is not None
            request.transport.abort()
        return answer

    async def _take_in(self, request: web.Request, route: str) -> str | web.Response:
        content = await request.read()
        if len(content) > self._limits[route]:
            return web.json_response({"error": "exceeded max body size"}, status=400)
        body = json.loads(content)
        if not isinstance(body.get("input"), dict):
            return web.json_response({"error": "input is required"}, status=400)
        job = f"{'sync-' if route == 'runsync' else ''}{uuid4()}-e1"
        self.posted[job] = Posted(body["input"])
        if self.endings:
            self.posted[job].ended = self.endings.popleft()
        else:
            self.submit(job, body["input"])
        return job

    async def _run(self, request: web.Request) -> web.Response:
        job = await self._take_in(request, "run")
        if isinstance(job, web.Response):
            return job
        return web.json_response({"id": job, "status": "IN_QUEUE"})

    async def _runsync(self, request: web.Request) -> web.Response:
        job = await self._take_in(request, "runsync")
        if isinstance(job, web.Response):
            return job
        ends = time.monotonic() + int(request.query.get("wait", "90000")) / 1000
        while self._status_document(job)["status"].startswith("IN_") and time.monotonic() < ends:  # noqa: ASYNC110
            await asyncio.sleep(0.02)  # the worker side runs in another thread
        return web.json_response(self._status_document(job))

    async def _status(self, request: web.Request) -> web.Response:
        job = request.match_info["job"]
        if job not in self.posted:
            return web.json_response({"error": "job not found"}, status=404)
        return web.json_response(self._status_document(job))

    async def _stream_to_caller(self, request: web.Request) -> web.Response:
        """Return the partial results since the last request."""
        job = request.match_info["job"]
        if job not in self.posted:
            return web.json_response({"error": "job not found"}, status=404)
        document, delivery = self._status_document(job), self.deliveries.get(job)
        with self._changed:
            new = delivery.chunks[self._sent_chunks[job] :] if delivery else []
            self._sent_chunks[job] += len(new)
        ended = not document["status"].startswith("IN_")
        status = "IN_PROGRESS" if new and ended else document["status"]
        return web.json_response({"status": status, "stream": [{"output": one} for one in new]})

    async def _cancel(self, request: web.Request) -> web.Response:
        job = request.match_info["job"]
        if job not in self.posted:
            return web.json_response({"error": "job not found"}, status=404)
        if self._status_document(job)["status"].startswith("IN_"):
            self.cancelled.append(job)
            self.posted[job].ended = {"status": "CANCELLED"}
            if not self.withdraw(job):
                self.stop(job)
        return web.json_response(self._status_document(job))

    async def _health(self, _: web.Request) -> web.Response:
        counts = Counter(self._status_document(job)["status"] for job in self.posted)
        jobs = {"inQueue": counts["IN_QUEUE"], "completed": counts["COMPLETED"]}
        return web.json_response({"jobs": jobs, "workers": {"idle": 1}})

    def _status_document(self, job: str) -> dict[str, Any]:
        """The platform's status document of a job."""
        posted, delivery = self.posted[job], self.deliveries.get(job)
        if posted.ended is not None:
            return {"id": job, **posted.ended}
        assert delivery is not None
        if not delivery.taken:
            return {"id": job, "status": "IN_QUEUE"}
        times: dict[str, Any] = {"delayTime": round((delivery.taken - posted.sent) * 1000)}
        if not delivery.bodies:
            so_far = {"output": delivery.progress[-1]} if delivery.progress else {}
            return {"id": job, "status": "IN_PROGRESS", **so_far, **times}
        body = delivery.bodies[-1]
        status = "FAILED" if isinstance(body.get("error"), str) else "COMPLETED"
        times["executionTime"] = round((delivery.done - delivery.taken) * 1000)
        return {"id": job, "status": status, **body, **times, "workerId": "worker-1"}
