"""A worker as RunPod starts it, on loopback: the SDK's own loop, a job API, a server of files.

Both servers are the bench's process; what they cost is the machine's, as it would not be on the
platform.
"""

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil

from job_api import JobApi, running_worker
from parakeet_worker.settings import variable

_READY_SECONDS = 600.0
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


@dataclass(frozen=True, slots=True, eq=False)
class Serving:
    """A worker that takes jobs, and what belongs to it."""

    api: JobApi
    process: psutil.Process
    scratch: Path

    def processor_seconds(self) -> tuple[float, float]:
        """So far, of the worker itself and of all ffmpegs that have ended."""
        used = self.process.cpu_times()
        return used.user + used.system, used.children_user + used.children_system


@contextmanager
def serving(
    settings: Mapping[str, str], *, in_flight: int, threads: int, log: Path
) -> Iterator[Serving]:
    """A worker with these settings that is ready and polls for jobs."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory() as home, JobApi() as api, log.open("w") as output:
        scratch = Path(home) / "scratch"
        scratch.mkdir()
        chosen = {
            "concurrency": str(in_flight),
            "allow_private_addresses": "true",
            "scratch": str(scratch),
            **settings,
        }
        environment = {variable(field): value for field, value in chosen.items()}
        environment |= dict.fromkeys(_THREAD_VARIABLES, str(threads))
        with running_worker(api, Path(home), environment, log=output) as worker:
            if not api.polled(_READY_SECONDS):
                raise WorkerSilent(log)
            yield Serving(api, psutil.Process(worker.pid), scratch)


class WorkerSilent(Exception):
    """The worker does not poll for jobs."""

    def __init__(self, log: Path) -> None:
        last = (log.read_text().strip().splitlines() or ["no output"])[-1]
        super().__init__(f"the worker does not poll for jobs: {last}")


@contextmanager
def files_at(folder: Path) -> Iterator[str]:
    """The URL of a server for the files in `folder`."""
    handler = partial(_Quiet, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Nothing: thousands of files are fetched."""
