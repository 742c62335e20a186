"""Many files side by side: the work of `parakeet transcribe`, whoever does the hearing."""

import asyncio
import json
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

from tqdm import tqdm

from parakeet_worker import render
from parakeet_worker.client.answer import Answer, Figures
from parakeet_worker.client.clients import AsyncClient, Options
from parakeet_worker.client.doors import Job, Listener, Stage
from parakeet_worker.client.files import Task
from parakeet_worker.client.manifest import Manifest, Wish
from parakeet_worker.errors import EndpointDenied, InvalidRequest, ParakeetError
from parakeet_worker.notices import messages
from parakeet_worker.pipeline import Pipeline
from parakeet_worker.request import FileSource, Format, Request
from parakeet_worker.stopwatch import Stopwatch

Value = TypeVar("Value")

Hear: TypeAlias = Callable[[Task, Listener, Job | None], Awaitable[Answer]]
"""A file to its answer; the listener is told how far it is, the job is one of an earlier run."""

_ROWS = 4
_TICK_SECONDS = 0.5
_TOTAL_BAR = "{desc} {percentage:3.0f}%|{bar}| {elapsed}<{remaining}{postfix}"


def here(pipeline: Pipeline, request: Request) -> Hear:
    """Heard in this process, as `request` says."""

    async def hear(task: Task, listener: Listener, _: Job | None) -> Answer:
        listener.stage("hearing")
        watch, started = Stopwatch(), time.time()
        asked = replace(request, source=FileSource(task.path))
        heard = await pipeline.transcribe(asked, watch)
        # In a thread: to find the languages of a long transcript takes its time.
        document = await asyncio.to_thread(
            render.document, heard, asked.format, timestamp=asked.timestamp
        )
        warnings = messages(document.get("warnings"))
        figures = Figures(heard.seconds, None, watch.seconds["total"], started, "here")
        return Answer(document, asked.format, warnings, figures)

    return hear


def there(client: AsyncClient, options: Options) -> Hear:
    """Heard by an endpoint."""

    async def hear(task: Task, listener: Listener, job: Job | None) -> Answer:
        return await client.transcribe(task.path, listener=listener, resume=job, **options)

    return hear


@dataclass(frozen=True, slots=True)
class Run:
    """Which files, how they are to be heard, and by whom."""

    tasks: Sequence[Task]
    hear: Hear
    wish: Wish
    """What tells one answer from another, for the manifest."""
    where: str
    """The endpoint, for jobs that are found again."""
    at_once: int
    overwrite: bool


class Results:
    """Where answers and failures go, and what they come to."""

    def __init__(self, run: Run, format_: Format) -> None:
        self._run = run
        self._format = format_
        self._listed = len(run.tasks) > 1
        self._manifests: dict[Path, Manifest] = {}
        self._open = ExitStack()
        self.denied: EndpointDenied | None = None
        """The endpoint does not let us in: no file can be helped."""
        self.failures: list[tuple[Task, ParakeetError]] = []
        self.fresh = 0
        self.found = 0
        """Files that an earlier run has finished."""

    def __enter__(self) -> "Results":
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    async def outcome(self, task: Task, progress: "Progress") -> Answer | ParakeetError | None:
        """A file's answer, kept where it belongs; None if there was nothing left to do."""
        if self.denied is not None:
            return self.denied
        listener = Listener(stage=lambda stage: progress.stage(task, stage))
        try:
            if task.target is None:
                return await self._run.hear(task, listener, None)
            return await self._kept(task, task.target, listener)
        except EndpointDenied as error:
            self.denied = error
            return error
        except ParakeetError as error:
            return error

    async def _kept(self, task: Task, target: Path, listener: Listener) -> Answer | None:
        run = self._run
        manifest = self._manifest(target.parent)
        if manifest.finished(task.path, target, run.wish) and not run.overwrite:
            self.found += 1
            return None
        if target.exists() and not run.overwrite and not manifest.owns(target):
            raise InvalidRequest(str(target), "is already there; --overwrite replaces it")
        job = manifest.job(task.path, target, run.wish, run.where)

        def note(job: Job) -> None:
            manifest.note_sent(task.path, target, run.wish, run.where, job)

        try:
            answer = await run.hear(task, replace(listener, sent=note), job)
            manifest.keep(task.path, target, run.wish, answer.content, answer.figures)
        except EndpointDenied:
            raise
        except ParakeetError as error:
            manifest.note_failed(task.path, target, run.wish, error)
            raise
        return answer

    def _manifest(self, folder: Path) -> Manifest:
        if folder not in self._manifests:
            self._manifests[folder] = self._open.enter_context(Manifest(folder))
        return self._manifests[folder]

    def take(self, task: Task, outcome: Answer | ParakeetError | None) -> None:
        """Say what was heard, or remember what went wrong."""
        if isinstance(outcome, ParakeetError):
            self.failures.append((task, outcome))
            return
        if outcome is None:
            return
        self.fresh += 1
        for warning in outcome.warnings:
            tqdm.write(f"{task.name}: warning: {warning}", file=sys.stderr)
        if task.target is None:
            self._say(task, outcome)

    def _say(self, task: Task, answer: Answer) -> None:
        if self._listed and self._format in ("json", "verbose_json"):
            listed = {"file": task.name, **answer.document}
            said = json.dumps(listed, ensure_ascii=False) + "\n"
        else:
            said = (f"==> {task.name} <==\n" if self._listed else "") + answer.content
        tqdm.write(said, end="")
        sys.stdout.flush()


