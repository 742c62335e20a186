"""A job's `input` to its answer, whole or segment by segment, for every transport."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import TypeAlias

from parakeet_worker import outputs, threads
from parakeet_worker.errors import JobTimeout, ParakeetError
from parakeet_worker.formats import render
from parakeet_worker.formats.render import Document
from parakeet_worker.outcome import BUG, Observation, Observe, observed, unobserved
from parakeet_worker.pipeline import Pipeline
from parakeet_worker.recognition import transcript
from parakeet_worker.recognition.transcript import Sentence, SentencesSoFar, Transcript
from parakeet_worker.request import Job, Request
from parakeet_worker.wire.native import parse

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class SegmentPart:
    """A sentence of a stream, as soon as it is complete."""

    document: Document
    """As it is sent."""
    sentence: Sentence


@dataclass(frozen=True, slots=True)
class ResultPart:
    """The last part of a stream."""

    document: object
    """The answer, as it would be without a stream."""
    transcript: Transcript | None
    """None for a list of recordings."""


Part: TypeAlias = SegmentPart | ResultPart


async def answer(
    pipeline: Pipeline, payload: object, observe: Observe = unobserved
) -> Document | list[Document]:
    """The answer to a job; a list is answered in order, each with its own error.

    `observe` is told what became of every recording. Raises `ParakeetError`s.
    """
    return await answer_job(pipeline, await _parsed(payload), observe)


async def answer_job(
    pipeline: Pipeline, job: Job, observe: Observe = unobserved
) -> Document | list[Document]:
    """The same of a job that has been read."""
    async with _within(_deadline(pipeline), pipeline):
        if job.listed:
            found: Document | list[Document] = await _documents(pipeline, job, observe)
        else:
            found = await _document(pipeline, _readable(job.requests[0]), observe)
        return await outputs.store_if_large(found, job.output, pipeline.settings)


async def stream(
    pipeline: Pipeline, payload: object, observe: Observe = unobserved
) -> AsyncGenerator[Part, None]:
    """A `SegmentPart` for every sentence as it is done, a `ResultPart` last."""
    async with aclosing(stream_job(pipeline, await _parsed(payload), observe)) as parts:
        async for part in parts:
            yield part


async def stream_job(
    pipeline: Pipeline, job: Job, observe: Observe = unobserved
) -> AsyncGenerator[Part, None]:
    """The same of a job that has been read; of a list there is the answer only."""
    if job.listed:
        yield ResultPart(await answer_job(pipeline, job, observe), None)
        return
    deadline = _deadline(pipeline)
    async with aclosing(_parts(pipeline, job, observe)) as parts:
        while True:
            async with _within(deadline, pipeline):
                part = await anext(parts, None)
            if part is None:
                return
            yield part


async def heard(pipeline: Pipeline, request: Request, observe: Observe = unobserved) -> Transcript:
    """All that is heard in one recording, for a door that renders it in its own way."""
    async with _within(_deadline(pipeline), pipeline):
        with observed(observe) as seen:
            seen.transcript = await pipeline.transcribe(request, seen.watch)
            return seen.transcript


async def _parsed(payload: object) -> Job:
    """In a thread for a list, each of whose items is validated by itself."""
    if isinstance(payload, dict) and payload.get("inputs") is not None:
        return await threads.computed(parse, payload)
    return parse(payload)


async def _parts(pipeline: Pipeline, job: Job, observe: Observe) -> AsyncGenerator[Part, None]:
    request = _readable(job.requests[0])
    with observed(observe) as seen:
        async with aclosing(_segments(pipeline, request, seen)) as parts:
            async for part in parts:
                yield part
        found = await _rendered(request, seen)
        result = await outputs.store_if_large(found, job.output, pipeline.settings)
    yield ResultPart(result, seen.transcript)


async def _segments(
    pipeline: Pipeline, request: Request, seen: Observation
) -> AsyncGenerator[SegmentPart, None]:
    stretches: list[Transcript] = []
    so_far, count = SentencesSoFar(), 0

    async def rendered(sentences: Sequence[Sentence]) -> list[SegmentPart]:
        documents = await threads.computed(render.segments, sentences, count)
        return [SegmentPart(*each) for each in zip(documents, sentences, strict=True)]

    async with aclosing(pipeline.stretches(request, seen.watch)) as heard:
        async for stretch in heard:
            stretches.append(stretch)
            for part in await rendered(so_far.add(stretch)):
                yield part
                count += 1
    for part in await rendered(so_far.rest()):
        yield part
    seen.transcript = await threads.computed(transcript.join, stretches)


def _deadline(pipeline: Pipeline) -> float | None:
    limit_seconds = pipeline.settings.job_timeout_seconds
    return None if limit_seconds is None else asyncio.get_running_loop().time() + limit_seconds


@asynccontextmanager
async def _within(deadline: float | None, pipeline: Pipeline) -> AsyncGenerator[None, None]:
    """Raise `JobTimeout` at the deadline, on the loop's clock."""
    try:
        async with asyncio.timeout_at(deadline) as limit:
            yield
    except TimeoutError as failure:
        if not limit.expired():
            raise
        raise JobTimeout(pipeline.settings.job_timeout_seconds or 0.0) from failure


async def _documents(pipeline: Pipeline, job: Job, observe: Observe) -> list[Document]:
    turns = asyncio.Semaphore(pipeline.settings.concurrency)

    async def one(request: Request | ParakeetError) -> Document:
        async with turns:
            try:
                return await _document(pipeline, _readable(request), observe)
            except ParakeetError as error:
                return error.document()
            except Exception:  # a bug: it costs its own recording alone
                log.exception("a bug in one recording of a list")
                return {"error": f"{BUG}: see the worker's log", "code": BUG}

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(one(request)) for request in job.requests]
    return [task.result() for task in tasks]


async def _document(pipeline: Pipeline, request: Request, observe: Observe) -> Document:
    with observed(observe) as seen:
        seen.transcript = await pipeline.transcribe(request, seen.watch)
        return await _rendered(request, seen)


async def _rendered(request: Request, seen: Observation) -> Document:
    assert seen.transcript is not None
    # In a thread: to find the languages of a long transcript takes its time.
    document = await threads.computed(
        render.document, seen.transcript, request.format, timestamp=request.timestamp
    )
    if request.debug:
        document["debug"] = {**render.account(seen.transcript), "seconds": seen.watch.seconds}
    return document


def _readable(request: Request | ParakeetError) -> Request:
    if isinstance(request, ParakeetError):
        raise request
    return request
