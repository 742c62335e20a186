"""The two ways to have a parcel transcribed: as a job in RunPod's queue, or over HTTP."""

import asyncio
import json
import time
from base64 import b64encode
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, TypeAlias

from parakeet_worker import errors
from parakeet_worker.client.answer import Figures
from parakeet_worker.client.endpoint import Endpoint
from parakeet_worker.client.parcel import Parcel
from parakeet_worker.client.wire import OnRetry, Wire, json_body
from parakeet_worker.errors import (
    EndpointDenied,
    EndpointRefused,
    JobCancelled,
    JobExpired,
    JobFailed,
    ParakeetError,
    one_line,
)

Stage: TypeAlias = Literal["packing", "sending", "waiting", "hearing"]
Fields: TypeAlias = Mapping[str, object]
Document: TypeAlias = dict[str, Any]

_POLL_FIRST_SECONDS = 0.25
_POLL_MAX_SECONDS = 5.0
_POLL_GROWTH = 1.5
_CANCEL_SECONDS = 10.0
_MAX_REASON_CHARACTERS = 300


@dataclass(frozen=True, slots=True)
class Job:
    """A job in an endpoint's queue, with what is needed to fetch its answer later."""

    id: str
    sent: float
    """When it was taken in, in seconds since 1970."""
    stored: str | None = None
    """The key of its audio in the caller's bucket."""
    warnings: tuple[str, ...] = ()
    """What was found wrong with the recording while it was made smaller."""


@dataclass(frozen=True, slots=True)
class Listener:
    """Who wants to know how far a recording is."""

    stage: Callable[[Stage], None] = lambda _: None
    sent: Callable[[Job], None] = lambda _: None
    retrying: OnRetry = lambda _: None


class QueueDoor:
    """RunPod's queue API: a job is posted, looked after, and cancelled if nobody wants it."""

    def __init__(self, wire: Wire, endpoint: Endpoint) -> None:
        self._wire = wire
        self._endpoint = endpoint

    async def send(self, parcel: Parcel, fields: Fields, listener: Listener) -> Job:
        """Post a job; when this is cancelled, so is the job."""
        posting = asyncio.ensure_future(self._post(parcel, fields, listener.retrying))
        try:
            return await asyncio.shield(posting)
        except asyncio.CancelledError:
            # Its id is not known yet, and without it nobody could take it back.
            with suppress(TimeoutError, ParakeetError):
                job = await asyncio.wait_for(posting, _CANCEL_SECONDS)
                await self.cancel(job)
            raise

    async def _post(self, parcel: Parcel, fields: Fields, on_retry: OnRetry) -> Job:
        if parcel.url is not None:
            path, source = self._endpoint.routes[0].path, {"audio_url": parcel.url}
        else:
            route = self._endpoint.route(parcel.size)
            assert route is not None
            encoded = await asyncio.to_thread(lambda: b64encode(parcel.content).decode())
            path, source = route.path, {"audio_base64": encoded}
        content = json.dumps({"input": {**source, **fields}}).encode()
        url = f"{self._endpoint.url}/{path}"
        try:
            answer = await self._wire.call(
                "POST", url, partial(json_body, content), on_retry=on_retry
            )
        except EndpointRefused as refused:
            raise _denied(refused, url) from refused
        if not isinstance(answer, dict) or not answer.get("id"):
            raise EndpointRefused(url, 200, "it answered without a job's id")
        stored = parcel.stored.key if parcel.stored else None
        return Job(str(answer["id"]), time.time(), stored, parcel.warnings)

    async def outcome(self, job: Job, listener: Listener) -> tuple[Document, Figures]:
        """Ask after a job until it has ended; raises what it failed with, or `EndpointRefused`
        where it is not known (any more)."""
        url = f"{self._endpoint.url}/status/{job.id}"
        pause = _POLL_FIRST_SECONDS
        while True:
            answer = await self._wire.call("GET", url, on_retry=listener.retrying)
            status = answer.get("status") if isinstance(answer, dict) else None
            if status == "IN_QUEUE":
                listener.stage("waiting")
            elif status == "IN_PROGRESS":
                listener.stage("hearing")
            else:
                return _ended(job, answer), _queue_figures(job, answer)
            await asyncio.sleep(pause)
            pause = min(pause * _POLL_GROWTH, _POLL_MAX_SECONDS)

    async def cancel(self, job: Job) -> None:
        """Take a job back; one that has ended, or is not known any more, is left as it is."""
        url = f"{self._endpoint.url}/cancel/{job.id}"
        with suppress(EndpointRefused):
            await self._wire.call("POST", url, retry_seconds=_CANCEL_SECONDS)


