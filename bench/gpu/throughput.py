"""Part `throughput`: chunks of 30 s, from int16 on the host to tokens on the host."""

from collections.abc import Sequence

from bench.gpu import sounds
from bench.gpu.figures import Report
from bench.gpu.opening import CHUNK_SECONDS, check_in_use, random_nemo, served
from bench.gpu.parts import Setup
from bench.gpu.sounds import Pcm, seconds_of
from bench.gpu.timing import pipelined
from bench.harness import median
from parakeet_worker.engine.base import Engine

_COUNTS = (1, 8, 32, 128, 256)
_MAX_CHUNKS = 128
"""Maximum number of chunks that the batcher puts into a batch."""
_GOALS = {128: 24_000.0}


def run(setup: Setup, report: Report) -> None:
    """Seconds of audio per second, by the number of chunks."""
    with served(setup, random_nemo(setup), "bf16") as engine:
        check_in_use(report, engine)
        for count in (1, 2) if setup.small else _COUNTS:
            seconds = 2.0 if setup.small else CHUNK_SECONDS
            batches = cut(sounds.chunks(seconds, count))
            rates, tokens = measured(setup, engine, batches)
            report.measure(
                f"{count} x {seconds:g} s", median(rates), "audio s/s",
                at_least=_GOALS.get(count), values=rates,
            )  # fmt: skip
            report.measure(f"{count} x {seconds:g} s, tokens", tokens, "per audio s")


def cut(chunks: Sequence[Pcm]) -> list[list[Pcm]]:
    """Batches with the maximum number of chunks."""
    return [
        list(chunks[first : first + _MAX_CHUNKS]) for first in range(0, len(chunks), _MAX_CHUNKS)
    ]


def measured(setup: Setup, engine: Engine, batches: list[list[Pcm]]) -> tuple[list[float], float]:
    """Audio seconds per second of each repeat, and tokens per second of audio.

    A repeat has several batches, so that the first and the last, which overlap with no other, have
    the same weight as in service.
    """
    audio = seconds_of([chunk for batch in batches for chunk in batch])
    once, tokens = pipelined(engine, batches)
    # Several seconds in total: small batches are repeated more often.
    again = 1 if setup.small else max(8, min(200, round(1.0 / once)))
    repeats = setup.count(3, 2, 2)
    spent = [pipelined(engine, batches * again)[0] for _ in range(repeats)]
    return [again * audio / seconds for seconds in spent], tokens / audio
