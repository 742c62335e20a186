"""The command line: `parakeet transcribe FILE...`."""

import asyncio
import json
import logging
import os
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import click
from tqdm import tqdm

from parakeet_worker import render
from parakeet_worker.errors import InvalidRequest, ParakeetError, SetupError
from parakeet_worker.pipeline import Pipeline
from parakeet_worker.request import Clip, FileSource, Format, Request
from parakeet_worker.settings import Settings
from parakeet_worker.transcript import Transcript
from parakeet_worker.worker import open_pipeline

_SOME_FAILED = 1
_USAGE = 2
_ENDINGS: dict[str, str] = {"text": "txt", "verbose_json": "json"}


@dataclass(frozen=True, slots=True)
class Task:
    """One file to transcribe, and where its result goes; None is standard output."""

    path: Path
    target: Path | None


@click.group()
@click.version_option(package_name="parakeet-worker")
def main() -> None:
    """Speech to text with NVIDIA Parakeet TDT 0.6B v3."""


@main.command()
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--format", "-f", "format_", type=click.Choice(get_args(Format)), default="text",
    show_default=True, help="What to write.",
)  # fmt: skip
@click.option("--timestamps", is_flag=True, help="Word, segment and token times, in 'json'.")
@click.option("--model", "-m", help="Hugging Face name, path, or 'demo'. [default: the settings']")
@click.option(
    "--output", "-o", type=click.Path(file_okay=False, path_type=Path), metavar="DIR",
    help="Write DIR/<name>.<ending> for each file instead of standard output.",
)  # fmt: skip
@click.option("--overwrite", is_flag=True, help="Replace results that are already in DIR.")
def transcribe(
    files: tuple[Path, ...],
    format_: Format,
    timestamps: bool,
    model: str | None,
    output: Path | None,
    overwrite: bool,
) -> None:
    """Transcribe FILES; the failed ones are told on standard error.

    Exit status: 0 if all went well, 1 if some files failed, 2 for wrong usage.
    """
    if timestamps and format_ != "json":
        raise click.UsageError("--timestamps needs --format json; the other formats have theirs")
    if overwrite and output is None:
        raise click.UsageError("--overwrite needs --output")
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    try:
        settings = Settings.from_environment(os.environ)
        if model is not None:
            settings = settings.model_copy(update={"model": model})
        with open_pipeline(settings) as pipeline:
            tasks = plan_tasks(files, format_, output)
            results = _Results(format_, timestamps, listed=len(tasks) > 1)
            asyncio.run(_transcribe_all(tasks, pipeline, results, overwrite))
    except SetupError as error:
        click.echo(f"parakeet: {error}", err=True)
        sys.exit(_USAGE)
    sys.exit(_SOME_FAILED if results.failed else 0)


def plan_tasks(files: Sequence[Path], format_: str, output: Path | None) -> list[Task]:
    """Where each result goes: `talk.srt`, and `talk.mp3.srt` where two files would share that.

    Files of one name from different folders are numbered: `talk.mp3-2.srt`.
    """
    if output is None:
        return [Task(path, None) for path in files]
    ending = _ENDINGS.get(format_, format_)
    stems = Counter(path.stem for path in files)
    taken: Counter[str] = Counter()
    tasks = []
    for path in files:
        name = path.stem if stems[path.stem] == 1 else path.name
        taken[name] += 1
        numbered = name if taken[name] == 1 else f"{name}-{taken[name]}"
        tasks.append(Task(path, output / f"{numbered}.{ending}"))
    return tasks


class _Results:
    """Writes results in the order of the files, however they finish."""

    def __init__(self, format_: Format, timestamps: bool, *, listed: bool) -> None:
        self._format = format_
        self._timestamps = timestamps
        self._listed = listed
        self.failed = 0

    def request(self, path: Path) -> Request:
        return Request(
            source=FileSource(path),
            clip=Clip(),
            format=self._format,
            timestamp=self._timestamps,
        )

    def write(self, task: Task, heard: Transcript) -> None:
        for warning in heard.warnings:
            tqdm.write(f"{task.path}: warning: {warning}", file=sys.stderr)
        if task.target is not None:
            content = render.written(heard, self._format, timestamp=self._timestamps)
            _write_whole(task.target, content)
        elif self._listed and self._format in ("json", "verbose_json"):
            answer = render.document(heard, self._format, timestamp=self._timestamps)
            _say(json.dumps({"file": str(task.path), **answer}, ensure_ascii=False) + "\n")
        else:
            heading = f"==> {task.path} <==\n" if self._listed else ""
            _say(heading + render.written(heard, self._format, timestamp=self._timestamps))

    def fail(self, task: Task, error: ParakeetError) -> None:
        self.failed += 1
        tqdm.write(f"{task.path}: {error}", file=sys.stderr)


async def _transcribe_all(
    tasks: Sequence[Task], pipeline: Pipeline, results: _Results, overwrite: bool
) -> None:
    turns = asyncio.Semaphore(pipeline.settings.concurrency)
    with tqdm(total=len(tasks), unit="file", disable=None, leave=False) as bar:

        async def one(task: Task) -> Transcript | ParakeetError:
            async with turns:
                try:
                    _check(task, overwrite)
                    return await pipeline.transcribe(results.request(task.path))
                except ParakeetError as error:
                    return error
                finally:
                    bar.update()

        async with asyncio.TaskGroup() as group:
            running = [group.create_task(one(task)) for task in tasks]
            for task, heard in zip(tasks, running, strict=True):
                outcome = await heard
                if isinstance(outcome, ParakeetError):
                    results.fail(task, outcome)
                else:
                    results.write(task, outcome)


def _check(task: Task, overwrite: bool) -> None:
    if not task.path.is_file():
        raise InvalidRequest(str(task.path), "there is no such file")
    if task.target is not None and task.target.exists() and not overwrite:
        raise InvalidRequest(str(task.target), "is already there; --overwrite replaces it")


def _write_whole(target: Path, content: str) -> None:
    """Under its final name only once it is complete."""
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = target.with_name(f".{target.name}.part")
    aside.write_text(content, encoding="utf-8")
    aside.replace(target)


def _say(content: str) -> None:
    sys.stdout.write(content)
    sys.stdout.flush()


if __name__ == "__main__":
    main()
