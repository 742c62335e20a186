"""The HTTP server on loopback: in this process, or as the process that an operator starts."""

import asyncio
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from inspect import isawaitable
from pathlib import Path

import httpx

from faulty_worker import FaultyEngine, faulty_pipeline
from parakeet_worker.entrypoints.http import connections, routes
from parakeet_worker.entrypoints.http.service import Service
from parakeet_worker.pipeline import Pipeline
from parakeet_worker.settings import Settings

PATIENCE_SECONDS = 120.0


@dataclass(frozen=True, slots=True, eq=False)
class Serving:
    """A server in this process."""

    url: str
    port: int
    service: Service
    pipeline: Pipeline
    client: httpx.AsyncClient

    @property
    def inside(self) -> int:
        """Requests that are being answered."""
        return self.service._open_requests

    async def metric(self, name: str) -> float:
        """One figure of `/metrics`, with its labels as they are written."""
        return figure((await self.client.get("/metrics")).text, name)


def figure(page: str, name: str) -> float:
    match = re.search(rf"^{re.escape(name)} (\S+)$", page, re.MULTILINE)
    return float(match[1]) if match else 0.0


@asynccontextmanager
async def serving(
    scratch: Path,
    engine: FaultyEngine | None = None,
    *,
    warm: bool = True,
    on_lost: Callable[[], None] = lambda: None,
    **limits: object,
) -> AsyncIterator[Serving]:
    """All of the server around an engine that a test may break, on a port of its own."""
    settings = Settings.of({"engine": "tones", "scratch": scratch, **limits})
    with faulty_pipeline(settings, engine or FaultyEngine(0)) as pipeline:
        async with serving_pipeline(pipeline, settings, warm=warm, on_lost=on_lost) as running:
            yield running


@asynccontextmanager
async def serving_pipeline(
    pipeline: Pipeline,
    settings: Settings,
    *,
    warm: bool = True,
    on_lost: Callable[[], None] = lambda: None,
) -> AsyncIterator[Serving]:
    """All of the server around a pipeline that is open, on a port of its own."""
    service = Service(settings, on_lost)
    server = connections.server(routes.application(service), settings)
    bound = socket.create_server(("127.0.0.1", 0), backlog=2048)
    port = bound.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    if warm:
        service.open(pipeline)
    task = asyncio.create_task(server.serve([bound]))
    try:
        async with httpx.AsyncClient(base_url=url, timeout=PATIENCE_SECONDS) as client:
            yield Serving(url, port, service, pipeline, client)
    finally:
        server.should_exit = True
        await task


async def until(met: Callable[[], bool | Awaitable[bool]]) -> None:
    """Wait for something that shows only when one looks."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not (await state if isawaitable(state := met()) else state):  # noqa: ASYNC110
            await asyncio.sleep(0.01)


@dataclass(frozen=True, slots=True, eq=False)
class Process:
    """A server of its own."""

    url: str
    process: "subprocess.Popen[str]"
    scratch: Path
    log: Path

    def wait_until_ready(self) -> None:
        ends = time.monotonic() + PATIENCE_SECONDS
        while httpx.get(f"{self.url}/ping", timeout=PATIENCE_SECONDS).status_code != 200:
            assert time.monotonic() < ends, self.log.read_text()
            time.sleep(0.05)

    def ended(self) -> int:
        return self.process.wait(PATIENCE_SECONDS)


@contextmanager
def running_server(
    home: Path,
    variables: Mapping[str, str],
    *arguments: str,
    module: str = "",
    prefix: Sequence[str] = (),
) -> Iterator[Process]:
    """`parakeet serve`, or a module that serves, with these variables and nothing else."""
    scratch = home / "scratch"
    scratch.mkdir()
    log = home / "server.log"
    command = ["-m", module] if module else ["-m", "parakeet_worker.entrypoints.cli", "serve"]
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(home),
        "OMP_NUM_THREADS": "1",
        "PORT": "0",
        "PARAKEET_SCRATCH": str(scratch),
        "PYTHONPATH": str(Path(__file__).parent),
        **variables,
    }
    with log.open("w") as output:
        process = subprocess.Popen(
            [*prefix, sys.executable, *command, *arguments],
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        try:
            yield Process(_address(process, log), process, scratch, log)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def _address(process: "subprocess.Popen[str]", log: Path) -> str:
    ends = time.monotonic() + PATIENCE_SECONDS
    while True:
        state = re.search(r"listening on (http://\S+)", log.read_text())
        if state:
            return state[1].replace("0.0.0.0", "127.0.0.1")
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < ends
        time.sleep(0.02)
