"""A queue worker with an engine that fails: `python -m faulty_worker SEED [BATCHES]`.

A tones engine in an otherwise real worker under the SDK's own loop. It runs out of memory at
random, and fails permanently after BATCHES batches.
"""

import os
import random
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from parakeet_worker.audio.decoding import SAMPLE_RATE, find_ffmpeg
from parakeet_worker.batcher import Batcher
from parakeet_worker.engine.base import Capacity, Engine, Hypothesis, Samples
from parakeet_worker.engine.tones import ToneEngine
from parakeet_worker.entrypoints.queue.main import serve
from parakeet_worker.errors import OutOfMemory
from parakeet_worker.language import Script
from parakeet_worker.pipeline import Pipeline
from parakeet_worker.settings import Settings
from parakeet_worker.worker import open_detectors

TOO_HIGH = 4000
"""A tone of this pitch in Hz needs more memory than there is."""

_OUT_OF_MEMORY_SHARE = 0.1
_BATCH_SECONDS = 30.0


class FaultyEngine(ToneEngine):
    """Runs out of memory at random, and always for `TOO_HIGH`; may fail permanently."""

    def __init__(self, seed: int, batches: int | None = None) -> None:
        self._random = random.Random(seed)  # noqa: S311  # reproducible
        self._left = batches
        self.faults = 0
        self.transcribed = 0

    def transcribe(
        self, batch: Sequence[Samples], scripts: Sequence[Script | None] = ()
    ) -> list[Hypothesis]:
        if self._left == 0:
            raise RuntimeError("an illegal memory access was encountered")
        self._left = self._left and self._left - 1
        result = super().transcribe(batch, scripts)
        impossible = any(is_too_high(hypothesis) for hypothesis in result)
        random_fault = len(batch) > 1 and self._random.random() < _OUT_OF_MEMORY_SHARE
        if impossible or random_fault:
            self.faults += 1
            raise OutOfMemory(max(len(piece) for piece in batch) / SAMPLE_RATE)
        self.transcribed += len(batch)
        return result


class HeldEngine(ToneEngine):
    """Blocks after `batches` batches, until `released` is set."""

    def __init__(self, batches: int = 0) -> None:
        self._free = batches
        self.held = threading.Event()
        """Set while it blocks."""
        self.released = threading.Event()
        self.batches: list[list[Hypothesis]] = []

    def transcribe(
        self, batch: Sequence[Samples], scripts: Sequence[Script | None] = ()
    ) -> list[Hypothesis]:
        result = super().transcribe(batch, scripts)
        self.batches.append(result)
        if len(self.batches) > self._free:
            self.held.set()
            assert self.released.wait(60)
        return result

    @property
    def text(self) -> str:
        """Text of all batches."""
        return " ".join(
            token.piece for batch in self.batches for result in batch for token in result.tokens
        )


def is_too_high(hypothesis: Hypothesis) -> bool:
    return any(token.piece == f"▁{TOO_HIGH}" for token in hypothesis.tokens)


@contextmanager
def faulty_pipeline(settings: Settings, engine: Engine) -> Iterator[Pipeline]:
    """A pipeline as from `worker.open_pipeline`, with the given engine."""
    capacity = Capacity(settings.batch_seconds or _BATCH_SECONDS, 512, packed=False)
    with Batcher(engine, capacity=capacity, queue_seconds=3600.0) as batcher:
        ffmpeg = find_ffmpeg(settings.ffmpeg)
        yield Pipeline(settings, batcher, ffmpeg, open_detectors(settings))


def main() -> None:
    seed, *batches = (int(argument) for argument in sys.argv[1:])
    settings = Settings.from_environment(os.environ)
    with faulty_pipeline(settings, FaultyEngine(seed, *batches)) as pipeline:
        serve(pipeline)


if __name__ == "__main__":
    main()
