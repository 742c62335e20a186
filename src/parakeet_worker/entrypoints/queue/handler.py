"""One job: parses it, delivers its answer and writes its log line."""

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import aclosing, asynccontextmanager
from typing import Any, TypeAlias

from parakeet_worker import answers, threads
from parakeet_worker.entrypoints.queue.delivery import Delivery
from parakeet_worker.entrypoints.queue.loop import Job
from parakeet_worker.errors import EngineLost, ParakeetError, RequestError
from parakeet_worker.logs import JOB
from parakeet_worker.outcome import BUG, CANCELLED, Outcome
from parakeet_worker.pipeline import Pipeline
from parakeet_worker.request import JobInput
from parakeet_worker.wire import openai

log = logging.getLogger(__name__)

PROGRESS_SECONDS = 5.0
"""Shortest interval between two progress reports."""

Segment = Callable[[dict[str, Any]], Awaitable[bool]]
"""Sends a segment; returns whether it was delivered."""

ParsedJob: TypeAlias = JobInput | openai.OpenAIRequest | dict[str, object]
"""A validated `input`, or the answer of a job that transcribes nothing."""


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
    try:
        parsed = await _parsed(pipeline, payload)
        return await _answered(pipeline, parsed, job_log, segment)
    except ParakeetError as error:
        return _error_document(error)


async def _parsed(pipeline: Pipeline, payload: object) -> ParsedJob:
    if isinstance(payload, RequestError):
        raise payload
    if isinstance(payload, Mapping) and "openai_route" in payload:
        return await threads.computed(openai.parse_job, pipeline.settings, payload)
    return await answers.parsed(payload)


async def _answered(
    pipeline: Pipeline, job: ParsedJob, job_log: JobLog, segment: Segment | None
) -> object:
    if isinstance(job, Mapping):
        return job
    if isinstance(job, openai.OpenAIRequest):
        return await openai.answer_job(pipeline, job, job_log.observe, segment)
    if segment is None or job.listed or not (job.stream or job.progress):
        return await answers.answer_job(pipeline, job, job_log.observe)
    streaming, result = job.stream, None
    async with aclosing(answers.stream_job(pipeline, job, job_log.observe)) as parts:
        async for part in parts:
            if isinstance(part, answers.SegmentPart):
                job_log.advance(part.sentence.end_seconds)
                streaming = streaming and await segment({"segment": part.document})
            else:
                result = part.document
    return result


def _error_document(error: ParakeetError) -> dict[str, object]:
    refresh = {"refresh_worker": True} if isinstance(error, EngineLost) else {}
    return {**error.document(), **refresh}


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
    status, streamed = BUG, False

    async def segment(chunk: dict[str, Any]) -> bool:
        return await delivery.segment(job_id, chunk)

    try:
        try:
            parsed = await _parsed(pipeline, payload)
            streamed = not isinstance(parsed, Mapping) and parsed.stream
            progress = isinstance(parsed, JobInput) and parsed.progress
            every_seconds = progress_seconds if progress else None
            async with _reporting_progress(delivery, job_id, job_log, every_seconds):
                output = await _answered(pipeline, parsed, job_log, segment)
        except ParakeetError as error:
            output = _error_document(error)
        body = body_of(output, stop=pipeline.batcher.lost)
        status = str(body.get("output", {}).get("code", "failed")) if "error" in body else "ok"
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
