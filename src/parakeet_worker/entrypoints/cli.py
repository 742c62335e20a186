"""The command line: `parakeet transcribe FILE...`."""

import logging
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import click

from parakeet_worker import verification, weights
from parakeet_worker.bootstrap import prepare, variables
from parakeet_worker.client import cost as cost_table
from parakeet_worker.client.clients import AsyncClient, Options
from parakeet_worker.client.endpoint import Endpoint
from parakeet_worker.client.files import Task, gather, plan_tasks
from parakeet_worker.client.manifest import Wish
from parakeet_worker.doctor import examine
from parakeet_worker.engine import kernel_report
from parakeet_worker.entrypoints.transcription import (
    Results,
    Run,
    here,
    interruptible,
    there,
    transcribe_all,
)
from parakeet_worker.errors import InvalidRequest, SetupError
from parakeet_worker.request import Channels, Format, Request, parse
from parakeet_worker.settings import Settings
from parakeet_worker.worker import open_pipeline

_ROOT = Path(__file__).resolve().parents[3]
_SOME_FAILED = 1
_USAGE = 2
_INTERRUPTED = 130
_AT_ONCE_THERE = 32


@click.group()
@click.version_option(package_name="parakeet-worker")
def main() -> None:
    """Speech to text with NVIDIA Parakeet TDT 0.6B v3."""
    for warning in variables.clean(os.environ):
        click.echo(f"parakeet: warning: {warning}", err=True)


@main.command()
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--format", "-f", "chosen", type=click.Choice(get_args(Format)),
    help="What to write.  [default: text, or json with --timestamps]",
)  # fmt: skip
@click.option("--timestamps", is_flag=True, help="Word, segment and token times, in 'json'.")
@click.option("--language", help="What is spoken, as a code or in English; a hint.")
@click.option(
    "--channels", type=click.Choice(get_args(Channels)), default="mix", show_default=True,
    help="'separate' hears each channel by itself.",
)  # fmt: skip
@click.option("--model", "-m", help="Hugging Face name, path, or 'demo'.  [default: the settings']")
@click.option(
    "--endpoint", "-e", metavar="ID|URL",
    help="Have it heard by a RunPod endpoint (its id or URL) or a `parakeet serve` (its URL). "
    "The key is RUNPOD_API_KEY, or PARAKEET_API_KEY for the latter.",
)  # fmt: skip
@click.option(
    "--output", "-o", metavar="DIR",
    type=click.Path(file_okay=False, allow_dash=True, path_type=Path),
    help="Write DIR/<name>.<ending> for each file; '-' is standard output.",
)  # fmt: skip
@click.option("--beside", is_flag=True, help="Write each result beside its file.")
@click.option("--overwrite", is_flag=True, help="Replace results that are already there.")
@click.option(
    "--jobs", "-j", "at_once", type=click.IntRange(min=1), metavar="N",
    help="Files side by side.  [default: 32 at an endpoint, else the settings' concurrency]",
)  # fmt: skip
def transcribe(
    files: tuple[Path, ...],
    chosen: Format | None,
    timestamps: bool,
    language: str | None,
    channels: Channels,
    model: str | None,
    endpoint: str | None,
    output: Path | None,
    beside: bool,
    overwrite: bool,
    at_once: int | None,
) -> None:
    """Transcribe FILES, whole folders, and what a quoted pattern means ('talks/**/*.mp3').

    Results go to standard output, or, from an endpoint, beside their files. A file that has its
    result already is left alone, so that a run that was interrupted goes on where it was: a
    manifest (.parakeet.jsonl) stands beside the results. The failed ones are told on standard
    error, at the end.

    Exit status: 0 if all went well, 1 if some files failed, 2 for wrong usage or if nothing could
    be done, 130 if it was interrupted.
    """
    format_ = chosen or ("json" if timestamps else "text")
    folder = None if output == Path("-") else output
    beside = beside or (endpoint is not None and output is None)
    if timestamps and format_ != "json":
        raise click.UsageError("--timestamps needs --format json; the other formats have theirs")
    if beside and output is not None:
        raise click.UsageError("--beside and --output cannot stand together")
    if overwrite and folder is None and not beside:
        raise click.UsageError("--overwrite needs --output or --beside")
    if endpoint and model:
        raise click.UsageError("--model is the endpoint's own business")
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    options = Options(format=format_, timestamp=timestamps, language=language, channels=channels)
    with _setup_errors_told(), _interrupts_told():
        settings = _settings(model)
        tasks = plan_tasks(gather(files), format_, folder, beside=beside)
        plan = Plan(tasks, options, overwrite, at_once)
        sys.exit(_SOME_FAILED if _transcribed(plan, endpoint, settings) else 0)


