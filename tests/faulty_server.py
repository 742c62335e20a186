"""A server whose engine is lost after some batches: `python -m faulty_server BATCHES`."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from faulty_worker import FaultyEngine, faulty_pipeline
from parakeet_worker.entrypoints.http.main import serve
from parakeet_worker.pipeline import Pipeline
from parakeet_worker.settings import Settings


def main() -> None:
    batches = int(sys.argv[1])

    @contextmanager
    def open_faulty(settings: Settings) -> Iterator[Pipeline]:
        with faulty_pipeline(settings, FaultyEngine(0, batches)) as pipeline:
            yield pipeline

    serve(Settings.from_environment(os.environ), "127.0.0.1", open_faulty)


if __name__ == "__main__":
    import logging

    logging.basicConfig(level=logging.INFO)
    main()
