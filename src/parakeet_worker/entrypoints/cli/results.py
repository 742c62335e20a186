"""Where the answers and failures of a run go."""

import json
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias

from tqdm import tqdm

from parakeet_worker.client.answer import Answer
from parakeet_worker.client.files import Task
from parakeet_worker.client.manifest import Manifest, RequestOptions, Source
from parakeet_worker.client.prices import is_billed
from parakeet_worker.client.transports import ProgressCallbacks, QueuedJob
from parakeet_worker.entrypoints.cli.progress import Progress
from parakeet_worker.errors import (
    EndpointDenied,
    InvalidRequest,
    ParakeetError,
    ResultNotWritten,
)
from parakeet_worker.options import Format

Answers: TypeAlias = Mapping[Format, Answer]
"""One transcription in every requested format."""

Transcribe: TypeAlias = Callable[[Task, ProgressCallbacks, QueuedJob | None], Awaitable[Answers]]
"""Transcribes a file, or fetches the answer of a job of an earlier run."""


@dataclass(frozen=True, slots=True)
class Run:
    """Which files to transcribe, how and where."""

    tasks: Sequence[Task]
    formats: Sequence[Format]
    transcribe: Transcribe
    options: RequestOptions
    """The request's fields except format and audio; identifies an answer."""
    where: str
    """The endpoint, to find its jobs again."""
    concurrency: int
    overwrite: bool


class Tally:
    """Counts of a run."""

    def __init__(self) -> None:
        self.transcribed = 0
        self.skipped = 0
        """Files whose results an earlier run has written."""
        self.failures: list[tuple[Task, ParakeetError]] = []
        self.fatal: ParakeetError | None = None
        """What ends the whole run: access denied, or a disk that is full."""
        self.audio_seconds = 0.0
        self.worker_seconds: float | None = None
        """Summed over the answers of RunPod's workers."""

    def summary(self, elapsed_seconds: float) -> str:
        """One line: files, audio, speed."""
        counts = [f"{self.transcribed} transcribed"]
        if self.skipped:
            counts.append(f"{self.skipped} already there")
        if self.failures:
            counts.append(f"{len(self.failures)} failed")
        line = ", ".join(counts)
        if self.audio_seconds:
            speed = self.audio_seconds / max(elapsed_seconds, 1e-3)
            line += (
                f"; {_duration(self.audio_seconds)} of audio in {_duration(elapsed_seconds)}, "
                f"{speed:.1f}x real time"
            )
        if self.worker_seconds is not None:
            line += f"; {self.worker_seconds:.1f} s of worker time (`parakeet cost` has prices)"
        return line


def _duration(seconds: float) -> str:
    return f"{seconds / 3600:.2f} h" if seconds >= 3600 else f"{seconds:.1f} s"


class Results:
    """Answers and failures of a run: written, printed, counted."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._listed = len(run.tasks) > 1
        self._manifests: dict[Path, Manifest] = {}
        self._open = ExitStack()
        self.tally = Tally()

    def __enter__(self) -> "Results":
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    async def outcome(self, task: Task, progress: Progress) -> Answers | ParakeetError | None:
        """A file's answers, written where they belong; None if all were there already."""
        if self.tally.fatal is not None:
            return self.tally.fatal
        callbacks = ProgressCallbacks(
            stage=lambda stage: progress.stage(task, stage),
            retrying=lambda retry: progress.retrying(task, retry),
        )
        try:
            if not task.targets:
                return await self._run.transcribe(task, callbacks, None)
            return await self._written(task, callbacks)
        except ParakeetError as error:
            if _ends_the_run(error):
                self.tally.fatal = self.tally.fatal or error
                return self.tally.fatal
            return error

    async def _written(self, task: Task, callbacks: ProgressCallbacks) -> Answers | None:
        run, source = self._run, _source(task)
        first, *others = task.targets
        target = task.targets[first]
        manifest = self._manifest(target.parent)
        requests: dict[Format, RequestOptions] = {
            name: {**run.options, "format": name} for name in run.formats
        }
        resumable = not task.recording.piped
        if resumable and not run.overwrite and all(
            manifest.finished(source, path, requests[name]) for name, path in task.targets.items()
        ):  # fmt: skip
            self.tally.skipped += 1
            return None
        for path in task.targets.values():
            if path.exists() and not run.overwrite and not manifest.owns(path):
                raise InvalidRequest(str(path), "exists already; --overwrite replaces it")
        # The options of a job covers all formats: its answer is made for them.
        options = {**run.options, "format": ",".join(run.formats)}
        job = manifest.job(source, target, options, run.where) if resumable else None

        def note(job: QueuedJob) -> None:
            manifest.note_sent(source, target, options, run.where, job)

        try:
            answers = await run.transcribe(task, replace(callbacks, sent=note), job)
        except ParakeetError as error:
            if _ends_the_run(error):
                raise
            manifest.note_failed(source, target, options, error)
            raise
        answer = answers[first]
        manifest.keep(source, target, requests[first], answer.content, answer.usage)
        for name in others:
            answer = answers[name]
            manifest.keep(
                source, task.targets[name], requests[name], answer.content, answer.usage,
                same_job_as=target,
            )  # fmt: skip
        return answers

    def _manifest(self, folder: Path) -> Manifest:
        if folder not in self._manifests:
            self._manifests[folder] = self._open.enter_context(Manifest(folder))
        return self._manifests[folder]

    def take(self, task: Task, outcome: Answers | ParakeetError | None) -> None:
        """Count and print an outcome."""
        if isinstance(outcome, ParakeetError):
            if outcome is not self.tally.fatal:
                self.tally.failures.append((task, outcome))
            return
        if outcome is None:
            return
        answer = next(iter(outcome.values()))
        tally, usage = self.tally, answer.usage
        tally.transcribed += 1
        tally.audio_seconds += usage.audio_seconds or 0.0
        if is_billed(usage.worker) and usage.executed_seconds is not None:
            tally.worker_seconds = (tally.worker_seconds or 0.0) + usage.executed_seconds
        for warning in answer.warnings:
            tqdm.write(f"{task.name}: warning: {warning}", file=sys.stderr)
        if not task.targets:
            self._print(task, answer)

    def _print(self, task: Task, answer: Answer) -> None:
        if self._listed and answer.format in ("json", "verbose_json"):
            listed = {"file": task.name, **answer.document}
            text = json.dumps(listed, ensure_ascii=False) + "\n"
        else:
            text = (f"==> {task.name} <==\n" if self._listed else "") + answer.content
        tqdm.write(text, end="")
        sys.stdout.flush()


def _ends_the_run(error: ParakeetError) -> bool:
    """Whether no other file can succeed: access denied, or a disk that is full."""
    return isinstance(error, EndpointDenied) or (
        isinstance(error, ResultNotWritten) and error.disk_full
    )


def _source(task: Task) -> Source:
    return task.recording.url or task.path
