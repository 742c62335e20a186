"""Transcribes many files concurrently, locally or at an endpoint."""

import asyncio
import signal
import time
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar, cast

from parakeet_worker.client.answer import LOCAL, Answer, Usage
from parakeet_worker.client.clients import AsyncClient, Options
from parakeet_worker.client.files import Task
from parakeet_worker.client.transports import ProgressCallbacks, QueuedJob
from parakeet_worker.entrypoints.cli.progress import Progress
from parakeet_worker.entrypoints.cli.results import Answers, Results, Run, Transcribe
from parakeet_worker.errors import ParakeetError
from parakeet_worker.notices import messages
from parakeet_worker.options import CUE_FORMATS, CUE_LIMITS, CueLimits, Format
from parakeet_worker.request import FileSource, Request
from parakeet_worker.stopwatch import Stopwatch
from parakeet_worker.wire.addresses import source_at
from parakeet_worker.wire.native import request_options

if TYPE_CHECKING:
    from parakeet_worker.pipeline import Pipeline

Value = TypeVar("Value")

_TICK_SECONDS = 0.5


def local(
    pipeline: "Pipeline", fields: Mapping[str, object], formats: Sequence[Format]
) -> Transcribe:
    """Transcribe in this process, with `fields` as in a request."""
    from parakeet_worker.formats import render

    values: dict[str, Any] = {name: fields[name] for name in CUE_LIMITS if name in fields}
    limits = CueLimits(**values)
    recognition = {name: value for name, value in fields.items() if name not in CUE_LIMITS}

    async def transcribe(task: Task, callbacks: ProgressCallbacks, _: QueuedJob | None) -> Answers:
        callbacks.stage("transcribing")
        watch, started = Stopwatch(), time.time()
        request = _request(task, recognition)
        transcript = await pipeline.transcribe(request, watch)

        def rendered() -> dict[Format, Mapping[str, Any]]:
            return {
                name: render.document(
                    transcript,
                    name,
                    timestamp=request.timestamp and name == "json",
                    limits=limits,
                )
                for name in formats
            }

        # In a thread: to identify the languages of a long transcript takes a while.
        documents = await asyncio.to_thread(rendered)
        usage = Usage(transcript.seconds, None, watch.seconds["total"], started, LOCAL)
        return {
            name: Answer(document, name, messages(document.get("warnings")), usage)
            for name, document in documents.items()
        }

    return transcribe


def _request(task: Task, fields: Mapping[str, object]) -> Request:
    url = task.recording.url
    source = FileSource(task.path) if url is None else source_at(url, "input")
    return request_options(fields)(source)


def remote(client: AsyncClient, options: Options, formats: Sequence[Format]) -> Transcribe:
    """Transcribe at an endpoint: one job, from whose words the other formats are written."""
    single = formats[0] if len(formats) == 1 else None
    wire: Format = single or ("json" if "json" in formats else "verbose_json")
    absent = () if wire in CUE_FORMATS else CUE_LIMITS
    kept = {name: value for name, value in options.items() if name not in absent}
    sent = cast("Options", {**kept, "format": wire})
    if single is None and wire == "json":
        sent["timestamp"] = True

    async def transcribe(
        task: Task, callbacks: ProgressCallbacks, job: QueuedJob | None
    ) -> Answers:
        audio = task.recording.url or task.path
        answer = await client.transcribe(audio, callbacks=callbacks, resume=job, **sent)
        if single is not None:
            return {single: answer}
        # In a thread: a long transcript takes a while.
        return await asyncio.to_thread(_rewritten, answer, formats, options)

    return transcribe


def _rewritten(answer: Answer, formats: Sequence[Format], options: Options) -> Answers:
    """The other formats, from the words of `json` with times or of `verbose_json`."""
    from parakeet_worker.formats import reformat

    document = dict(answer.document)
    timed = document.get("timestamps", document)
    words = timed["word"] if "timestamps" in document else timed["words"]
    if "timestamps" in document and not options.get("timestamp"):
        del document["timestamps"]
    kept = ("word", "start", "end", "confidence", "channel", "speaker", "overlap")
    fields = [{name: word[name] for name in kept if name in word} for word in words]

    def in_format(name: Format) -> Answer:
        if name == answer.format:
            return replace(answer, document=document)
        content = reformat.rewrite({"format": name, "words": fields, **_limits(options, name)})
        other: dict[str, Any] = {"text": answer.text}
        if name != "text":
            other[name] = content
        return replace(answer, document=other, format=name)

    return {name: in_format(name) for name in formats}


def _limits(options: Options, format_: Format) -> dict[str, object]:
    limits = {name: value for name, value in options.items() if name in CUE_LIMITS}
    return limits if format_ in CUE_FORMATS else {}


async def transcribe_all(run: Run, results: Results) -> None:
    """Run all tasks; results are printed in the order of the files and written immediately."""
    slots = asyncio.Semaphore(run.concurrency)
    progress = Progress(run.tasks)

    async def outcome(task: Task) -> Answers | ParakeetError | None:
        async with slots:
            progress.begin(task)
            ended: Answers | ParakeetError | None = None
            try:
                ended = await results.outcome(task, progress)
            finally:
                failed = isinstance(ended, ParakeetError)
                transcribed = ended is not None and not failed
                progress.end(task, failed=failed, transcribed=transcribed)
            return ended

    async def show() -> None:
        while True:
            progress.show()
            await asyncio.sleep(_TICK_SECONDS)

    showing = asyncio.create_task(show())
    outcomes = [asyncio.create_task(outcome(task)) for task in run.tasks]
    try:
        for task, ready in zip(run.tasks, outcomes, strict=True):
            results.take(task, await ready)
    finally:
        for ready in (*outcomes, showing):
            ready.cancel()
        await asyncio.gather(*outcomes, showing, return_exceptions=True)
        progress.close()


def interruptible(work: Coroutine[Any, Any, Value]) -> Value:
    """Run until done; SIGTERM cancels as Ctrl-C does.

    Raises `KeyboardInterrupt`.
    """

    async def run() -> Value:
        running = asyncio.current_task()
        assert running is not None
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, running.cancel)
        return await work

    try:
        return asyncio.run(run())
    except asyncio.CancelledError:
        raise KeyboardInterrupt from None