class Progress:
    """What a terminal shows: all files with the time that is left, and those that take longest.

    The time is reckoned by bytes: what a file of that size took so far.
    """

    def __init__(self, tasks: Sequence[Task]) -> None:
        self._count, self._ended, self._failed = len(tasks), 0, 0
        self._sizes = {id(task): max(1, task.size) for task in tasks}
        self._begun: dict[int, tuple[float, Task, Stage | None]] = {}
        self._past_bytes, self._past_seconds = 0, 0.0
        self._bar = tqdm(
            total=sum(self._sizes.values()), bar_format=_TOTAL_BAR, smoothing=0, disable=None,
            leave=False, desc=self._described(),
        )  # fmt: skip
        # A row would stand in the way of results that are shown between the bars.
        rows = min(_ROWS, len(tasks)) if all(task.target is not None for task in tasks) else 0
        self._rows = [
            tqdm(bar_format="{desc}", position=1 + row, disable=None, leave=False)
            for row in range(rows)
        ]

    def close(self) -> None:
        """Take it from the screen."""
        for bar in (*reversed(self._rows), self._bar):
            bar.close()

    def begin(self, task: Task) -> None:
        """Work on a file begins."""
        self._begun[id(task)] = (time.monotonic(), task, None)

    def stage(self, task: Task, stage: Stage) -> None:
        """A file has come to a stage."""
        begun, _, _ = self._begun[id(task)]
        self._begun[id(task)] = (begun, task, stage)

    def end(self, task: Task, *, failed: bool, heard: bool) -> None:
        """A file is done with; only those that were heard tell how long others will take."""
        begun, _, _ = self._begun.pop(id(task))
        size = self._sizes[id(task)]
        if heard:
            self._past_bytes += size
            self._past_seconds += time.monotonic() - begun
        self._ended += 1
        self._failed += failed
        self._bar.set_description_str(self._described(), refresh=False)
        self._bar.update(size)

    def show(self) -> None:
        """Bring the rows up to date."""
        oldest = sorted(self._begun.values(), key=lambda begun: begun[0])[: len(self._rows)]
        shown = [self._row(*begun) for begun in oldest]
        for row, said in zip(self._rows, shown + [""] * len(self._rows), strict=False):
            row.set_description_str(said)
        if self._rows:
            self._bar.refresh()

    def _row(self, begun: float, task: Task, stage: Stage | None) -> str:
        clock = tqdm.format_interval(time.monotonic() - begun)
        if self._past_bytes:
            expected = self._sizes[id(task)] * self._past_seconds / self._past_bytes
            clock += f" of about {tqdm.format_interval(expected)}"
        return f"  {task.path.name[-48:]}: {stage or 'looked at'} {clock}"

    def _described(self) -> str:
        failed = f", {self._failed} failed" if self._failed else ""
        return f"{self._ended}/{self._count} files{failed}"


async def transcribe_all(run: Run, results: Results) -> None:
    """Many at once; what is shown comes in the order of the files, what is kept at once."""
    turns = asyncio.Semaphore(run.at_once)
    progress = Progress(run.tasks)

    async def outcome(task: Task) -> Answer | ParakeetError | None:
        async with turns:
            progress.begin(task)
            ended: Answer | ParakeetError | None = None
            try:
                ended = await results.outcome(task, progress)
            finally:
                failed = isinstance(ended, ParakeetError)
                progress.end(task, failed=failed, heard=isinstance(ended, Answer))
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
    """Run until done; SIGTERM ends it as Ctrl-C does: what is under way is cancelled, in order.

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
