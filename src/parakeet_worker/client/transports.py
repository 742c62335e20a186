"""Transports: a payload as a job of RunPod's queue, or as an HTTP request."""

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
from parakeet_worker.client.answer import Segment, Usage
from parakeet_worker.client.endpoint import Endpoint
from parakeet_worker.client.http_client import HttpClient, OnRetry, json_body
from parakeet_worker.client.payload import Payload
from parakeet_worker.errors import (
    EndpointDenied,
    EndpointRefused,
    JobCancelled,
    JobExpired,
    JobFailed,
    ParakeetError,
    one_line,
)

Stage: TypeAlias = Literal["preparing", "uploading", "queued", "transcribing"]
Fields: TypeAlias = Mapping[str, object]
Document: TypeAlias = dict[str, Any]

_POLL_FIRST_SECONDS = 0.25
_POLL_MAX_SECONDS = 5.0
_POLL_GROWTH = 1.5
_CANCEL_SECONDS = 10.0
_MAX_REASON_CHARACTERS = 300
_OPEN: Mapping[object, Stage] = {"IN_QUEUE": "queued", "IN_PROGRESS": "transcribing"}
"""Statuses of a job that has not ended."""


@dataclass(frozen=True, slots=True)
class QueuedJob:
    """A job in an endpoint's queue, with everything needed to fetch its answer later."""

    id: str
    sent: float
    """Time of acceptance, in seconds since 1970."""
    stored: str | None = None
    """Key of its audio in the caller's bucket."""
    warnings: tuple[str, ...] = ()
    """Warnings from encoding the recording."""


@dataclass(frozen=True, slots=True)
class ProgressCallbacks:
    """Called as a recording makes progress."""

    stage: Callable[[Stage], None] = lambda _: None
    sent: Callable[[QueuedJob], None] = lambda _: None
    retrying: OnRetry = lambda _: None
    segment: Callable[[Segment], None] | None = None
    """Sentences as soon as each and all earlier ones are transcribed. A retry repeats them."""

    def received(self, document: object) -> None:
        """Report a segment, if the document is one."""
        if self.segment is not None and isinstance(document, dict) and "id" in document:
            self.segment(Segment(document))


class QueueTransport:
    """RunPod's queue API: post a job, poll its status, cancel it."""

    def __init__(self, client: HttpClient, endpoint: Endpoint) -> None:
        self._client = client
        self._endpoint = endpoint

    async def send(
        self, payload: Payload, fields: Fields, callbacks: ProgressCallbacks
    ) -> QueuedJob:
        """Post a job; when this is cancelled, so is the job."""
        posting = asyncio.ensure_future(self._post(payload, fields, callbacks.retrying))
        try:
            return await asyncio.shield(posting)
        except asyncio.CancelledError:
            # The job's id is not known yet, and it can be cancelled by its id only.
            with suppress(TimeoutError, ParakeetError):
                job = await asyncio.wait_for(posting, _CANCEL_SECONDS)
                await self.cancel(job)
            raise

    async def _post(self, payload: Payload, fields: Fields, on_retry: OnRetry) -> QueuedJob:
        if payload.url is not None:
            path, source = self._endpoint.routes[0].path, {"audio_url": payload.url}
        else:
            route = self._endpoint.reserving(size_of(fields)).route(payload.size)
            assert route is not None
            encoded = await asyncio.to_thread(lambda: b64encode(payload.content).decode())
            path, source = route.path, {"audio_base64": encoded}
        content = json.dumps({"input": {**source, **fields}}).encode()
        url = f"{self._endpoint.url}/{path}"
        try:
            answer = await self._client.call(
                "POST", url, partial(json_body, content), on_retry=on_retry
            )
        except EndpointRefused as refused:
            raise _denied(refused, url) from refused
        if not isinstance(answer, dict) or not answer.get("id"):
            raise EndpointRefused(url, 200, "the answer has no job id")
        stored = payload.stored.key if payload.stored else None
        return QueuedJob(str(answer["id"]), time.time(), stored, payload.warnings)

    async def outcome(self, job: QueuedJob, callbacks: ProgressCallbacks) -> tuple[Document, Usage]:
        """Poll a job until it has ended.

        Raises what it failed with, or `EndpointRefused` if the endpoint has no such job.
        """
        if callbacks.segment is not None:
            await self._segments(job, callbacks)
        pause = _POLL_FIRST_SECONDS
        while True:
            answer = await self._job_answer("status", job, callbacks)
            if not _is_open(answer):
                return _ended(job, answer), _queue_usage(job, answer)
            await asyncio.sleep(pause)
            pause = min(pause * _POLL_GROWTH, _POLL_MAX_SECONDS)

    async def _segments(self, job: QueuedJob, callbacks: ProgressCallbacks) -> None:
        """Report the job's segments until it has ended; the platform returns each once."""
        pause = _POLL_FIRST_SECONDS
        while True:
            answer = await self._job_answer("stream", job, callbacks)
            parts = answer.get("stream") or ()
            for part in parts:
                match part:
                    case {"output": {"segment": document}}:
                        callbacks.received(document)
            if not parts and not _is_open(answer):
                return
            pause = _POLL_FIRST_SECONDS if parts else min(pause * _POLL_GROWTH, _POLL_MAX_SECONDS)
            await asyncio.sleep(pause)

    async def _job_answer(
        self, route: str, job: QueuedJob, callbacks: ProgressCallbacks
    ) -> Mapping[str, Any]:
        """What the endpoint answers about a job."""
        url = f"{self._endpoint.url}/{route}/{job.id}"
        answer = await self._client.call("GET", url, on_retry=callbacks.retrying)
        document = answer if isinstance(answer, dict) else {}
        if _is_open(document):
            callbacks.stage(_OPEN[document["status"]])
        return document

    async def cancel(self, job: QueuedJob) -> None:
        """Cancel a job; a no-op if it has ended or is unknown."""
        url = f"{self._endpoint.url}/cancel/{job.id}"
        with suppress(EndpointRefused):
            await self._client.call("POST", url, retry_seconds=_CANCEL_SECONDS)


