"""Part `words`: transcripts of the demo checkpoint, on the device and on the CPU."""

from collections.abc import Sequence
from itertools import islice

import numpy as np

from bench.gpu import sounds
from bench.gpu.comparing import Tokens, differing_tokens, per_thousand, texts, tokens_of
from bench.gpu.figures import Report
from bench.gpu.opening import DEMO, plain, served
from bench.gpu.parts import Setup
from bench.gpu.sounds import Pcm
from parakeet_worker.engine.base import Engine, Outcome

_BATCH = 64
_TOKEN_LIMITS = {"fp32": 1.0, "bf16": 5.0, "fp16": 3.0}
"""Per thousand, compared with float32 on the CPU; bf16 was 0.9 with an earlier search."""
_TEXT_LIMIT = 1.0
"""Per thousand chunks, alone or in any batch; zero if reproducible."""


def run(setup: Setup, report: Report) -> None:
    """Compare every precision with the CPU, then chunks alone with batches in any order."""
    chunks = sounds.utterances(setup.count(1000, 200, 6))
    compared = chunks[: setup.count(400, 100, 6)]
    with plain(DEMO, "fp32", "cpu") as reference:
        expected = tokens_of(_in_batches(reference, compared, 16))
    report.measure("tokens compared", sum(map(len, expected)), "tokens")
    with plain(DEMO, "fp32", setup.device) as engine:
        _compare_with_cpu(report, "fp32", engine, compared, expected)
    for precision in ("bf16", "fp16"):
        with served(setup, DEMO, precision) as engine:
            _compare_with_cpu(report, precision, engine, compared, expected)
            if precision == "bf16":
                _compare_batches(report, "default", engine, chunks, _TEXT_LIMIT)
    # On a CPU the references are library products without a guaranteed summation order.
    with served(setup, DEMO, "bf16", reproducible=True) as engine:
        _compare_batches(report, "reproducible", engine, chunks, 0.0 if setup.cuda else _TEXT_LIMIT)


def _compare_with_cpu(
    report: Report, precision: str, engine: Engine, chunks: Sequence[Pcm], expected: list[Tokens]
) -> None:
    tokens = tokens_of(_in_batches(engine, chunks, _BATCH))
    report.check(
        f"tokens different from the CPU, {precision}", differing_tokens(tokens, expected),
        "of 1,000", at_most=_TOKEN_LIMITS[precision],
    )  # fmt: skip


def _compare_batches(
    report: Report, name: str, engine: Engine, chunks: Sequence[Pcm], limit: float
) -> None:
    """Compare texts alone with those in batches, in order and shuffled."""
    alone = texts(_in_batches(engine, chunks, 1))
    batched = texts(_in_batches(engine, chunks, _BATCH))
    order = np.random.default_rng(3).permutation(len(chunks))
    mixed = texts(_in_batches(engine, [chunks[index] for index in order], _BATCH))
    shuffled = [mixed[index] for index in np.argsort(order)]
    for kind, actual in (("in batches of 64", batched), ("shuffled", shuffled)):
        report.check(
            f"{name}, alone and {kind}, other texts", per_thousand(actual, alone),
            "of 1,000", at_most=limit,
        )  # fmt: skip


def _in_batches(engine: Engine, chunks: Sequence[Pcm], size: int) -> list[Outcome]:
    remaining = iter(chunks)
    outcomes: list[Outcome] = []
    while batch := list(islice(remaining, size)):
        outcomes.extend(engine.transcribe(batch))
    return outcomes
