"""Workers that are odd in one thing: `python -m odd_workers KIND`, at the queue as any other.

`deaf` hears nothing; `renamed` finds an SDK in which something has another name; `serial` is one
after the other, each in a process of its own that is forked off once everything is imported.
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


class DeafEngine(ToneEngine):
    """No words in anything."""

    def transcribe(self, batch: Sequence[Samples], _scripts: object = ()) -> list[Hypothesis]:
        return [Hypothesis((), self.frame_seconds) for _ in batch]


def deaf() -> None:
    settings = Settings.from_environment(os.environ)
    with faulty_pipeline(settings, DeafEngine()) as pipeline:
        serve(pipeline)


def renamed() -> None:
    import runpod.serverless  # noqa: F401  # everything that uses the old name has it already
    from runpod.serverless.modules import rp_job

    del rp_job.get_stop_signals
    main()


def serial() -> None:
    """Each says its process's id, and after its end with what status it ended."""
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
    {"deaf": deaf, "renamed": renamed, "serial": serial}[sys.argv[1]]()
