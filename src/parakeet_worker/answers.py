"""A job's input to its answer, whole or streamed, for every transport."""

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
from parakeet_worker.outcome import BUG, Observation, Observe, ignore_outcome, observing
from parakeet_worker.pipeline import Pipeline, joined
from parakeet_worker.recognition.transcript import Sentence, SentencesSoFar, Transcript
from parakeet_worker.request import JobInput, Request
from parakeet_worker.wire.native import parse

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class SegmentPart:
    """A sentence of a stream."""

    document: Document
    """Its JSON, as `verbose_json` has it."""
    sentence: Sentence


@dataclass(frozen=True, slots=True)
class ResultPart:
    """The last part of a stream."""

    document: object
    """The answer, the same as without a stream."""
    transcript: Transcript | None
    """None for a list of recordings."""


Part: TypeAlias = SegmentPart | ResultPart


async def answer(
    pipeline: Pipeline, payload: object, observe: Observe = ignore_outcome
) -> Document | list[Document]:
    """Answer a job. A list is answered in order, each item with its own error.

    `observe` is called with the outcome of every recording. Raises `ParakeetError`s.
    """
    return await answer_job(pipeline, await parsed(payload), observe)


async def answer_job(
    pipeline: Pipeline, job: JobInput, observe: Observe = ignore_outcome
) -> Document | list[Document]:
    """Answer a validated job."""
    async with _within(_deadline(pipeline), pipeline):
        if job.listed:
            result: Document | list[Document] = await _documents(pipeline, job, observe)
        else:
            result = await _document(pipeline, _valid(job.requests[0]), observe)
        return await outputs.store_if_large(result, job.output, pipeline.settings)


async def stream(
    pipeline: Pipeline, payload: object, observe: Observe = ignore_outcome
) -> AsyncGenerator[Part, None]:
    """Yield a `SegmentPart` per sentence, then a `ResultPart`."""
    async with aclosing(stream_job(pipeline, await parsed(payload), observe)) as parts:
        async for part in parts:
            yield part


async def stream_job(
    pipeline: Pipeline, job: JobInput, observe: Observe = ignore_outcome
) -> AsyncGenerator[Part, None]:
    """Stream a validated job; a list yields its `ResultPart` only."""
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


async def transcribe(
    pipeline: Pipeline, request: Request, observe: Observe = ignore_outcome
) -> Transcript:
    """The transcript of one recording, for a transport that renders it itself."""
    async with _within(_deadline(pipeline), pipeline):
        with observing(observe) as observation:
            observation.transcript = await pipeline.transcribe(request, observation.watch)
            return observation.transcript


async def parsed(payload: object) -> JobInput:
    """Validate a payload; a list in a thread, since each item is validated separately."""
    if isinstance(payload, dict) and payload.get("inputs") is not None:
        return await threads.computed(parse, payload)
    return parse(payload)


async def _parts(pipeline: Pipeline, job: JobInput, observe: Observe) -> AsyncGenerator[Part, None]:
    request = _valid(job.requests[0])
    with observing(observe) as observation:
        async with aclosing(_segments(pipeline, request, observation)) as parts:
            async for part in parts:
                yield part
        document = await _rendered(request, observation)
        result = await outputs.store_if_large(document, job.output, pipeline.settings)
    yield ResultPart(result, observation.transcript)


async def _segments(
    pipeline: Pipeline, request: Request, observation: Observation
) -> AsyncGenerator[SegmentPart, None]:
    partials: list[Transcript] = []
    so_far, count = SentencesSoFar(), 0

    async def rendered(sentences: Sequence[Sentence]) -> list[SegmentPart]:
        documents = await threads.computed(render.segments, sentences, count)
        return [SegmentPart(*each) for each in zip(documents, sentences, strict=True)]

    async with aclosing(pipeline.partials(request, observation.watch)) as arriving:
        async for partial in arriving:
            partials.append(partial)
            for part in await rendered(so_far.add(partial)):
                yield part
                count += 1
    for part in await rendered(so_far.rest()):
        yield part
    observation.transcript = await threads.computed(joined, partials)


def _deadline(pipeline: Pipeline) -> float | None:
    limit_seconds = pipeline.settings.job_timeout_seconds
    return None if limit_seconds is None else asyncio.get_running_loop().time() + limit_seconds


@asynccontextmanager
async def _within(deadline: float | None, pipeline: Pipeline) -> AsyncGenerator[None, None]:
    """Raise `JobTimeout` at the deadline, a time of the loop's clock."""
    try:
        async with asyncio.timeout_at(deadline) as limit:
            yield
    except TimeoutError as failure:
        if not limit.expired():
            raise
        raise JobTimeout(pipeline.settings.job_timeout_seconds or 0.0) from failure


async def _documents(pipeline: Pipeline, job: JobInput, observe: Observe) -> list[Document]:
    limit = asyncio.Semaphore(pipeline.settings.concurrency)

    async def one(request: Request | ParakeetError) -> Document:
        async with limit:
            try:
                return await _document(pipeline, _valid(request), observe)
            except ParakeetError as error:
                return error.document()
            except Exception:  # a bug fails its own recording only
                log.exception("unexpected error in one recording of a list")
                return {"error": f"{BUG}: see the worker's log", "code": BUG}

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(one(request)) for request in job.requests]
    return [task.result() for task in tasks]


async def _document(pipeline: Pipeline, request: Request, observe: Observe) -> Document:
    with observing(observe) as observation:
        observation.transcript = await pipeline.transcribe(request, observation.watch)
        return await _rendered(request, observation)


async def _rendered(request: Request, observation: Observation) -> Document:
    assert observation.transcript is not None
    # In a thread: identifying the languages of a long transcript takes a while.
    document = await threads.computed(
        render.document,
        observation.transcript,
        request.format,
        timestamp=request.timestamp,
        limits=request.cue_limits,
    )
    if request.debug:
        document["debug"] = {
            **render.debug_facts(observation.transcript),
            "seconds": observation.watch.seconds,
        }
    return document


def _valid(request: Request | ParakeetError) -> Request:
    if isinstance(request, ParakeetError):
        raise request
    return request
