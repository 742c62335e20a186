"""A whole worker in this process, at the queue and over HTTP, and what each input costs it.

Costs are processor time, which does not grow with what else the machine does. The loop's delay is
wall time, from which the delay of a process that does nothing but wait is taken away.
"""

import asyncio
import logging
import resource
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TypeVar

import httpx
import imageio_ffmpeg
import psutil

from job_api import JobApi
from parakeet_worker.entrypoints.http import connections, routes
from parakeet_worker.entrypoints.http.service import Service
from parakeet_worker.entrypoints.queue.delivery import Delivery
from parakeet_worker.entrypoints.queue.handler import answer_job
from parakeet_worker.entrypoints.queue.loop import Job, JobLoop
from parakeet_worker.pipeline import Pipeline
from parakeet_worker.settings import Settings
from parakeet_worker.worker import open_pipeline

Value = TypeVar("Value")

LIMIT_CPU_SECONDS = 20.0
"""Of the worker and its ffmpegs, for one input."""
LIMIT_MEMORY_BYTES = 600 << 20
"""Beyond what the worker had before, for one input."""
LIMIT_BLOCKED_SECONDS = 0.1
_BEAT_SECONDS = 0.01
_PATIENCE_SECONDS = 40.0

# Its delays, as "when how_long" by the clock that all processes share.
_SENTINEL = f"""
import time
while True:
    before = time.monotonic()
    time.sleep({_BEAT_SECONDS})
    late = time.monotonic() - before - {_BEAT_SECONDS}
    if late > 0.005:
        print(time.monotonic(), late, flush=True)
"""


@dataclass(slots=True)
class Costs:
    """The worst of all inputs so far."""

    inputs: int = 0
    cpu_seconds: float = 0.0
    memory_bytes: int = 0
    blocked_seconds: float = 0.0
    codes: set[str] = field(default_factory=set)

    def document(self) -> dict[str, object]:
        return {**asdict(self), "codes": sorted(self.codes)}


