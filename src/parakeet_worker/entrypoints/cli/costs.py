"""`parakeet cost`."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from parakeet_worker.client.prices import DOLLARS_PER_SECOND, PRICED

if TYPE_CHECKING:
    from parakeet_worker.client.cost import Account


@click.command(short_help="Print audio hours and price of earlier runs.")
@click.argument("folders", nargs=-1, type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option(
    "--gpu", type=click.Choice(list(DOLLARS_PER_SECOND), case_sensitive=False),
    help="GPU of the endpoint's workers.  [default: prices for all]",
)  # fmt: skip
def cost(folders: tuple[Path, ...], gpu: str | None) -> None:
    """Print audio hours, worker seconds and price of the runs whose results are in FOLDERS.

    Read from the manifests there and below; without FOLDERS, in the current folder.
    """
    from parakeet_worker.client import cost as costs

    manifests = costs.find(folders or (Path(),))
    if not manifests:
        raise click.UsageError("no manifest found; `parakeet transcribe` writes them")
    account = costs.account(manifests)
    for line in _lines(account, [gpu] if gpu else list(DOLLARS_PER_SECOND)):
        click.echo(line)


def _lines(account: "Account", gpus: Sequence[str]) -> Iterator[str]:
    hours = account.audio_seconds / 3600
    counts = (
        (account.failures, "failed"),
        (account.unfinished, "unfinished"),
        (account.unbilled, "not transcribed at RunPod"),
    )
    results = [str(account.results), *(f"{count} {what}" for count, what in counts if count)]
    yield f"results    {', '.join(results)}"
    yield f"audio      {hours:.2f} hours"
    if account.results == account.unbilled:
        return
    yield f"jobs       {account.job_seconds:.1f} s, summed"
    yield f"billed     {account.worker_seconds:.1f} s in which a worker had a job"
    if account.unknown:
        yield f"unknown    {account.unknown} results without a reported duration"
    for gpu in gpus:
        dollars = account.dollars(gpu)
        billed_hours = account.billed_audio_seconds / 3600
        each = f", {dollars / billed_hours:.5f} per hour of audio" if billed_hours else ""
        yield f"price      {dollars:.4f} dollars on {gpu}{each}"
    yield f"           RunPod's flex workers, prices of {PRICED};"
    yield "           worker starts, idle time and failed jobs are billed on top"
