"""Process of a part: runs it and writes its figures, one JSON document per line."""

import importlib
import json
import os
import sys
from collections.abc import Callable

from bench.gpu import stubs
from bench.gpu.figures import Report
from bench.gpu.parts import FAULTS, Setup


def main() -> None:
    """`bench.gpu.child PART SETUP`, the latter in JSON."""
    name, setup = sys.argv[1], Setup.read(json.loads(sys.argv[2]))
    # Libraries print to the log; only figures are written to the pipe.
    figures = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    stubs.install()
    _disable_tf32()
    report = Report(figures.write, judged=setup.cuda and not setup.small)
    _named(name)(setup, report)


def _disable_tf32() -> None:
    """As a worker does before it computes anything."""
    from parakeet_worker.engine import device

    device.disable_tf32()


def _named(name: str) -> Callable[[Setup, Report], None]:
    if name in {part.name for part in FAULTS}:
        from bench.gpu import faults

        function: Callable[[Setup, Report], None] = getattr(faults, name)
        return function
    run: Callable[[Setup, Report], None] = importlib.import_module(f"bench.gpu.{name}").run
    return run


if __name__ == "__main__":
    main()