class LoopWatch:
    """How long the event loop was kept from its work."""

    def __init__(self) -> None:
        self._gaps: list[tuple[float, float, float]] = []
        self._late: list[tuple[float, float]] = []
        self._sentinel = subprocess.Popen(
            [sys.executable, "-c", _SENTINEL], stdout=subprocess.PIPE, text=True
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._sentinel.stdout is not None
        for line in self._sentinel.stdout:
            when, late = map(float, line.split())
            self._late.append((when, late))

    async def beat(self) -> None:
        """Runs on the loop."""
        while True:
            before, spent = time.monotonic(), time.process_time()
            await asyncio.sleep(_BEAT_SECONDS)
            now = time.monotonic()
            late = now - before - _BEAT_SECONDS
            if late > LIMIT_BLOCKED_SECONDS:
                # Only this process's own work can block it: no more than that counts.
                self._gaps.append((now, late, min(late, time.process_time() - spent)))

    def reset(self) -> None:
        self._gaps.clear()
        self._late.clear()

    def blocked_seconds(self) -> float:
        """The longest time since `reset`, without the machine's own delays at the time."""
        worst = 0.0
        for now, late, own in self._gaps:
            machine = sum(much for when, much in self._late if now - late - 0.1 < when < now + 0.1)
            worst = max(worst, min(own, late - machine))
        return worst

    def close(self) -> None:
        self._sentinel.kill()
        self._sentinel.wait()
        self._reader.join()
        assert self._sentinel.stdout is not None
        self._sentinel.stdout.close()


class Bugs(logging.Handler):
    """Collects log records with unexpected exceptions."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info or record.levelno >= logging.ERROR:
            self.messages.append(logging.Formatter().format(record))


class Watched:
    """The worker; inputs are sent one at a time."""

    def __init__(self, api: JobApi, url: str, scratch: Path, watch: LoopWatch) -> None:
        self._api, self._scratch, self._watch = api, scratch, watch
        self._client = httpx.Client(base_url=url, timeout=_PATIENCE_SECONDS)
        self._bugs = Bugs()
        logging.getLogger().addHandler(self._bugs)
        self._count = 0
        self._own = psutil.Process()
        self._children = set(self._own.children(recursive=True))
        self.costs = Costs()

    def job(self, text: str) -> object:
        """Return the body delivered for a queue job with this text as its input."""
        self._count += 1
        name = f"job-{self._count}"

        def send() -> object:
            self._api.submit_text(name, text)
            return self._api.result(name, _PATIENCE_SECONDS)

        return self._measured(send)

    def post(self, path: str, content: bytes, kind: str | None) -> httpx.Response:
        headers = {"content-type": kind.encode("latin-1")} if kind is not None else {}
        return self._measured(lambda: self._client.post(path, content=content, headers=headers))

    def _measured(self, send: Callable[[], Value]) -> Value:
        self.costs.inputs += 1
        for attempt in range(3):
            self._watch.reset()
            before = self._memory("VmRSS")
            Path("/proc/self/clear_refs").write_text("5")  # reset the peak
            cpu = _cpu_seconds()
            answer = send()
            spent, grown = _cpu_seconds() - cpu, self._memory("VmHWM") - before
            time.sleep(2 * _BEAT_SECONDS)
            blocked = self._watch.blocked_seconds()
            if blocked < LIMIT_BLOCKED_SECONDS or attempt == 2:
                break
        self.costs.cpu_seconds = max(self.costs.cpu_seconds, spent)
        self.costs.memory_bytes = max(self.costs.memory_bytes, grown)
        self.costs.blocked_seconds = max(self.costs.blocked_seconds, blocked)
        assert blocked < LIMIT_BLOCKED_SECONDS, f"the loop was blocked for {blocked:.3f} s"
        assert spent < LIMIT_CPU_SECONDS, f"{spent:.1f} s of processor time"
        assert grown < LIMIT_MEMORY_BYTES, f"{grown >> 20} MiB more"
        self._check_nothing_left()
        return answer

    def _memory(self, name: str) -> int:
        status = Path("/proc/self/status").read_text()
        (line,) = (line for line in status.splitlines() if line.startswith(f"{name}:"))
        return int(line.split()[1]) << 10

    def _check_nothing_left(self) -> None:
        """Check for files, processes and tracebacks, which may end shortly after the result."""
        ends = time.monotonic() + 10
        while (left := self._left()) and time.monotonic() < ends:
            time.sleep(0.01)
        assert not left, left
        assert not self._bugs.messages, self._bugs.messages.pop()

    def _left(self) -> list[object]:
        children = set(self._own.children(recursive=True)) - self._children
        return [*self._scratch.glob("parakeet-*/*"), *children]

    def check(self, document: object) -> None:
        """Check that an error has a code and no internal details."""
        text = str(document)
        assert "Traceback" not in text
        assert "internal_error" not in text
        for one in document if isinstance(document, list) else [document]:
            inner = one.get("output", one) if isinstance(one, dict) else one
            if isinstance(one, dict) and "error" in one:
                code = one["error"]["code"] if isinstance(one["error"], dict) else inner["code"]
                assert code
                assert len(str(one)) < 2500, "input is not echoed at length"
                self.costs.codes.add(code)

    def close(self) -> None:
        logging.getLogger().removeHandler(self._bugs)
        self._client.close()


def _cpu_seconds() -> float:
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


async def _serve(
    pipeline: Pipeline, api: JobApi, bound: socket.socket, watch: LoopWatch, stop: threading.Event
) -> None:
    async def answer(job: Job, delivery: Delivery) -> None:
        await answer_job(pipeline, job, delivery)

    service = Service(pipeline.settings)
    service.open(pipeline)
    server = connections.server(routes.application(service), pipeline.settings)
    loop = JobLoop(api.sdk(), answer, slots=4, delivery_seconds=20.0)
    serving = asyncio.create_task(server.serve([bound]))
    taking = asyncio.create_task(loop.run())
    beating = asyncio.create_task(watch.beat())
    while not stop.is_set():  # noqa: ASYNC110  # set in another thread
        await asyncio.sleep(0.05)
    loop.end()
    server.should_exit = True
    await asyncio.gather(serving, taking)
    beating.cancel()


@contextmanager
def watched(scratch: Path) -> Iterator[Watched]:
    """Run one worker for many inputs; leftovers of one are detected with the next."""
    settings = Settings(
        engine="tones",
        scratch=scratch,
        decode_timeout_seconds=60,
        download_timeout_seconds=5,
        ffmpeg=Path(imageio_ffmpeg.get_ffmpeg_exe()),  # wrote the containers; others read fewer
    )
    watch, stop = LoopWatch(), threading.Event()
    bound = socket.create_server(("127.0.0.1", 0))
    url = f"http://127.0.0.1:{bound.getsockname()[1]}"
    with JobApi(hold_seconds=60) as api, open_pipeline(settings) as pipeline:
        thread = threading.Thread(
            target=lambda: asyncio.run(_serve(pipeline, api, bound, watch, stop))
        )
        thread.start()
        try:
            opened = Watched(api, url, scratch, watch)
            try:
                yield opened
            finally:
                opened.close()
        finally:
            stop.set()
            thread.join()
            watch.close()
