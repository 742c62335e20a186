"""The command line: `parakeet transcribe FILE...`."""

import asyncio
import json
import logging
import os
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import get_args

import click
from tqdm import tqdm

from parakeet_worker import render, verification
from parakeet_worker.bootstrap import prepare
from parakeet_worker.doctor import examine
from parakeet_worker.errors import InvalidRequest, ParakeetError, SetupError
from parakeet_worker.pipeline import Pipeline
from parakeet_worker.request import FileSource, Format, Request
from parakeet_worker.settings import Settings
from parakeet_worker.transcript import Transcript
from parakeet_worker.worker import open_pipeline

_ROOT = Path(__file__).resolve().parents[3]
_SOME_FAILED = 1
_USAGE = 2
_ENDINGS: dict[str, str] = {"text": "txt", "verbose_json": "json"}


@dataclass(frozen=True, slots=True)
class Task:
    """One file to transcribe, and where its result goes; None is standard output."""

    path: Path
    target: Path | None

    @property
    def name(self) -> str:
        """The file as the user named it, in letters that can be printed."""
        return click.format_filename(self.path)


@click.group()
@click.version_option(package_name="parakeet-worker")
def main() -> None:
    """Speech to text with NVIDIA Parakeet TDT 0.6B v3."""


@main.command()
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--format", "-f", "chosen", type=click.Choice(get_args(Format)),
    help="What to write.  [default: text, or json with --timestamps]",
)  # fmt: skip
@click.option("--timestamps", is_flag=True, help="Word, segment and token times, in 'json'.")
@click.option("--model", "-m", help="Hugging Face name, path, or 'demo'.  [default: the settings']")
@click.option(
    "--output", "-o", type=click.Path(file_okay=False, path_type=Path), metavar="DIR",
    help="Write DIR/<name>.<ending> for each file instead of standard output.",
)  # fmt: skip
@click.option("--overwrite", is_flag=True, help="Replace results that are already in DIR.")
def transcribe(
    files: tuple[Path, ...],
    chosen: Format | None,
    timestamps: bool,
    model: str | None,
    output: Path | None,
    overwrite: bool,
) -> None:
    """Transcribe FILES; the failed ones are told on standard error.

    Exit status: 0 if all went well, 1 if some files failed, 2 for wrong usage.
    """
    format_ = chosen or ("json" if timestamps else "text")
    if timestamps and format_ != "json":
        raise click.UsageError("--timestamps needs --format json; the other formats have theirs")
    if overwrite and output is None:
        raise click.UsageError("--overwrite needs --output")
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    tasks = plan_tasks(files, format_, output)
    results = _Results(format_, timestamps, listed=len(tasks) > 1, overwrite=overwrite)
    with _setup_errors_told(), open_pipeline(_settings(model)) as pipeline:
        asyncio.run(_transcribe_all(tasks, pipeline, results))
    sys.exit(_SOME_FAILED if results.failed else 0)


@main.command()
@click.option("--model", "-m", help="Hugging Face name, path, or 'demo'.  [default: the settings']")
def verify(model: str | None) -> None:
    """Check the model's files, load it, and let it hear a clip that comes with the package.

    Exit status: 0 if all is well, 1 if a file is corrupt or nothing was heard, 2 if the model
    cannot be found or loaded.
    """
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    with _setup_errors_told():
        settings = _settings(model)
        checks = []
        for check in verification.check_weights(settings):
            click.echo(f"file    {check.path}\n        {check.size_bytes:,} bytes, {check.verdict}")
            click.echo(f"        {check.digest}")
            checks.append(check)
        hearing = verification.hear_clip(settings)
    click.echo(f"engine  {hearing.engine}")
    click.echo(f"ready   after {hearing.ready_seconds:.1f} s")
    click.echo(f"said    {hearing.said}")
    click.echo(f"heard   {hearing.heard}")
    click.echo(f"speed   {hearing.clip_seconds:.1f} s of audio in {hearing.hear_seconds:.2f} s")
    corrupt = [check for check in checks if check.verdict == "corrupt"]
    for check in corrupt:
        click.echo(f"parakeet: {check.path} is not what it was named for: delete it", err=True)
    if not hearing.heard:
        click.echo("parakeet: nothing was heard in a clip of clear speech", err=True)
    sys.exit(_SOME_FAILED if corrupt or not hearing.heard else 0)


@main.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="0.0.0.0 lets others in.")
@click.option("--port", type=click.IntRange(0, 65535), help="[default: PORT, else 8000]")
@click.option("--model", "-m", help="Hugging Face name, path, or 'demo'.  [default: the settings']")
def serve(host: str, port: int | None, model: str | None) -> None:
    """Answer over HTTP: the worker's own API, OpenAI's, and a page to try it.

    Exit status: 0 after a signal, 1 if the model cannot be loaded or its engine is lost.
    """
    from parakeet_worker.entrypoints import server

    server.main(host, port=port, model=model)


@main.command()
def doctor() -> None:
    """Check volume, environment, model, ffmpeg, GPU and settings, and say what to do.

    Changes nothing. Exit status: 0 if nothing failed, 1 if something did.
    """
    failed = False
    for check in examine(os.environ, _ROOT):
        failed = failed or check.verdict == "failed"
        click.echo(f"{check.verdict:8}{check.name:12} {check.found}")
        if check.remedy:
            click.echo(f"{'':20} -> {check.remedy}")
    sys.exit(_SOME_FAILED if failed else 0)


