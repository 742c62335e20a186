"""What is used of the RunPod SDK's insides, looked up in one place and checked before use."""

import inspect
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Protocol


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
        _check_call(in_progress.add, "element")
        _check_call(in_progress.remove, "element")
        set_mirror, mirror_of = in_progress.set_mirror, worker_state.PingJobMirror

        def start_heartbeat() -> None:
            mirror = mirror_of()
            set_mirror(mirror)
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


def _check_call(function: Callable[..., object], parameter: str) -> None:
    if parameter not in inspect.signature(function).parameters:
        raise SdkChanged(f"{function.__qualname__} has no parameter '{parameter}'")


def _with_query(url: object) -> str:
    """An address that more may be appended to with `&`."""
    if not isinstance(url, str):
        raise SdkChanged(f"{url!r} is no address")
    return url if "?" in url else f"{url}?"
