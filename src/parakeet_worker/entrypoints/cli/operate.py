"""The operator's commands: serve, wyoming, doctor, verify, convert, compile-kernels, bootstrap."""

import logging
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from parakeet_worker.entrypoints.cli.exits import FAILED, USAGE, setup_errors
from parakeet_worker.errors import InvalidRequest
from parakeet_worker.extras import required

if TYPE_CHECKING:
    from parakeet_worker.checks.verify import ClipResult, Performance
    from parakeet_worker.settings import Settings
    from parakeet_worker.weights.digests import FileCheck

_ROOT = Path(__file__).resolve().parents[4]
_LOG_FORMAT = "%(levelname)s %(name)s: %(message)s"

model_option = click.option(
    "--model", "-m", help="Hugging Face name, path, or 'demo'.  [default: PARAKEET_MODEL]"
)


def settings_from_environment(model: str | None) -> "Settings":
    """The environment's settings, with `model` in place of its own. Raises `InvalidSetting`."""
    from parakeet_worker.settings import Settings

    settings = Settings.from_environment(os.environ)
    return settings if model is None else settings.model_copy(update={"model": model})


@click.command(short_help="Serve over HTTP: native API, OpenAI's API, and a web page.")
@click.option(
    "--host", default="127.0.0.1", show_default=True, help="0.0.0.0 accepts other machines."
)
@click.option("--port", type=click.IntRange(0, 65535), help="[default: PORT, else 8000]")
@model_option
def serve(host: str, port: int | None, model: str | None) -> None:
    """Serve over HTTP: the native API, OpenAI's API, and a web page.

    Exit status: 0 after a signal, 1 if the model cannot be loaded or its engine is lost.
    """
    with setup_errors(), required("server"):
        from parakeet_worker.entrypoints.http import main

    main.main(host, port=port, model=model)


@click.command(short_help="Serve the Wyoming protocol, for Home Assistant.")
@click.option(
    "--uri", default="tcp://127.0.0.1:10300", show_default=True, metavar="URI",
    help="tcp://HOST:PORT or unix://PATH; the host 0.0.0.0 accepts other machines.",
)  # fmt: skip
@model_option
@click.option(
    "--endpoint", "-e", metavar="ID|URL",
    help="Use a RunPod endpoint or a `parakeet serve`, as in `parakeet transcribe`.",
)  # fmt: skip
def wyoming(uri: str, model: str | None, endpoint: str | None) -> None:
    """Serve the Wyoming protocol, which Home Assistant uses for speech to text.

    Recordings are transcribed by a model in this process, or at an endpoint.
    Exit status: 0 after a signal, 1 if the engine is lost, 2 if the model cannot be loaded or the
    address is in use.
    """
    if endpoint and model:
        raise click.UsageError("--model cannot be combined with --endpoint, which has its own")
    with setup_errors():
        with required("wyoming"):
            from parakeet_worker.entrypoints.wyoming import main
        try:
            main.main(uri, settings_from_environment(model), endpoint)
        except InvalidRequest as error:
            raise click.UsageError(str(error)) from error


@click.command(short_help="Check volume, environment, model, ffmpeg, GPU and settings.")
def doctor() -> None:
    """Check volume, environment, model, ffmpeg, GPU and settings, and print remedies.

    Changes nothing. Exit status: 0 if nothing failed, 1 if something did.
    """
    with setup_errors(), required("engine"):
        from parakeet_worker.checks.doctor import examine
    failed = False
    for check in examine(os.environ, _ROOT):
        failed = failed or check.status == "failed"
        click.echo(f"{check.status:8}{check.name:12} {check.finding}")
        if check.remedy:
            click.echo(f"{'':20} -> {check.remedy}")
    sys.exit(FAILED if failed else 0)


@click.command(short_help="Check a model's files and transcribe a clip with it.")
@model_option
@click.option(
    "--device", type=click.Choice(["auto", "cuda", "cpu"]),
    help="Also measure the engine there: comparison with plain PyTorch, texts that differ in a "
    "batch, speed and memory.",
)  # fmt: skip
def verify(model: str | None, device: str | None) -> None:
    """Check the model's files, load it, and transcribe a clip that comes with the package.

    Exit status: 0 if all is well, 1 if a file is corrupt, nothing was transcribed, or a kernel
    differs from plain PyTorch, 2 if the model or the device is missing.
    """
    logging.basicConfig(level=logging.WARNING, format=_LOG_FORMAT)
    with setup_errors():
        with required("engine"):
            from parakeet_worker.checks import verify as verification
        settings = settings_from_environment(model)
        if device is not None:
            settings = settings.model_copy(update={"device": device})
        checks = []
        for check in verification.check_weights(settings):
            click.echo(f"file    {check.path}\n        {check.size_bytes:,} bytes, {check.status}")
            click.echo(f"        {check.digest}")
            checks.append(check)
        clip = verification.transcribe_clip(settings)
        measured = None if device is None else verification.measure(settings)
    sys.exit(_report(checks, clip, measured))


