"""`parakeet transcribe`."""

import json
import logging
import os
import re
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Unpack, cast, get_args

import click

from parakeet_worker.client.answer import LOCAL
from parakeet_worker.client.files import STDIN, Task, gather, plan_tasks
from parakeet_worker.entrypoints.cli import exits
from parakeet_worker.entrypoints.cli.operate import model_option, settings_from_environment
from parakeet_worker.entrypoints.cli.speakers import NamedFile
from parakeet_worker.errors import (
    AudioTooLarge,
    InvalidRequest,
    ParakeetError,
    RequestError,
    SetupError,
    SourceNotFound,
)
from parakeet_worker.extras import required
from parakeet_worker.options import (
    CUE_FORMATS,
    CUE_LIMITS,
    Attention,
    Channels,
    CueLimitKeywords,
    Format,
    OnDamage,
    Vad,
)

if TYPE_CHECKING:
    from parakeet_worker.client.clients import Options
    from parakeet_worker.entrypoints.cli.results import Tally
    from parakeet_worker.settings import Settings

_REMOTE_CONCURRENCY = 32
_REFUSED_SECONDS = 15.0
_COPY_BYTES = 1 << 20


class _FormatChoice(click.Choice[str]):
    """The formats, and `txt` for `text`."""

    def __init__(self) -> None:
        super().__init__(get_args(Format))

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        return super().convert("text" if value == "txt" else value, param, ctx)


_SPEAKERS = re.compile(r"any|(\d+)(?:-(\d+))?")


class _SpeakersChoice(click.ParamType[bool | dict[str, int]]):
    """A number of speakers, a range, or `any`, as the request's field."""

    name = "speakers"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> bool | dict[str, int]:
        number = _SPEAKERS.fullmatch(str(value))
        if number is None:
            self.fail("must be a number, MIN-MAX or 'any'", param, ctx)
        fewest, most = number.groups()
        if fewest is None:
            return True
        return {"min": int(fewest), "max": int(most)} if most else {"exact": int(fewest)}


class _Command(click.Command):
    """`--speakers` is followed by a number, or by the first input."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        following = [*args[1:], ""]
        completed = [
            "--speakers=any" if each == "--speakers" and not _SPEAKERS.fullmatch(after) else each
            for each, after in zip(args, following, strict=False)
        ]
        return super().parse_args(ctx, completed)


@dataclass(frozen=True, slots=True)
class _Plan:
    """The parsed command line."""

    tasks: Sequence[Task]
    formats: Sequence[Format]
    options: "Options"
    overwrite: bool
    concurrency: int | None
    wait: bool

    @property
    def fields(self) -> dict[str, object]:
        """The request's fields except audio and format."""
        return {name: value for name, value in self.options.items() if value is not None}

    @property
    def recorded(self) -> dict[str, object]:
        """The fields for a manifest, with a digest of voices instead of them."""
        known = self.fields.get("known_speakers")
        if known is None:
            return self.fields
        digest = sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()
        return {**self.fields, "known_speakers": digest}

    def fields_for(self, format_: Format) -> dict[str, object]:
        """The same for one format; only `json` has `timestamp`, only subtitles have cues."""
        timestamp = format_ == "json" and self.options.get("timestamp", False)
        absent = () if format_ in CUE_FORMATS else CUE_LIMITS
        fields = {name: value for name, value in self.fields.items() if name not in absent}
        return {**fields, "format": format_, "timestamp": timestamp}


