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
"""Sends a segment; whether it arrived."""


class Record:
    """What became of a job's recordings, for its line in the log and for its progress."""

    def __init__(self) -> None:
        self.outcomes: list[Outcome] = []
        self.audio_seconds = 0.0
        """Of one recording, as far as it is heard; else of all that are done."""

    def observe(self, outcome: Outcome) -> None:
        """Note how a recording ended."""
        self.outcomes.append(outcome)
        self.audio_seconds = sum(
            done.transcript.seconds for done in self.outcomes if done.transcript
        )

    def heard(self, end_seconds: float) -> None:
        """Note how far one recording is."""
        self.audio_seconds = max(self.audio_seconds, end_seconds)

    def progress(self) -> dict[str, Any]:
        """How far the job is."""
        return {
            "audio_seconds": round(self.audio_seconds, 2),
            "recordings": len(self.outcomes),
        }

    def facts(self, *, with_text: bool) -> dict[str, Any]:
        """What stands in the log; what was heard only if it is asked for."""
        seconds: Counter[str] = Counter()
        for outcome in self.outcomes:
            seconds.update(outcome.stage_seconds)
        heard = [outcome.transcript for outcome in self.outcomes if outcome.transcript]
        codes = [outcome.code for outcome in self.outcomes if outcome.code]
        facts: dict[str, Any] = {
            "audio_seconds": round(self.audio_seconds, 3),
            "words": sum(len(transcript.words) for transcript in heard),
            "seconds": {stage: round(spent, 4) for stage, spent in seconds.items()},
        }
        if codes:
            facts["codes"] = codes
        if with_text:
            facts["text"] = [transcript.text for transcript in heard]
        return facts


async def answered(
    pipeline: Pipeline, payload: object, record: Record, segment: Segment | None = None
) -> object:
    """The answer to a job's `input`; an error is an answer too.

    Where segments are wanted and `segment` takes them, it is called with each, up to one that does
    not arrive: what a caller has of a stream is its beginning, and nothing is left out of it.
    """
    wanted = _streams(payload)
    try:
        if isinstance(payload, RequestError):
            raise payload
        if isinstance(payload, dict) and "openai_route" in payload:
            send = segment if wanted else None
            return await openai.answer_openai(pipeline, payload, record.observe, send)
        if segment is None or not _wants(payload, "stream", "progress"):
            return await answers.answer(pipeline, payload, record.observe)
        result: object = None
        async with aclosing(answers.stream(pipeline, payload, record.observe)) as parts:
            async for part in parts:
                if isinstance(part, answers.SegmentPart):
                    record.heard(part.sentence.end_seconds)
                    wanted = wanted and await segment({"segment": part.document})
                else:
                    result = part.document
    except ParakeetError as error:
        replaced = {"refresh_worker": True} if isinstance(error, EngineLost) else {}
        return {**error.document(), **replaced}
    return result


async def answer_job(
    pipeline: Pipeline,
    job: Job,
    delivery: Delivery,
    *,
    progress_seconds: float = PROGRESS_SECONDS,
) -> None:
    """Answer one job of the queue and deliver the answer."""
    name, payload, record = job["id"], job.get("input"), Record()
    JOB.set(name)
    verdict = BUG

    async def segment(chunk: dict[str, Any]) -> bool:
        return await delivery.segment(name, chunk)

    try:
        every_seconds = progress_seconds if _wants(payload, "progress") else None
        async with _progress_told(delivery, name, record, every_seconds):
            listed = isinstance(payload, dict) and payload.get("inputs") is not None
            output = await answered(pipeline, payload, record, None if listed else segment)
        body = body_of(output, stop=pipeline.batcher.lost)
        verdict = str(body.get("output", {}).get("code", "failed")) if "error" in body else "ok"
        streamed = _streams(payload)
        if not await delivery.done(name, body, streamed=streamed):
            verdict = "undelivered"
    except asyncio.CancelledError:
        verdict = CANCELLED
        raise
    except Exception:  # a bug: the caller is told so, and not what it looks like inside
        verdict = BUG
        log.exception("a bug", extra={"job": name})
        told = {"error": f"{BUG}: see the worker's log", "code": BUG}
        await delivery.done(name, body_of(told, stop=pipeline.batcher.lost), streamed=False)
    finally:
        facts = record.facts(with_text=pipeline.settings.log_text)
        log.info("job %s", verdict, extra={"job": name, "facts": facts})


def body_of(output: object, *, stop: bool) -> dict[str, Any]:
    """What is posted for an answer, in the form that the platform reads.

    `error` stands beside the output, because that alone marks a job as failed; `stopPod` asks
    for the worker to be replaced.
    """
    body: dict[str, Any] = {"output": output}
    if isinstance(output, dict):
        rest = {name: value for name, value in output.items() if name != "refresh_worker"}
        error = rest.pop("error", None)
        body = {"output": rest} if error is None else {"output": rest, "error": error}
        stop = stop or bool(output.get("refresh_worker"))
    return {**body, "stopPod": True} if stop else body


@asynccontextmanager
async def _progress_told(
    delivery: Delivery, name: str, record: Record, every_seconds: float | None
) -> AsyncGenerator[None, None]:
    """Tell how far the job is now and then; never once the block has ended.

    What is being told just then is waited for, since it would look like news after the answer;
    of a cancelled job it is not.
    """
    ended = asyncio.Event()

    async def tell() -> None:
        while True:
            try:
                await asyncio.wait_for(ended.wait(), every_seconds)
            except TimeoutError:
                await delivery.progress(name, record.progress())
            else:
                return

    teller = None if every_seconds is None else asyncio.create_task(tell())
    try:
        yield
    except asyncio.CancelledError:
        if teller is not None:
            teller.cancel()
        raise
    finally:
        ended.set()
        if teller is not None and not teller.cancelling():
            await teller


def _wants(payload: object, *fields: str) -> bool:
    """Whether the job asks for one of these; a wrong type is refused where it is read."""
    return isinstance(payload, dict) and any(payload.get(field) is True for field in fields)


def _streams(payload: object) -> bool:
    """Whether the job asks for a stream, in its own fields or in OpenAI's."""
    inner = payload.get("openai_input") if isinstance(payload, dict) else None
    return _wants(payload, "stream") or _wants(inner, "stream")