class HttpTransport:
    """`POST /transcribe` of an HTTP worker; closing the connection cancels."""

    def __init__(
        self, client: HttpClient, endpoint: Endpoint, answer_seconds: float | None
    ) -> None:
        self._client = client
        self._endpoint = endpoint
        self._answer_seconds = answer_seconds

    async def transcribe(
        self, payload: Payload, fields: Fields, callbacks: ProgressCallbacks
    ) -> tuple[Document, Usage]:
        """Send the audio and return its document."""
        url = f"{self._endpoint.url}/{self._endpoint.routes[0].path}"
        callbacks.stage("transcribing")
        try:
            answer = await self._client.call(
                "POST",
                url,
                partial(self._body, payload, fields),
                answer_seconds=self._answer_seconds,
                on_retry=callbacks.retrying,
                on_event=lambda _, document: callbacks.received(document),
            )
        except EndpointRefused as refused:
            raise _denied(refused, url) from refused
        if not isinstance(answer, dict) or "text" not in answer:
            raise EndpointRefused(url, 200, "the answer is not a transcript")
        return answer, _http_usage(answer, self._endpoint.url)

    @staticmethod
    @contextmanager
    def _body(payload: Payload, fields: Fields) -> Iterator[Mapping[str, Any]]:
        if payload.url is not None:
            with json_body(json.dumps({"audio_url": payload.url, **fields}).encode()) as body:
                yield body
            return
        parts = {
            name: value if isinstance(value, str) else json.dumps(value)
            for name, value in fields.items()
        }
        with payload.open() as file:
            yield {"data": parts, "files": {"file": (payload.name, file)}}


def size_of(fields: Fields) -> int:
    """Bytes of the known speakers' references; other fields are small."""
    return len(json.dumps(fields.get("known_speakers", "")).encode())


def _denied(refused: EndpointRefused, url: str) -> ParakeetError:
    """A missing route is the endpoint's fault, not the recording's."""
    status = refused.facts["status"]
    return EndpointDenied(url, 404) if status == 404 else refused


def _is_open(answer: Mapping[str, Any]) -> bool:
    return answer.get("status") in _OPEN


def _ended(job: QueuedJob, response: Mapping[str, Any]) -> Document:
    """The document of a job that has ended."""
    status, output, error = response.get("status"), response.get("output"), response.get("error")
    facts = output if isinstance(output, dict) else {}
    if status == "CANCELLED":
        raise JobCancelled(job.id)
    if status == "TIMED_OUT":
        raise JobExpired(job.id, "it exceeded the endpoint's time limit, queued or running")
    reason = error or facts.get("error")
    if status == "FAILED" or reason:
        known = errors.read({**facts, "error": reason}) if reason else None
        raise known or JobFailed(job.id, _reason(reason))
    if status != "COMPLETED":
        raise JobFailed(job.id, f"its status is {status!r}")
    if isinstance(output, list) and len(output) == 1 and isinstance(output[0], dict):
        facts = output[0]  # a worker that streams aggregates what it yielded
    if "text" not in facts:
        raise JobFailed(job.id, "completed without an answer; it may have been too large")
    return facts


def _reason(reason: object) -> str:
    """The failure's reason, without the traceback that RunPod's SDK adds."""
    text = str(reason or "no reason given")
    with suppress(ValueError):
        response = json.loads(text)
        if isinstance(response, dict) and "error_message" in response:
            text = f"{response.get('error_type', '')}: {response['error_message']}"
    return one_line(text, _MAX_REASON_CHARACTERS)


def _queue_usage(job: QueuedJob, answer: Mapping[str, Any]) -> Usage:
    queued, executed = (_seconds(answer.get(name)) for name in ("delayTime", "executionTime"))
    worker = answer.get("workerId")
    return Usage(
        _audio_seconds(answer.get("output")),
        queued,
        executed,
        None if queued is None else job.sent + queued,
        str(worker) if worker else None,
    )


def _http_usage(document: Document, url: str) -> Usage:
    debug = document.get("debug")
    seconds = debug.get("seconds") if isinstance(debug, dict) else None
    total = seconds.get("total") if isinstance(seconds, dict) else None
    executed = float(total) if isinstance(total, int | float) else None
    started = None if executed is None else time.time() - executed
    return Usage(_audio_seconds(document), None, executed, started, url)


def _seconds(milliseconds: object) -> float | None:
    return milliseconds / 1000 if isinstance(milliseconds, int | float) else None


def _audio_seconds(document: object) -> float | None:
    debug = document.get("debug") if isinstance(document, dict) else None
    seconds = debug.get("audio_seconds") if isinstance(debug, dict) else None
    return float(seconds) if isinstance(seconds, int | float) else None