@click.command(cls=_Command, short_help="Transcribe files, folders, pipes and URLs.")
@click.argument("inputs", nargs=-1, required=True, metavar="INPUT...")
@click.option(
    "--format", "-f", "formats", multiple=True, type=_FormatChoice(),
    help="Output format; repeatable with --output or --alongside.  "
    "[default: text, or json with --timestamp]",
)  # fmt: skip
@click.option(
    "--timestamp", "--timestamps", is_flag=True, help="Word, segment and token times in 'json'."
)
@click.option(
    "--max-line-length", "max_line_characters", type=int, metavar="CHARACTERS",
    help="Longest line of a subtitle, from 10 to 100.  [default: 42]",
)  # fmt: skip
@click.option(
    "--max-lines", type=int, metavar="N", help="Lines of a subtitle, from 1 to 4.  [default: 2]"
)
@click.option(
    "--max-cps", "max_characters_per_second", type=float, metavar="CHARACTERS",
    help="Reading speed of subtitles, per second, from 5 to 100.  [default: 17]",
)  # fmt: skip
@click.option(
    "--max-duration", "max_cue_seconds", type=float, metavar="SECONDS",
    help="Longest time a subtitle is shown, from 1 to 30 s.  [default: 7]",
)  # fmt: skip
@click.option("--language", help="Spoken language, as a code or in English; a hint.")
@click.option(
    "--audio-format", metavar="NAME[:RATE[:CHANNELS]]",
    help="The format of audio without a header, such as 'ulaw' or 's16le:16000'.",
)  # fmt: skip
@click.option(
    "--channels", type=click.Choice(get_args(Channels)), default="mix", show_default=True,
    help="'separate' transcribes each channel on its own.",
)  # fmt: skip
@click.option(
    "--track", metavar="TRACK",
    help="Of several audio tracks the one with this number, from 1, or language; 'all' for each.",
)  # fmt: skip
@click.option(
    "--on-damage", type=click.Choice(get_args(OnDamage)), default="warn", show_default=True,
    help="'refuse' fails a file of which a part is missing or damaged.",
)  # fmt: skip
@click.option(
    "--speakers", is_flag=False, flag_value="any", metavar="[N|MIN-MAX]", type=_SpeakersChoice(),
    help="Label the speaker of each word; N speakers, or from MIN to MAX.",
)  # fmt: skip
@click.option(
    "--known-speaker", "references", multiple=True, metavar="NAME=FILE", type=NamedFile(),
    help="A person who may speak, and a recording of the voice; repeatable.",
)  # fmt: skip
@click.option(
    "--known-speakers", "enrolled", metavar="FILE",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="People who may speak, as written by 'parakeet speakers enroll'.",
)  # fmt: skip
@click.option("--vad", type=click.Choice(get_args(Vad)), help="Voice activity detection.")
@click.option("--attention", type=click.Choice(get_args(Attention)), help="'full' for one chunk.")
@model_option
@click.option(
    "--endpoint", "-e", metavar="ID|URL",
    help="Use a RunPod endpoint (id or URL, key in RUNPOD_API_KEY) or a `parakeet serve` "
    "(URL, key in PARAKEET_API_KEY).",
)  # fmt: skip
@click.option(
    "--wait", is_flag=True,
    help="Keep trying an endpoint that refuses connections, for 5 minutes instead of 15 s.",
)  # fmt: skip
@click.option(
    "--output", "-o", metavar="DIR",
    type=click.Path(file_okay=False, allow_dash=True, path_type=Path),
    help="Write DIR/<name>.<ending> for each input; '-' is standard output.",
)  # fmt: skip
@click.option("--beside", "alongside", is_flag=True, help="Write each result next to its file.")
@click.option("--overwrite", is_flag=True, help="Replace existing results.")
@click.option(
    "--jobs", "-j", "concurrency", type=click.IntRange(min=1), metavar="N",
    help="Files at a time.  [default: 32 with --endpoint, else PARAKEET_CONCURRENCY]",
)  # fmt: skip
@click.option("--quiet", "-q", is_flag=True, help="No summary on standard error.")
def transcribe(  # one parameter for each option
    inputs: tuple[str, ...],
    formats: tuple[Format, ...],
    timestamp: bool,
    language: str | None,
    audio_format: str | None,
    channels: Channels,
    track: str | None,
    on_damage: OnDamage,
    speakers: bool | dict[str, int] | None,
    references: tuple[tuple[str, Path], ...],
    enrolled: Path | None,
    vad: Vad | None,
    attention: Attention | None,
    model: str | None,
    endpoint: str | None,
    wait: bool,
    output: Path | None,
    alongside: bool,
    overwrite: bool,
    concurrency: int | None,
    quiet: bool,
    **limits: Unpack[CueLimitKeywords],
) -> None:
    """Transcribe each INPUT: a file, a folder, a quoted pattern ('talks/**/*.mp3'), a URL, or '-'
    for standard input.

    Results go to standard output, or with --endpoint next to their files. A manifest
    (.parakeet.jsonl) is written alongside results: the same command resumes an interrupted run and
    skips files whose results exist. Failures are listed on standard error at the end.

    Exit status: 0 if all succeeded, 1 if some files failed, 2 for wrong usage or if nothing could
    be done, 130 if interrupted.
    """
    chosen = tuple(dict.fromkeys(formats)) or (("json",) if timestamp else ("text",))
    folder = None if output == Path(STDIN) else output
    alongside = alongside or (endpoint is not None and output is None)
    _check_usage(chosen, folder, alongside=alongside, timestamp=timestamp, overwrite=overwrite)
    if alongside and output is not None:
        raise click.UsageError("--beside cannot be combined with --output")
    if endpoint and model:
        raise click.UsageError("--model cannot be combined with --endpoint, which has its own")
    if wait and not endpoint:
        raise click.UsageError("--wait requires --endpoint")
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    options: Options = {
        "timestamp": timestamp, "language": language, "audio_format": audio_format,
        "channels": channels, "track": track, "on_damage": on_damage,
    }  # fmt: skip
    known = _known_speakers(references, enrolled)
    if known:
        options["known_speakers"] = known
    if speakers is not None or known or "rttm" in chosen:
        options["speakers"] = True if speakers is None else speakers
    if endpoint and "rttm" in chosen and len(chosen) > 1:
        raise click.UsageError("rttm cannot be combined with other formats at an endpoint")
    if vad is not None:
        options["vad"] = vad
    if attention is not None:
        options["attention"] = attention
    options.update(_cue_limits(limits, chosen))
    started = time.monotonic()
    with exits.setup_errors(), exits.interrupts():
        settings = settings_from_environment(model)
        tasks = plan_tasks(gather(inputs), chosen, folder, alongside=alongside)
        plan = _Plan(tasks, chosen, options, overwrite, concurrency, wait)
        sys.exit(_finish(_run(plan, endpoint, settings), started, quiet=quiet))