def _report(
    checks: "Sequence[FileCheck]", clip: "ClipResult", measured: "Performance | None"
) -> int:
    """Print the results of `verify`; return its exit status."""
    click.echo(f"engine  {clip.engine}")
    click.echo(f"ready   after {clip.ready_seconds:.1f} s")
    click.echo(f"spoken  {clip.expected}")
    click.echo(f"text    {clip.text}")
    if clip.kernels:
        from parakeet_worker.engine import kernel_report

        click.echo(f"kernels {kernel_report.summary(clip.kernels)}")
        for report in clip.kernels:
            if report.replaced:
                click.echo(f"        {report}")
    click.echo(f"speed   {clip.clip_seconds:.1f} s of audio in {clip.transcribe_seconds:.2f} s")
    for line in () if measured is None else _performance_lines(measured):
        click.echo(line)
    corrupt = [check for check in checks if check.status == "corrupt"]
    for check in corrupt:
        click.echo(f"parakeet: {check.path} does not match its name: delete it", err=True)
    if not clip.text:
        click.echo("parakeet: no words in a clip of clear speech", err=True)
    replaced = measured is not None and measured.replaced > 0
    if replaced:
        click.echo("parakeet: plain PyTorch serves in place of kernels, slower", err=True)
    return FAILED if corrupt or not clip.text or replaced else 0


def _performance_lines(measured: "Performance") -> Iterator[str]:
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
        f"{measured.batch} x 30 s per batch"
    )
    yield f"memory  {measured.peak_mebibytes:,.0f} MiB at most"


@click.command(short_help="Write a model in the precision it is served in.")
@click.argument("target", type=click.Path(dir_okay=False, path_type=Path))
@model_option
@click.option(
    "--precision", type=click.Choice(["fp32", "bf16", "fp16", "int8"]), default="bf16",
    show_default=True, help="int8 is for CPUs.",
)  # fmt: skip
def convert(target: Path, model: str | None, precision: str) -> None:
    """Write the model as it is served to TARGET, a .safetensors file for PARAKEET_MODEL.

    For images: a worker with a converted model skips the conversion at its first start.
    Exit status: 0 if TARGET was written, 2 if not.
    """
    if target.suffix != ".safetensors":
        raise click.UsageError("TARGET must end in .safetensors")
    with setup_errors():
        with required("engine"):
            from parakeet_worker import weights
            from parakeet_worker.engine.native import prepacked
            from parakeet_worker.engine.native.precision import Precision
        settings = settings_from_environment(model)
        source = weights.find(
            settings.model, ("safetensors", "nemo"), revision=settings.model_revision
        )
        try:
            prepacked.prepack_file(source, Precision(precision), target)
        except OSError as failure:
            raise click.UsageError(f"{target}: {failure.strerror or failure}") from failure
    click.echo(f"{target}: {settings.model} in {precision}, {target.stat().st_size:,} bytes")


@click.command("compile-kernels", short_help="Compile a GPU's kernels ahead, for an image.")
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
@model_option
@click.option(
    "--precision", type=click.Choice(["bf16", "fp16"]), default="bf16", show_default=True,
    help="Precision to serve a model in that is not converted yet.",
)  # fmt: skip
@click.option(
    "--card", "cards", multiple=True, metavar="X.Y",
    help="Compute capability; repeatable.  [default: all that have kernels]",
)  # fmt: skip
def compile_kernels(
    folder: Path, model: str | None, precision: str, cards: tuple[str, ...]
) -> None:
    """Compile a GPU's kernels for the model into FOLDER, for PARAKEET_KERNEL_CACHE.

    For images: a worker that has them needs no C compiler and no compilation at its first start
    on a card. Needs no GPU, but a C compiler and Python's headers.
    Exit status: 0 if all compiled, 1 if some did not, 2 if none did.
    """
    with setup_errors():
        with required("engine"):
            from parakeet_worker import weights
            from parakeet_worker.container import Container
            from parakeet_worker.engine.native import compilation
            from parakeet_worker.engine.native.precision import Precision
        settings = settings_from_environment(model)
        source = weights.find(settings.model, weights.ANY_KIND, revision=settings.model_revision)
        try:
            targets = compilation.targets_for(source, Precision(precision), cards)
        except ValueError as failure:
            raise click.UsageError(str(failure)) from failure
    processes = Container.read().threads
    try:
        results = compilation.compile_kernels(
            compilation.CompileRequest(targets, (folder,), processes)
        )
    except (ChildProcessError, OSError) as failure:
        raise click.UsageError(f"{folder}: {failure}") from failure
    failures = [result for result in results if result.failure]
    for result in failures:
        click.echo(f"{result.card} {result.kernel}: {result.failure}", err=True)
    for card in dict.fromkeys(result.card for result in results):
        made = [result for result in results if result.card == card and not result.failure]
        click.echo(f"{card:8}{len(made)} kernels, {sum(one.seconds for one in made):.1f} s")
    sys.exit((USAGE if len(failures) == len(results) else FAILED) if failures else 0)


@click.command(short_help="Install the software on the volume and print its Python.")
def bootstrap() -> None:
    """Install the software on the volume, as `handler.py` does, and print its Python.

    Exit status: 0 if it is installed, 2 if it cannot be.
    """
    from parakeet_worker.bootstrap import prepare

    if not (_ROOT / "requirements" / "profiles.toml").exists():
        raise click.UsageError("the lock files are not here; run this from a checkout")
    with setup_errors():
        prepared = prepare(
            os.environ, _ROOT, lambda line: click.echo(f"parakeet: {line}", err=True)
        )
    click.echo(str(prepared.python))
