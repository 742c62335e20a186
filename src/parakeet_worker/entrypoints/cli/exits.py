"""Exit statuses, and errors that end a command with one line."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import click

from parakeet_worker.errors import SetupError

FAILED = 1
"""Some of the work failed."""
USAGE = 2
"""Wrong usage, or nothing could be done."""
INTERRUPTED = 130


@contextmanager
def setup_errors() -> Iterator[None]:
    """Print a `SetupError` and exit with `USAGE`."""
    try:
        yield
    except SetupError as error:
        click.echo(f"parakeet: {error}", err=True)
        sys.exit(USAGE)


@contextmanager
def interrupts() -> Iterator[None]:
    """Print how to resume and exit with `INTERRUPTED`."""
    try:
        yield
    except KeyboardInterrupt:
        click.echo("parakeet: interrupted; run the same command again to resume", err=True)
        sys.exit(INTERRUPTED)
