"""The parts of the RunPod SDK's private API in use, checked before use."""

import inspect
import logging
import mmap
import os
import signal
import struct
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from parakeet_worker.errors import InvalidSetting, one_line
from parakeet_worker.volume.owner import die_with_parent

log = logging.getLogger(__name__)

_GROUP_SIGNALS = (signal.SIGINT, signal.SIGTERM)

_MIRROR_BYTES = 1 << 16
_LENGTH = struct.Struct("I")


def import_sdk() -> Any:
    """Import `runpod` without its description of the processor. Raises `InvalidSetting`.

    `rp_debugger` reads the processor's name at import through py-cpuinfo, which starts a Python
    process and computes for a second: a third of a worker's start. Without a name the SDK uses a
    default text.
    """
    try:
        import cpuinfo  # type: ignore[import-untyped]
    except ImportError:  # the SDK no longer needs it
        return _import()
    describe, cpuinfo.get_cpu_info = cpuinfo.get_cpu_info, dict
    try:
        return _import()
    finally:
        cpuinfo.get_cpu_info = describe


def _import() -> Any:
    try:
        import runpod
    except ValueError as failure:  # the SDK reads its variables at import
        reason = str(failure)
        values = {name: value for name, value in os.environ.items() if name.startswith("RUNPOD_")}
        named = [name for name, value in values.items() if value.lower() in reason.lower()]
        name = max(named, key=lambda name: len(values[name]), default="RUNPOD_*")
        raise InvalidSetting(name, one_line(reason)) from failure
    return runpod


class SdkChanged(Exception):
    """The SDK's private API differs from the supported version; its public API still works."""


class JobsInProgress(Protocol):
    """Ids that the heartbeat sends."""

    def add(self, element: str) -> None: ...
    def remove(self, element: str) -> None: ...


@dataclass(frozen=True, slots=True)
class Sdk:
    """Private parts of `runpod` 1.12."""

    session: Callable[[], Any]
    """An aiohttp session with the worker's key."""
    take_url: Callable[[int], str]
    """The URL to poll for that many jobs."""
    stop_signals: Callable[[Any], Awaitable[list[str]]]
    """Long-polls for the ids of cancelled jobs."""
    done_url: str
    """The URL for answers, with `$ID` for the job."""
    stream_url: str
    check_fitness: Callable[[], Awaitable[None]]
    """Runs every registered check; exits the process if one fails."""
    in_progress: JobsInProgress
    start_heartbeat: Callable[[], None]


def load() -> Sdk:
    """Look up all parts; raises `SdkChanged`."""
    try:
        import_sdk()
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
            with group_signals_blocked():
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
    """Shared memory from which the heartbeat process reads the ids of running jobs."""

    def set(self, job_ids: str | None) -> None: ...
    def get(self) -> str | None: ...


class ForkedMirror:
    """A replacement for the SDK's mirror in anonymous memory, shared through fork.

    Two slots; the first byte is the index of the current one, so that reads are atomic.
    """

    def __init__(self, size: int = _MIRROR_BYTES) -> None:
        self._size = size
        self._memory = mmap.mmap(-1, 1 + 2 * (_LENGTH.size + size))

    def set(self, job_ids: str | None) -> None:
        """Publish comma-separated ids; ids beyond the size are dropped whole."""
        data = (job_ids or "").encode(errors="replace")
        if len(data) > self._size:
            data = data[: self._size].rpartition(b",")[0]
        slot = 1 - self._memory[0]
        self._memory.seek(1 + slot * (_LENGTH.size + self._size))
        self._memory.write(_LENGTH.pack(len(data)) + data)
        self._memory[0] = slot

    def get(self) -> str | None:
        """The last published ids."""
        at = 1 + self._memory[0] * (_LENGTH.size + self._size)
        (length,) = _LENGTH.unpack_from(self._memory, at)
        at += _LENGTH.size
        return self._memory[at : at + length].decode() or None


def _mirror(mirror_of: Callable[[], Mirror]) -> Mirror:
    """The SDK's mirror, or a `ForkedMirror` if `/dev/shm` is missing or read-only."""
    try:
        return mirror_of()
    except OSError as failure:
        log.warning("no memory in /dev/shm, the heartbeat uses anonymous memory: %s", failure)
        return ForkedMirror()


@contextmanager
def group_signals_blocked() -> Iterator[None]:
    """Block signals to the process group, also in processes that this thread forks meanwhile.

    A heartbeat that has not left the group yet would end.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _GROUP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _unblock_group_signals() -> None:
    """Handle them from now on; pending ones are discarded."""
    for number in _GROUP_SIGNALS:
        handler = signal.signal(number, signal.SIG_IGN)
        signal.signal(number, signal.SIG_DFL if handler is None else handler)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _GROUP_SIGNALS)


def _child(loop: Callable[..., None]) -> Callable[..., None]:
    """Wrap the heartbeat's loop so that its process ends exactly with the worker.

    Its own session keeps it running while the worker drains after a signal to the process group.
    """
    worker = os.getpid()

    def run(mirror: Mirror | None = None, test: bool = False) -> None:
        os.setsid()
        _unblock_group_signals()
        die_with_parent()
        if os.getppid() == worker:  # otherwise the worker was killed meanwhile
            loop(mirror, test)

    return run


def _check_call(function: Callable[..., object], parameter: str) -> None:
    if parameter not in inspect.signature(function).parameters:
        raise SdkChanged(f"{function.__qualname__} has no parameter '{parameter}'")


def _with_query(url: object) -> str:
    """A URL to which parameters can be appended with `&`."""
    if not isinstance(url, str):
        raise SdkChanged(f"{url!r} is not a URL")
    return url if "?" in url else f"{url}?"
