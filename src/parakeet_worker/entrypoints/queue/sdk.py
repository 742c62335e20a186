"""What is used of the RunPod SDK's insides, looked up in one place and checked before use."""

import inspect
import logging
import mmap
import os
import struct
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Protocol

from parakeet_worker.bootstrap.owner import die_with_parent

log = logging.getLogger(__name__)

_MIRROR_BYTES = 1 << 16
_LENGTH = struct.Struct("I")


class SdkChanged(Exception):
    """The SDK is not what the job loop was written against; the public start still works."""


class JobsInProgress(Protocol):
    """The ids that the heartbeat sends along."""

    def add(self, element: str) -> None: ...
    def remove(self, element: str) -> None: ...


@dataclass(frozen=True, slots=True)
class Sdk:
    """The parts of `runpod` 1.12 that are not its public interface."""

    session: Callable[[], Any]
    """An aiohttp session with the worker's key."""
    take_url: Callable[[int], str]
    """Where so many jobs are asked for."""
    stop_signals: Callable[[Any], Awaitable[list[str]]]
    """Long-polls for the ids of jobs to give up."""
    done_url: str
    """Where an answer goes, with `$ID` for the job."""
    stream_url: str
    check_fitness: Callable[[], Awaitable[None]]
    """Runs every registered check; ends the process where one fails."""
    in_progress: JobsInProgress
    start_heartbeat: Callable[[], None]


def load() -> Sdk:
    """Look everything up; raises `SdkChanged`."""
    try:
        from runpod.http_client import AsyncClientSession
        from runpod.serverless.modules import rp_fitness, rp_http, rp_job, rp_ping, worker_state

        in_progress = worker_state.JobsProgress()
        _check_call(rp_job._job_get_url, "batch_size")  # noqa: SLF001
        _check_call(rp_job.get_stop_signals, "session")
        _check_call(rp_ping.Heartbeat.start_ping, "mirror")
        _check_call(rp_ping.Heartbeat.process_loop, "mirror")
        _check_call(in_progress.add, "element")
        _check_call(in_progress.remove, "element")
        set_mirror, mirror_of = in_progress.set_mirror, worker_state.PingJobMirror

        def start_heartbeat() -> None:
            mirror = _mirror(mirror_of)
            set_mirror(mirror)
            rp_ping.Heartbeat.process_loop = staticmethod(_child(rp_ping.Heartbeat.process_loop))
            rp_ping.Heartbeat().start_ping(mirror)

        return Sdk(
            session=AsyncClientSession,
            take_url=rp_job._job_get_url,  # noqa: SLF001
            stop_signals=rp_job.get_stop_signals,
            done_url=_with_query(rp_http.JOB_DONE_URL),
            stream_url=_with_query(rp_http.JOB_STREAM_URL),
            check_fitness=rp_fitness.run_fitness_checks,
            in_progress=in_progress,
            start_heartbeat=start_heartbeat,
        )
    except (ImportError, AttributeError, TypeError, ValueError) as failure:
        raise SdkChanged(str(failure)) from failure


class Mirror(Protocol):
    """What the heartbeat's process reads the ids of running jobs from."""

    def set(self, job_ids: str | None) -> None: ...
    def get(self) -> str | None: ...


class ForkedMirror:
    """The same as the SDK's, in memory without a name, which a fork shares.

    Two slots, of which the first byte names the current one: a reader never sees half a write.
    """

    def __init__(self, size: int = _MIRROR_BYTES) -> None:
        self._size = size
        self._memory = mmap.mmap(-1, 1 + 2 * (_LENGTH.size + size))

    def set(self, job_ids: str | None) -> None:
        """Show these ids, separated by commas; beyond the size whole ids are left out."""
        data = (job_ids or "").encode(errors="replace")
        if len(data) > self._size:
            data = data[: self._size].rpartition(b",")[0]
        slot = 1 - self._memory[0]
        self._memory.seek(1 + slot * (_LENGTH.size + self._size))
        self._memory.write(_LENGTH.pack(len(data)) + data)
        self._memory[0] = slot

    def get(self) -> str | None:
        """What was set last."""
        at = 1 + self._memory[0] * (_LENGTH.size + self._size)
        (length,) = _LENGTH.unpack_from(self._memory, at)
        at += _LENGTH.size
        return self._memory[at : at + length].decode() or None


def _mirror(mirror_of: Callable[[], Mirror]) -> Mirror:
    """The SDK's, which needs `/dev/shm`; one without it where that is missing or read-only."""
    try:
        return mirror_of()
    except OSError as failure:
        log.warning("no shared memory in /dev/shm, the heartbeat goes without it: %s", failure)
        return ForkedMirror()


def _child(loop: Callable[..., None]) -> Callable[..., None]:
    """The heartbeat's loop in its process, which ends with the worker and not before.

    In its own session it continues while a worker drains after a signal to its process group.
    """
    worker = os.getpid()

    def run(mirror: Mirror | None = None, test: bool = False) -> None:
        os.setsid()
        die_with_parent()
        if os.getppid() == worker:  # else it was killed before
            loop(mirror, test)

    return run


def _check_call(function: Callable[..., object], parameter: str) -> None:
    if parameter not in inspect.signature(function).parameters:
        raise SdkChanged(f"{function.__qualname__} has no parameter '{parameter}'")


def _with_query(url: object) -> str:
    """An address that more may be appended to with `&`."""
    if not isinstance(url, str):
        raise SdkChanged(f"{url!r} is no address")
    return url if "?" in url else f"{url}?"
