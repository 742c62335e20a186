"""Part `batches`: random batches in every precision; none may fail."""

import time
from collections.abc import Iterator

import numpy as np

from bench.gpu import sounds
from bench.gpu.figures import Report
from bench.gpu.opening import plain, random_nemo, served, settle
from bench.gpu.parts import Setup
from bench.gpu.sounds import Pcm
from bench.gpu.timing import hypothesis_of
from parakeet_worker.engine.base import SAMPLE_RATE, Engine

_EACH = 1000
_ROWS = 512
_LONGEST_SECONDS = 82.0  # over 81.9 s a chunk takes the plain path
_PACKED_SECONDS = 1200.0
_PADDED_SECONDS = 60.0
"""Maximum audio of one batch, so that a thousand batches fit the time limit."""


def run(setup: Setup, report: Report) -> None:
    """1,000 batches in each precision; batches completed before a fault are counted."""
    each = setup.count(_EACH, 250, 2)
    for number, precision in enumerate(("bf16", "fp16", "fp32")):
        with (
            plain(random_nemo(setup), precision, setup.device)
            if precision == "fp32"
            else served(setup, random_nemo(setup), precision)
        ) as engine:
            seconds = _PADDED_SECONDS if precision == "fp32" else _PACKED_SECONDS
            rows = _ROWS
            if setup.small:
                seconds, rows = 3.0, 8
            drawn = random_batches(each, rows, seconds, padded=precision == "fp32", seed=number)
            started = time.perf_counter()
            correct = 0
            try:
                for batch in drawn:
                    correct += _answered(engine, batch)
                settle(setup)
            finally:  # a fault is an exception; the count must be reported nevertheless
                report.check(
                    f"random batches answered, {precision}", correct, "batches", at_least=each
                )
            report.measure(f"in, {precision}", time.perf_counter() - started, "s")


def random_batches(
    count: int, max_rows: int, seconds: float, *, padded: bool, seed: int
) -> Iterator[list[Pcm]]:
    """1 to `max_rows` chunks of one sample to the longest, both log-uniformly distributed.

    The total is at most `seconds`, including padding if it is computed.
    """
    generator = np.random.default_rng(seed)
    speech = np.resize(sounds.speech(), round(2 * _LONGEST_SECONDS * SAMPLE_RATE))
    longest = min(_LONGEST_SECONDS, seconds) * SAMPLE_RATE
    for _ in range(count):
        rows = round(np.exp(generator.uniform(0, np.log(max_rows))))
        top = np.exp(generator.uniform(0, np.log(longest)))
        lengths = np.exp(generator.uniform(0, np.log(top + 1), rows)).astype(int)
        limit = seconds * SAMPLE_RATE
        selected = limit // lengths.max() if padded else int((np.cumsum(lengths) <= limit).sum())
        starts = generator.integers(0, len(speech) - lengths.max(), rows)
        chosen = zip(starts[: max(1, int(selected))], lengths, strict=False)
        yield [speech[start : start + length] for start, length in chosen]


def _answered(engine: Engine, batch: list[Pcm]) -> bool:
    """Whether each chunk has a hypothesis with all tokens within the chunk."""
    outcomes = engine.transcribe(batch)
    if len(outcomes) != len(batch):
        return False
    for chunk, outcome in zip(batch, outcomes, strict=True):
        hypothesis = hypothesis_of(outcome)
        frames = len(chunk) / SAMPLE_RATE / hypothesis.frame_seconds + 1
        if any(not 0 <= token.frame < frames for token in hypothesis.tokens):
            return False
    return True
