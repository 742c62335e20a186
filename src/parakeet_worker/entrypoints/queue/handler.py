"""One job: what it asks for, what is delivered for it, and the line about it in the log."""

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from typing import Any

from parakeet_worker import answers
from parakeet_worker.entrypoints.queue.delivery import Delivery
from parakeet_worker.entrypoints.queue.loop import Job
from parakeet_worker.errors import EngineLost, ParakeetError, RequestError
from parakeet_worker.logs import JOB
from parakeet_worker.outcome import BUG, CANCELLED, Outcome
from parakeet_worker.pipeline import Pipeline
from parakeet_worker.wire import openai

log = logging.getLogger(__name__)

PROGRESS_SECONDS = 5.0
"""Shortest interval between two progress reports."""

Segment = Callable[[dict[str, Any]], Awaitable[bool]]
"""Sends a segment; returns whether it was delivered."""


class JobLog:
    """Outcomes of a job's recordings, for its log line and its progress."""

    def __init__(self) -> None:
        self.outcomes: list[Outcome] = []
        self.audio_seconds = 0.0
        """Transcribed so far for a single recording, otherwise of all finished recordings."""

    def observe(self, outcome: Outcome) -> None:
        """Record the end of a recording."""
        self.outcomes.append(outcome)
        self.audio_seconds = sum(
            done.transcript.seconds for done in self.outcomes if done.transcript
        )

    def advance(self, end_seconds: float) -> None:
        """Record the progress of a single recording."""
        self.audio_seconds = max(self.audio_seconds, end_seconds)

    def progress(self) -> dict[str, Any]:
        """The progress document."""
        return {
            "audio_seconds": round(self.audio_seconds, 2),
            "recordings": len(self.outcomes),
        }

    def facts(self, *, with_text: bool) -> dict[str, Any]:
        """Facts for the log line; the text only if configured."""
        seconds: Counter[str] = Counter()
        for outcome in self.outcomes:
            seconds.update(outcome.stage_seconds)
        transcripts = [outcome.transcript for outcome in self.outcomes if outcome.transcript]
        codes = [outcome.code for outcome in self.outcomes if outcome.code]
        facts: dict[str, Any] = {
            "audio_seconds": round(self.audio_seconds, 3),
            "words": sum(len(transcript.words) for transcript in transcripts),
            "seconds": {stage: round(spent, 4) for stage, spent in seconds.items()},
        }
        if codes:
            facts["codes"] = codes
        if with_text:
            facts["text"] = [transcript.text for transcript in transcripts]
        return facts


async def answer_input(
    pipeline: Pipeline, payload: object, job_log: JobLog, segment: Segment | None = None
) -> object:
    """Answer a job's `input`; errors become documents.

    For a streaming job `segment` is called with each segment until one is not delivered, so that
    a stream has no gaps.
    """
    streaming = _streams(payload)
    try:
        if isinstance(payload, RequestError):
            raise payload
        if isinstance(payload, dict) and "openai_route" in payload:
            send = segment if streaming else None
            return await openai.answer_openai(pipeline, payload, job_log.observe, send)
        if segment is None or not _wants(payload, "stream", "progress"):
            return await answers.answer(pipeline, payload, job_log.observe)
        result: object = None
        async with aclosing(answers.stream(pipeline, payload, job_log.observe)) as parts:
            async for part in parts:
                if isinstance(part, answers.SegmentPart):
                    job_log.advance(part.sentence.end_seconds)
                    streaming = streaming and await segment({"segment": part.document})
                else:
                    result = part.document
    except ParakeetError as error:
        refresh = {"refresh_worker": True} if isinstance(error, EngineLost) else {}
        return {**error.document(), **refresh}
    return result


async def answer_job(
    pipeline: Pipeline,
    job: Job,
    delivery: Delivery,
    *,
    progress_seconds: float = PROGRESS_SECONDS,
) -> None:
    """Answer one job of the queue and deliver the answer."""
    job_id, payload, job_log = job["id"], job.get("input"), JobLog()
    JOB.set(job_id)
    status = BUG

    async def segment(chunk: dict[str, Any]) -> bool:
        return await delivery.segment(job_id, chunk)

    try:
        every_seconds = progress_seconds if _wants(payload, "progress") else None
        async with _reporting_progress(delivery, job_id, job_log, every_seconds):
            listed = isinstance(payload, dict) and payload.get("inputs") is not None
            output = await answer_input(pipeline, payload, job_log, None if listed else segment)
        body = body_of(output, stop=pipeline.batcher.lost)
        status = str(body.get("output", {}).get("code", "failed")) if "error" in body else "ok"
        streamed = _streams(payload)
        if not await delivery.done(job_id, body, streamed=streamed):
            status = "undelivered"
    except asyncio.CancelledError:
        status = CANCELLED
        raise
    except Exception:  # unexpected: the caller gets no details
        status = BUG
        log.exception("unexpected exception", extra={"job": job_id})
        document = {
            "error": f"{BUG}: unexpected error; the worker's log has the details",
            "code": BUG,
        }
        await delivery.done(job_id, body_of(document, stop=pipeline.batcher.lost), streamed=False)
    finally:
        facts = job_log.facts(with_text=pipeline.settings.log_text)
        log.info("job %s", status, extra={"job": job_id, "facts": facts})


def body_of(output: object, *, stop: bool) -> dict[str, Any]:
    """The body to post for an answer, in the platform's format.

    A top-level `error` marks a job as failed; `stopPod` has the worker replaced.
    """
    body: dict[str, Any] = {"output": output}
    if isinstance(output, dict):
        rest = {name: value for name, value in output.items() if name != "refresh_worker"}
        error = rest.pop("error", None)
        body = {"output": rest} if error is None else {"output": rest, "error": error}
        stop = stop or bool(output.get("refresh_worker"))
    return {**body, "stopPod": True} if stop else body


@asynccontextmanager
async def _reporting_progress(
    delivery: Delivery, job_id: str, job_log: JobLog, every_seconds: float | None
) -> AsyncGenerator[None, None]:
    """Report progress periodically until the block ends.

    A report in transit is awaited, because it must not arrive after the answer; that of a
    cancelled job is cancelled.
    """
    ended = asyncio.Event()

    async def report() -> None:
        while True:
            try:
                await asyncio.wait_for(ended.wait(), every_seconds)
            except TimeoutError:
                await delivery.progress(job_id, job_log.progress())
            else:
                return

    reporter = None if every_seconds is None else asyncio.create_task(report())
    try:
        yield
    except asyncio.CancelledError:
        if reporter is not None:
            reporter.cancel()
        raise
    finally:
        ended.set()
        if reporter is not None and not reporter.cancelling():
            await reporter


def _wants(payload: object, *fields: str) -> bool:
    """Whether one of these fields is true; wrong types are rejected by the parser."""
    return isinstance(payload, dict) and any(payload.get(field) is True for field in fields)


def _streams(payload: object) -> bool:
    """Whether the job requests a stream, in native or OpenAI fields."""
    inner = payload.get("openai_input") if isinstance(payload, dict) else None
    return _wants(payload, "stream") or _wants(inner, "stream")
