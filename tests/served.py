"""`parakeet serve` as a process of its own, as an operator starts it."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from socket import socket

import httpx

_START_SECONDS = 300.0


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket() as opened:
        opened.bind(("127.0.0.1", 0))
        port: int = opened.getsockname()[1]
        return port


@contextmanager
def serve(**settings: str) -> Iterator[str]:
    """The address of a server that is ready; `settings` are its environment variables."""
    port = free_port()
    program = [sys.executable, "-m", "parakeet_worker.entrypoints.cli"]
    command = [*program, "serve", "--host", "127.0.0.1", "--port", str(port)]
    # One thread each: the browser and the tests want some of the machine too.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **settings}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    address = f"http://127.0.0.1:{port}"
    try:
        _wait(address, process)
        yield address
    finally:
        process.terminate()
        process.communicate(timeout=30)


def _wait(address: str, process: subprocess.Popen[str]) -> None:
    ends = time.monotonic() + _START_SECONDS
    while time.monotonic() < ends and process.poll() is None:
        try:
            if httpx.get(f"{address}/ping").status_code == httpx.codes.OK:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    process.kill()
    raise AssertionError(f"the server is not ready: {process.communicate()[1]}")
