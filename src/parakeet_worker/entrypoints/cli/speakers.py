"""`parakeet speakers`."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from parakeet_worker.entrypoints.cli.exits import setup_errors
from parakeet_worker.entrypoints.cli.operate import settings_from_environment
from parakeet_worker.errors import InvalidRequest, ParakeetError
from parakeet_worker.extras import required

if TYPE_CHECKING:
    from parakeet_worker.settings import Settings


class NamedFile(click.ParamType[tuple[str, Path]]):
    """A name and a file, as NAME=FILE."""

    name = "named file"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, Path]:
        name, equals, path = str(value).partition("=")
        if not equals or not name or not path:
            self.fail("must be NAME=FILE", param, ctx)
        if not Path(path).is_file():
            self.fail(f"{path} does not exist", param, ctx)
        return name, Path(path)


@click.group(short_help="Enroll voices of known speakers.")
def speakers() -> None:
    """Voices of known speakers."""


@speakers.command(short_help="Write embeddings of voices to a file.")
@click.argument("recordings", nargs=-1, required=True, metavar="NAME=FILE...", type=NamedFile())
@click.option(
    "--output", "-o", metavar="FILE", required=True,
    type=click.Path(dir_okay=False, path_type=Path), help="File to write, as JSON.",
)  # fmt: skip
def enroll(recordings: tuple[tuple[str, Path], ...], output: Path) -> None:
    """Compute the embedding of each person's voice from recordings of 2 to 30 s.

    Several recordings of one NAME give one embedding. The output is for
    'parakeet transcribe --known-speakers FILE', and its list 'known_speakers' for requests. It is
    biometric data: keep it as safe as the law requires.

    Exit status: 0 if it was written, 1 if a recording cannot be used, 2 for wrong usage or if the
    software is incomplete.
    """
    from parakeet_worker.wire.known_speakers import check_names

    by_name: dict[str, list[Path]] = {}
    for name, path in recordings:
        by_name.setdefault(name, []).append(path)
    try:
        check_names(list(by_name), lambda _: "NAME")
    except InvalidRequest as error:
        raise click.UsageError(str(error)) from error
    with setup_errors(), required("speakers"):
        settings = settings_from_environment(None)
        import asyncio

        voices = asyncio.run(_enrolled(by_name, settings))
    # Readable by its owner only.
    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        json.dump({"known_speakers": voices}, file, ensure_ascii=False, indent=2)
        file.write("\n")
    click.echo(f"parakeet: {len(voices)} voices in {output}", err=True)


async def _enrolled(
    by_name: Mapping[str, Sequence[Path]], settings: "Settings"
) -> list[dict[str, object]]:
    from parakeet_worker.audio.decoding import find_ffmpeg
    from parakeet_worker.speakers.networks import Networks
    from parakeet_worker.speakers.references import References, Unusable, joined
    from parakeet_worker.wire.known_speakers import entry

    networks = Networks()
    try:
        references = References(networks, find_ffmpeg(settings.ffmpeg), settings)
        entries = []
        for name, paths in by_name.items():
            of_person = []
            for path in paths:
                try:
                    of_person.append(await references.of_file(path))
                except (ParakeetError, Unusable) as error:
                    raise click.ClickException(f"{path}: {error}") from error
            try:
                entries.append(entry(name, joined(of_person)))
            except Unusable as error:
                raise click.ClickException(f"{name}: {error}") from error
        return entries
    finally:
        networks.close()