@main.command()
@click.argument("places", nargs=-1, type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option(
    "--gpu", type=click.Choice(list(cost_table.DOLLARS_PER_SECOND), case_sensitive=False),
    help="What the endpoint's workers have.  [default: each is told]",
)  # fmt: skip
def cost(places: tuple[Path, ...], gpu: str | None) -> None:
    """Tell what was transcribed in PLACES, which are folders, and what that costs.

    From the manifests there and below; without PLACES, in the current folder.
    """
    manifests = cost_table.find(places or (Path(),))
    if not manifests:
        raise click.UsageError("no manifest is there; `parakeet transcribe` writes them")
    account = cost_table.account(manifests)
    for line in _account_lines(account, [gpu] if gpu else list(cost_table.DOLLARS_PER_SECOND)):
        click.echo(line)


@main.command()
@click.option("--model", "-m", help="Hugging Face name, path, or 'demo'.  [default: the settings']")
@click.option(
    "--device", type=click.Choice(["auto", "cuda", "cpu"]),
    help="Also measure the engine there: what its comparison with plain PyTorch found, texts that "
    "differ in a batch, speed and memory.",
)  # fmt: skip
def verify(model: str | None, device: str | None) -> None:
    """Check the model's files, load it, and let it hear a clip that comes with the package.

    Exit status: 0 if all is well, 1 if a file is corrupt, nothing was heard, or a kernel differs
    from plain PyTorch, 2 if the model cannot be found or loaded or the device is not there.
    """
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    with _setup_errors_told():
        settings = _settings(model)
        if device is not None:
            settings = settings.model_copy(update={"device": device})
        checks = []
        for check in verification.check_weights(settings):
            click.echo(f"file    {check.path}\n        {check.size_bytes:,} bytes, {check.verdict}")
            click.echo(f"        {check.digest}")
            checks.append(check)
        hearing = verification.hear_clip(settings)
        measured = None if device is None else verification.measure(settings)
    click.echo(f"engine  {hearing.engine}")
    click.echo(f"ready   after {hearing.ready_seconds:.1f} s")
    click.echo(f"said    {hearing.said}")
    click.echo(f"heard   {hearing.heard}")
    if hearing.kernels:
        click.echo(f"kernels {kernel_report.summary(hearing.kernels)}")
        for report in hearing.kernels:
            if report.replaced:
                click.echo(f"        {report}")
    click.echo(f"speed   {hearing.clip_seconds:.1f} s of audio in {hearing.hear_seconds:.2f} s")
    for line in () if measured is None else _performance_lines(measured):
        click.echo(line)
    corrupt = [check for check in checks if check.verdict == "corrupt"]
    for check in corrupt:
        click.echo(f"parakeet: {check.path} is not what it was named for: delete it", err=True)
    if not hearing.heard:
        click.echo("parakeet: nothing was heard in a clip of clear speech", err=True)
    replaced = measured is not None and measured.replaced > 0
    if replaced:
        click.echo("parakeet: plain PyTorch serves in place of kernels, slower", err=True)
    sys.exit(_SOME_FAILED if corrupt or not hearing.heard or replaced else 0)


def _performance_lines(measured: verification.Performance) -> Iterator[str]:
    yield f"device  {measured.engine}"
    for line in measured.comparisons or ("plain PyTorch serves: there are no kernels",):
        yield f"kernel  {line}"
    yield (
        f"texts   {measured.different} of {measured.compared} chunks differ between alone and "
        "in batches"
    )
    yield (
        f"alone   8 s of audio in {1000 * measured.alone_seconds:.1f} ms "
        f"(95th percentile {1000 * measured.alone_p95_seconds:.1f} ms)"
    )
    yield (
        f"batch   {measured.audio_seconds_per_second:,.0f} s of audio per second, "
        f"{measured.together} x 30 s at once"
    )
    yield f"memory  {measured.peak_mebibytes:,.0f} MiB at most"


@main.command()
@click.argument("target", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--model", "-m", help="Hugging Face name, path, or 'demo'.  [default: the settings']")
@click.option(
    "--precision", type=click.Choice(["fp32", "bf16", "fp16", "int8"]), default="bf16",
    show_default=True, help="What it is served in; int8 is for processors.",
)  # fmt: skip
def convert(target: Path, model: str | None, precision: str) -> None:
    """Write the model as it is served to TARGET, a .safetensors file to name in PARAKEET_MODEL.

    For images: a worker that is given it has nothing to convert at its first start.
    Exit status: 0 if it is there, 2 if it cannot be made.
    """
    if target.suffix != ".safetensors":
        raise click.UsageError("TARGET must end in .safetensors")
    from parakeet_worker.engine.native import converted
    from parakeet_worker.engine.native.precision import Precision

    with _setup_errors_told():
        settings = _settings(model)
        source = weights.find(
            settings.model, ("safetensors", "nemo"), revision=settings.model_revision
        )
        try:
            converted.keep(source, Precision(precision), target)
        except OSError as failure:
            raise click.UsageError(f"{target}: {failure.strerror or failure}") from failure


@main.command("compile-kernels")
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
@click.option("--model", "-m", help="Hugging Face name, path, or 'demo'.  [default: the settings']")
@click.option(
    "--precision", type=click.Choice(["bf16", "fp16"]), default="bf16", show_default=True,
    help="What the model is served in, where it is not converted yet.",
)  # fmt: skip
@click.option(
    "--card", "cards", multiple=True, metavar="X.Y",
    help="A compute capability, as often as needed.  [default: all that have kernels]",
)  # fmt: skip
def compile_kernels(
    folder: Path, model: str | None, precision: str, cards: tuple[str, ...]
) -> None:
    """Compile a GPU's kernels for the model into FOLDER, to name in PARAKEET_KERNEL_CACHE.

    For images: a worker that has them needs no C compiler, and no seconds for it, at its first
    start on a card. Needs no GPU, but a C compiler and Python's headers.
    Exit status: 0 if all are there, 1 if some do not compile, 2 if none can be compiled.
    """
    from parakeet_worker.engine.native import compilation
    from parakeet_worker.engine.native.precision import Precision

    with _setup_errors_told():
        settings = _settings(model)
        source = weights.find(settings.model, weights.ANY_KIND, revision=settings.model_revision)
        try:
            targets = compilation.targets(source, Precision(precision), cards)
        except ValueError as failure:
            raise click.UsageError(str(failure)) from failure
    processes = len(os.sched_getaffinity(0))
    try:
        results = compilation.compiled(compilation.CompileRequest(targets, (folder,), processes))
    except (ChildProcessError, OSError) as failure:
        raise click.UsageError(f"{folder}: {failure}") from failure
    failures = [result for result in results if result.failure]
    for result in failures:
        click.echo(f"{result.card} {result.kernel}: {result.failure}", err=True)
    for card in dict.fromkeys(result.card for result in results):
        made = [result for result in results if result.card == card and not result.failure]
        click.echo(f"{card:8}{len(made)} kernels, {sum(one.seconds for one in made):.1f} s")
    sys.exit((_USAGE if len(failures) == len(results) else _SOME_FAILED) if failures else 0)


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


@contextmanager
def _interrupts_told() -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        click.echo("parakeet: interrupted; the same command goes on from here", err=True)
        sys.exit(_INTERRUPTED)


@dataclass(frozen=True, slots=True)
class Plan:
    """What a user asks for, whoever does it."""

    tasks: Sequence[Task]
    options: Options
    overwrite: bool
    at_once: int | None


def _transcribed(plan: Plan, endpoint: str | None, settings: Settings) -> bool:
    """Do it all; whether some files failed. Raises `SetupError`s."""
    fields = {name: value for name, value in plan.options.items() if value is not None}
    try:
        # The options as a request has them; the audio is another for each file.
        (request,) = parse({"audio_base64": "", **fields}).requests
        assert isinstance(request, Request)
        if endpoint is None:
            return _transcribed_here(plan, request, {**fields, "model": settings.model}, settings)
        return _transcribed_there(plan, fields, endpoint, settings)
    except InvalidRequest as error:
        raise click.UsageError(str(error)) from error


def _transcribed_here(plan: Plan, request: Request, wish: Wish, settings: Settings) -> bool:
    with open_pipeline(settings) as pipeline:
        run = Run(
            plan.tasks, here(pipeline, request), wish, "here",
            plan.at_once or settings.concurrency, plan.overwrite,
        )  # fmt: skip
        with Results(run, request.format) as results:
            interruptible(transcribe_all(run, results))
    return _told(results)


def _transcribed_there(plan: Plan, wish: Wish, endpoint: str, settings: Settings) -> bool:
    # Each retry would be a line; what is not over in time is told as a failure.
    logging.getLogger("stamina").setLevel(logging.ERROR)
    place = Endpoint.read(endpoint, settings.runpod_endpoint_base_url)
    key = settings.runpod_api_key if place.runpod else settings.api_key

    async def work() -> Results:
        async with AsyncClient(place, key, settings=settings) as client:
            run = Run(
                plan.tasks, there(client, plan.options), wish, place.url,
                plan.at_once or _AT_ONCE_THERE, plan.overwrite,
            )  # fmt: skip
            with Results(run, plan.options["format"]) as results:
                await transcribe_all(run, results)
        return results

    return _told(interruptible(work()))


def _told(results: Results) -> bool:
    """Say on standard error what failed; whether something did."""
    if results.denied is not None:
        raise results.denied
    for task, error in results.failures:
        click.echo(f"{task.name}: {error}", err=True)
    if sys.stderr.isatty():
        failed = f", {len(results.failures)} failed" if results.failures else ""
        before = f", {results.found} were there before" if results.found else ""
        click.echo(f"{results.fresh} transcribed{before}{failed}", err=True)
    return bool(results.failures)


def _account_lines(account: cost_table.Account, gpus: Sequence[str]) -> Iterator[str]:
    hours = account.audio_seconds / 3600
    beside = [
        f"{count} {what}"
        for count, what in ((account.failures, "failed"), (account.unfinished, "unfinished"))
        if count
    ]
    yield f"results    {', '.join([str(account.results), *beside])}"
    yield f"audio      {hours:.2f} hours"
    yield f"jobs       {account.job_seconds:.1f} s, added up one by one"
    yield f"billed     {account.worker_seconds:.1f} s, in which a worker had a job"
    if account.untold:
        yield f"untold     {account.untold} results of which nobody said how long they took"
    for gpu in gpus:
        dollars = account.dollars(gpu)
        each = f", {dollars / hours:.5f} for an hour of audio" if hours else ""
        yield f"price      {dollars:.4f} dollars on {gpu}{each}"
    yield f"           RunPod's flex workers, prices of {cost_table.PRICED};"
    yield "           starts of workers and their idle time come on top, failed jobs as well"


if __name__ == "__main__":
    main(prog_name="parakeet")
