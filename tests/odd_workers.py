"""Queue workers with one deviation each: `python -m odd_workers KIND`.

`silent` has a model that emits nothing; `renamed` runs with an SDK that lacks a name it uses;
`serial` runs workers one after the other, each forked from a process with all imports done.
"""

import logging
import os
import sys
from collections.abc import Sequence

from faulty_worker import faulty_pipeline
from parakeet_worker.engine.base import Hypothesis, Samples
from parakeet_worker.engine.tones import ToneEngine
from parakeet_worker.entrypoints.queue.main import main, serve
from parakeet_worker.settings import Settings


class SilentEngine(ToneEngine):
    """Emits no words for any audio."""

    def transcribe(self, batch: Sequence[Samples], _scripts: object = ()) -> list[Hypothesis]:
        return [Hypothesis((), self.frame_seconds) for _ in batch]


def silent() -> None:
    settings = Settings.from_environment(os.environ)
    with faulty_pipeline(settings, SilentEngine()) as pipeline:
        serve(pipeline)


def renamed() -> None:
    import runpod.serverless  # noqa: F401  # its own modules have imported the name already
    from runpod.serverless.modules import rp_job

    del rp_job.get_stop_signals
    main()


def serial() -> None:
    """Print the process id of each worker, and its exit status afterwards."""
    import runpod  # noqa: F401

    logging.basicConfig(level=logging.INFO)
    while True:
        worker = os.fork()
        if worker == 0:
            main()
            os._exit(0)
        sys.stdout.write(f"began {worker}\n")
        sys.stdout.flush()
        _, status = os.waitpid(worker, 0)
        sys.stdout.write(f"ended {worker} {os.waitstatus_to_exitcode(status)}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    {"silent": silent, "renamed": renamed, "serial": serial}[sys.argv[1]]()
