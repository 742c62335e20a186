"""`python -m parakeet_worker.entrypoints.cli`, the same as `parakeet`."""

from parakeet_worker.entrypoints.cli import main

main(prog_name="parakeet")
