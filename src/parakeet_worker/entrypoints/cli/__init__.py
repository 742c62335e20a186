"""The command line, `parakeet`.

Modules of this package import the standard library, click and the package's own light modules at
import time and everything else inside the commands, so that `parakeet --help` stays fast.
"""

import os
import signal

if os.getpid() == 1:
    # Process 1 of a container ignores a signal without a handler, and importing takes seconds from
    # a slow volume. Servers install their own handlers later.
    signal.signal(signal.SIGTERM, lambda number, _: os._exit(128 + number))

import click

from parakeet_worker.bootstrap import variables
from parakeet_worker.entrypoints.cli import completion, costs, operate, speakers, transcribe
from parakeet_worker.version import __version__

CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


@click.group(context_settings=CONTEXT)
@click.version_option(__version__, prog_name="parakeet")
def main() -> None:
    """Speech to text with NVIDIA Parakeet TDT 0.6B v3."""
    for warning in variables.clean(os.environ):
        click.echo(f"parakeet: warning: {warning}", err=True)


for command in (
    transcribe.transcribe,
    speakers.speakers,
    costs.cost,
    operate.serve,
    operate.wyoming,
    operate.doctor,
    operate.verify,
    operate.convert,
    operate.compile_kernels,
    operate.bootstrap,
    completion.completion,
):
    main.add_command(command)