def _known_speakers(
    references: Sequence[tuple[str, Path]], enrolled: Path | None
) -> list[dict[str, object]]:
    """The request's field. Raises `UsageError`."""
    from parakeet_worker.wire.known_speakers import entries, read_enrolled

    try:
        known = [] if enrolled is None else read_enrolled(enrolled)
        for name, path in references:
            known += entries({name: path})
    except ParakeetError as error:
        raise click.UsageError(str(error)) from error
    return known


def _cue_limits(limits: CueLimitKeywords, formats: Sequence[Format]) -> "Options":
    """The limits of cues other than the defaults. Raises `UsageError` if no format has cues."""
    values = {name: value for name, value in limits.items() if value is not None}
    if values and not set(CUE_FORMATS) & set(formats):
        raise click.UsageError("limits of subtitles require --format srt or vtt")
    return cast("Options", values)


def _check_usage(
    formats: Sequence[Format],
    folder: Path | None,
    *,
    alongside: bool,
    timestamp: bool,
    overwrite: bool,
) -> None:
    if timestamp and "json" not in formats:
        raise click.UsageError("--timestamp requires --format json; other formats have times")
    if "json" in formats and "verbose_json" in formats:
        raise click.UsageError("json and verbose_json would be written to the same file")
    if len(formats) > 1 and folder is None and not alongside:
        raise click.UsageError("several formats require --output or --beside")
    if overwrite and folder is None and not alongside:
        raise click.UsageError("--overwrite requires --output or --beside")


def _run(plan: _Plan, endpoint: str | None, settings: "Settings") -> "Tally":
    """Transcribe everything. Raises `SetupError`, or `UsageError` for wrong options."""
    from parakeet_worker.entrypoints.cli.results import Tally

    _check_request(plan)
    # Missing files are found before a model is loaded or a pipe is read.
    failures: list[tuple[Task, ParakeetError]] = [
        (task, SourceNotFound(task.name)) for task in plan.tasks if not task.exists
    ]
    tasks: list[Task] = []
    tally = Tally()
    with TemporaryDirectory(prefix="parakeet-", dir=settings.scratch) as folder:
        for task in plan.tasks:
            try:
                if task.exists:
                    tasks.append(_readable(task, Path(folder), settings.max_audio_bytes))
            except ParakeetError as error:
                failures.append((task, error))
        if tasks and endpoint is None:
            tally = _run_local(plan, tasks, settings)
        elif tasks and endpoint is not None:
            tally = _run_remote(plan, tasks, endpoint, settings)
    places = {task.name: place for place, task in reversed(list(enumerate(plan.tasks)))}
    tally.failures = sorted(
        [*failures, *tally.failures], key=lambda failure: places[failure[0].name]
    )
    return tally