class HttpDoor:
    """`POST /transcribe` of a worker that speaks HTTP; who hangs up has cancelled."""

    def __init__(self, wire: Wire, endpoint: Endpoint, answer_seconds: float | None) -> None:
        self._wire = wire
        self._endpoint = endpoint
        self._answer_seconds = answer_seconds

    async def ask(
        self, parcel: Parcel, fields: Fields, listener: Listener
    ) -> tuple[Document, Figures]:
        """Send the audio and wait for its document."""
        url = f"{self._endpoint.url}/{self._endpoint.routes[0].path}"
        listener.stage("hearing")
        try:
            answer = await self._wire.call(
                "POST",
                url,
                partial(self._body, parcel, fields),
                answer_seconds=self._answer_seconds,
                on_retry=listener.retrying,
            )
        except EndpointRefused as refused:
            raise _denied(refused, url) from refused
        if not isinstance(answer, dict) or "text" not in answer:
            raise EndpointRefused(url, 200, "it answered with something else than a transcript")
        return answer, _http_figures(answer, self._endpoint.url)

    @staticmethod
    @contextmanager
    def _body(parcel: Parcel, fields: Fields) -> Iterator[Mapping[str, Any]]:
        if parcel.url is not None:
            with json_body(json.dumps({"audio_url": parcel.url, **fields}).encode()) as body:
                yield body
            return
        parts = {
            name: value if isinstance(value, str) else json.dumps(value)
            for name, value in fields.items()
        }
        with parcel.open() as file:
            yield {"data": parts, "files": {"file": (parcel.name, file)}}


def _denied(refused: EndpointRefused, url: str) -> ParakeetError:
    """A path that is not there is no fault of the recording."""
    status = refused.facts["status"]
    return EndpointDenied(url, 404) if status == 404 else refused


def _ended(job: Job, answer: object) -> Document:
    """The document of a job that has ended."""
    told = answer if isinstance(answer, dict) else {}
    status, output, error = told.get("status"), told.get("output"), told.get("error")
    facts = output if isinstance(output, dict) else {}
    if status == "CANCELLED":
        raise JobCancelled(job.id)
    if status == "TIMED_OUT":
        raise JobExpired(job.id, "it waited, or was worked on, longer than the endpoint lets it")
    said = error or facts.get("error")
    if status == "FAILED" or said:
        known = errors.read({**facts, "error": said}) if said else None
        raise known or JobFailed(job.id, _reason(said))
    if status != "COMPLETED":
        raise JobFailed(job.id, f"its status is {status!r}")
    if isinstance(output, list) and len(output) == 1 and isinstance(output[0], dict):
        facts = output[0]  # a worker that streams aggregates what it yielded
    if "text" not in facts:
        raise JobFailed(job.id, "it is completed without an answer, which may have been too large")
    return facts


def _reason(said: object) -> str:
    """What a failed job says, without the traceback that RunPod's SDK puts beside it."""
    text = str(said or "no reason given")
    with suppress(ValueError):
        told = json.loads(text)
        if isinstance(told, dict) and "error_message" in told:
            text = f"{told.get('error_type', '')}: {told['error_message']}"
    return one_line(text, _MAX_REASON_CHARACTERS)


def _queue_figures(job: Job, answer: Mapping[str, Any]) -> Figures:
    queued, executed = (_seconds(answer.get(name)) for name in ("delayTime", "executionTime"))
    worker = answer.get("workerId")
    return Figures(
        _audio_seconds(answer.get("output")),
        queued,
        executed,
        None if queued is None else job.sent + queued,
        str(worker) if worker else None,
    )


def _http_figures(document: Document, url: str) -> Figures:
    debug = document.get("debug")
    seconds = debug.get("seconds") if isinstance(debug, dict) else None
    total = seconds.get("total") if isinstance(seconds, dict) else None
    executed = float(total) if isinstance(total, int | float) else None
    started = None if executed is None else time.time() - executed
    return Figures(_audio_seconds(document), None, executed, started, url)


def _seconds(milliseconds: object) -> float | None:
    return milliseconds / 1000 if isinstance(milliseconds, int | float) else None


def _audio_seconds(document: object) -> float | None:
    debug = document.get("debug") if isinstance(document, dict) else None
    seconds = debug.get("audio_seconds") if isinstance(debug, dict) else None
    return float(seconds) if isinstance(seconds, int | float) else None