@main.command()
def bootstrap() -> None:
    """Install the software on the volume, as `handler.py` does, and print its Python.

    Exit status: 0 if it is there, 2 if it cannot be installed.
    """
    if not (_ROOT / "requirements" / "profiles.toml").exists():
        raise click.UsageError("the lock files are not here; run this from a checkout")
    with _setup_errors_told():
        prepared = prepare(
            os.environ, _ROOT, lambda line: click.echo(f"parakeet: {line}", err=True)
        )
    click.echo(str(prepared.python))


def _settings(model: str | None) -> Settings:
    settings = Settings.from_environment(os.environ)
    return settings if model is None else settings.model_copy(update={"model": model})


@contextmanager
def _setup_errors_told() -> Iterator[None]:
    try:
        yield
    except SetupError as error:
        click.echo(f"parakeet: {error}", err=True)
        sys.exit(_USAGE)


def plan_tasks(files: Sequence[Path], format_: str, output: Path | None) -> list[Task]:
    """Where each result goes: no two to one place, not even where case makes no difference."""
    if output is None:
        return [Task(path, None) for path in files]
    ending = _ENDINGS.get(format_, format_)
    stems = Counter(path.stem.casefold() for path in files)
    taken: set[str] = set()
    tasks = []
    for path in files:
        names = _names(path, alone=stems[path.stem.casefold()] == 1)
        name = next(name for name in names if name.casefold() not in taken)
        taken.add(name.casefold())
        tasks.append(Task(path, output / f"{name}.{ending}"))
    return tasks


def _names(path: Path, *, alone: bool) -> Iterator[str]:
    """What the result may be called: `talk`, or `talk.mp3` beside a `talk.wav`, or `talk.mp3-2`."""
    if alone:
        yield path.stem
    yield path.name
    for number in count(2):
        yield f"{path.name}-{number}"


class _Results:
    """Where results and failures go, one file at a time."""

    def __init__(self, format_: Format, timestamps: bool, *, listed: bool, overwrite: bool) -> None:
        self._format = format_
        self._timestamps = timestamps
        self._listed = listed
        self._overwrite = overwrite
        self.failed = 0

    def check(self, task: Task) -> None:
        """Refuse what could not be written, before any work is done."""
        if task.target is not None and task.target.exists() and not self._overwrite:
            raise InvalidRequest(str(task.target), "is already there; --overwrite replaces it")

    def take(self, task: Task, outcome: Transcript | ParakeetError) -> None:
        """Write what was heard, or say what went wrong."""
        if isinstance(outcome, ParakeetError):
            self._fail(task, outcome)
            return
        for warning in outcome.warnings:
            tqdm.write(f"{task.name}: warning: {warning}", file=sys.stderr)
        try:
            self._write(task, outcome)
        except InvalidRequest as error:
            self._fail(task, error)

    def _fail(self, task: Task, error: ParakeetError) -> None:
        self.failed += 1
        tqdm.write(f"{task.name}: {error}", file=sys.stderr)

    def _write(self, task: Task, heard: Transcript) -> None:
        if task.target is not None:
            _write_whole(task.target, self._written(heard))
        elif self._listed and self._format in ("json", "verbose_json"):
            answer = render.document(heard, self._format, timestamp=self._timestamps)
            _say(json.dumps({"file": task.name, **answer}, ensure_ascii=False) + "\n")
        else:
            heading = f"==> {task.name} <==\n" if self._listed else ""
            _say(heading + self._written(heard))

    def _written(self, heard: Transcript) -> str:
        return render.written(heard, self._format, timestamp=self._timestamps)


async def _transcribe_all(tasks: Sequence[Task], pipeline: Pipeline, results: _Results) -> None:
    """Many at once, while the results come in the order of the files."""
    turns = asyncio.Semaphore(pipeline.settings.concurrency)

    async def outcome(task: Task) -> Transcript | ParakeetError:
        async with turns:
            try:
                results.check(task)
                return await pipeline.transcribe(Request(source=FileSource(task.path)))
            except ParakeetError as error:
                return error
            finally:
                bar.update()

    with tqdm(total=len(tasks), unit="file", disable=None, leave=False) as bar:
        outcomes = [asyncio.create_task(outcome(task)) for task in tasks]
        try:
            for task, ready in zip(tasks, outcomes, strict=True):
                results.take(task, await ready)
        finally:
            for ready in outcomes:
                ready.cancel()
            await asyncio.gather(*outcomes, return_exceptions=True)


def _write_whole(target: Path, content: str) -> None:
    """Under its final name only once it is complete."""
    aside = target.with_name(f".{target.name}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        aside.write_text(content, encoding="utf-8")
        aside.replace(target)
    except OSError as failure:
        with suppress(OSError):
            aside.unlink()
        raise InvalidRequest(str(target), f"cannot be written: {failure.strerror}") from failure


def _say(content: str) -> None:
    tqdm.write(content, end="")
    sys.stdout.flush()


if __name__ == "__main__":
    main(prog_name="parakeet")