def _check_request(plan: _Plan) -> None:
    from parakeet_worker.wire.native import check_options

    for task in plan.tasks:
        if not task.targets and len(plan.formats) > 1:
            raise click.UsageError(f"{task.name}: several formats require --output")
    try:
        for format_ in plan.formats:
            check_options(plan.fields_for(format_))
    except RequestError as error:
        raise click.UsageError(str(error)) from error


def _readable(task: Task, folder: Path, max_bytes: int) -> Task:
    """The task with the content of its pipe in a file. Raises `AudioTooLarge`."""
    if not task.recording.piped:
        return task
    from parakeet_worker.entrypoints.cli.progress import status

    copied = Path(tempfile.mkdtemp(dir=folder)) / "audio"
    name = str(task.recording.path)
    standard = name == STDIN
    pipe = os.fdopen(0, "rb", closefd=False) if standard else Path(name).open("rb")  # noqa: SIM115
    with status(f"reading {task.name}"), pipe, copied.open("wb") as file:
        size = 0
        while content := pipe.read(_COPY_BYTES):
            size += len(content)
            if size > max_bytes:
                raise AudioTooLarge(max_bytes)
            file.write(content)
    return replace(task, copied=copied)


def _run_local(plan: _Plan, tasks: Sequence[Task], settings: "Settings") -> "Tally":
    with required("engine"):
        from parakeet_worker.worker import open_pipeline
    from parakeet_worker.entrypoints.cli import run as runs
    from parakeet_worker.entrypoints.cli.progress import status
    from parakeet_worker.entrypoints.cli.results import Results, Run

    with ExitStack() as stack:
        with status(f"loading {settings.model}"):
            pipeline = stack.enter_context(open_pipeline(settings))
        run = Run(
            tasks=tasks,
            formats=plan.formats,
            transcribe=runs.local(pipeline, plan.fields, plan.formats),
            options={**plan.recorded, "model": settings.model},
            where=LOCAL,
            concurrency=plan.concurrency or settings.concurrency,
            overwrite=plan.overwrite,
        )
        with Results(run) as results:
            runs.interruptible(runs.transcribe_all(run, results))
    return results.tally


def _run_remote(plan: _Plan, tasks: Sequence[Task], endpoint: str, settings: "Settings") -> "Tally":
    from parakeet_worker.client.clients import AsyncClient
    from parakeet_worker.client.endpoint import Endpoint
    from parakeet_worker.entrypoints.cli import run as runs
    from parakeet_worker.entrypoints.cli.results import Results, Run

    # Retries are part of the progress; see Progress.retrying.
    logging.getLogger("stamina").setLevel(logging.ERROR)
    try:
        place = Endpoint.read(endpoint, settings.runpod_endpoint_base_url)
        key = settings.runpod_api_key if place.runpod else settings.api_key
        refused_seconds = None if plan.wait else _REFUSED_SECONDS
        client = AsyncClient(place, key, settings=settings, refused_seconds=refused_seconds)
    except InvalidRequest as error:
        raise click.UsageError(str(error)) from error

    async def work() -> Results:
        async with client:
            run = Run(
                tasks=tasks,
                formats=plan.formats,
                transcribe=runs.remote(client, plan.options, plan.formats),
                options=plan.recorded,
                where=place.url,
                concurrency=plan.concurrency or _REMOTE_CONCURRENCY,
                overwrite=plan.overwrite,
            )
            with Results(run) as results:
                await runs.transcribe_all(run, results)
        return results

    return runs.interruptible(work()).tally


def _finish(tally: "Tally", started: float, *, quiet: bool) -> int:
    """Print failures and the summary; the exit status."""
    for task, error in tally.failures:
        click.echo(f"{task.name}: {error}", err=True)
    if not quiet and (tally.fatal is None or tally.transcribed):
        click.echo(f"parakeet: {tally.summary(time.monotonic() - started)}", err=True)
    if tally.fatal is not None:
        click.echo(f"parakeet: {tally.fatal}", err=True)
        return exits.USAGE if isinstance(tally.fatal, SetupError) else exits.FAILED
    return exits.FAILED if tally.failures else 0
