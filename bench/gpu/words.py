"""Part `words`: what the demo checkpoint hears in speech, on the device and on the processor."""

from collections.abc import Sequence
from itertools import islice

import numpy as np

from bench.gpu import sounds
from bench.gpu.comparing import Said, differing_tokens, per_thousand, said, texts
from bench.gpu.figures import Report
from bench.gpu.opening import DEMO, plain, served
from bench.gpu.parts import Setup
from bench.gpu.sounds import Pcm
from parakeet_worker.engine.base import Engine, Outcome

_BATCH = 64
_TOKEN_LIMITS = {"fp32": 1.0, "bf16": 5.0, "fp16": 3.0}
"""Of a thousand, against float32 on the processor; bf16 was 0.9 with another search."""
_TEXT_LIMIT = 1.0
"""Law 13: of a thousand chunks, alone or in any batch; none where it is reproducible."""


def run(setup: Setup, report: Report) -> None:
    """Against the processor in every precision, then alone against batches in any order."""
    chunks = sounds.utterances(setup.count(1000, 200, 6))
    compared = chunks[: setup.count(400, 100, 6)]
    with plain(DEMO, "fp32", "cpu") as reference:
        right = said(_in_batches(reference, compared, 16))
    report.measure("tokens compared", sum(map(len, right)), "tokens")
    with plain(DEMO, "fp32", setup.device) as engine:
        _against(report, "fp32", engine, compared, right)
    for precision in ("bf16", "fp16"):
        with served(setup, DEMO, precision) as engine:
            _against(report, precision, engine, compared, right)
            if precision == "bf16":
                _together(report, "default", engine, chunks, _TEXT_LIMIT)
    # On a CPU the references are libraries' products, which promise no order of sums.
    with served(setup, DEMO, "bf16", reproducible=True) as engine:
        _together(report, "reproducible", engine, chunks, 0.0 if setup.cuda else _TEXT_LIMIT)


def _against(
    report: Report, precision: str, engine: Engine, chunks: Sequence[Pcm], right: list[Said]
) -> None:
    found = said(_in_batches(engine, chunks, _BATCH))
    report.check(
        f"tokens other than on the processor, {precision}", differing_tokens(found, right),
        "of 1,000", at_most=_TOKEN_LIMITS[precision],
    )  # fmt: skip


def _together(
    report: Report, name: str, engine: Engine, chunks: Sequence[Pcm], limit: float
) -> None:
    """Texts alone, against batches in order and in another order."""
    alone = texts(_in_batches(engine, chunks, 1))
    batched = texts(_in_batches(engine, chunks, _BATCH))
    order = np.random.default_rng(3).permutation(len(chunks))
    mixed = texts(_in_batches(engine, [chunks[one] for one in order], _BATCH))
    shuffled = [mixed[place] for place in np.argsort(order)]
    for kind, found in (("in batches of 64", batched), ("shuffled", shuffled)):
        report.check(
            f"{name}, alone and {kind}, other texts", per_thousand(found, alone),
            "of 1,000", at_most=limit,
        )  # fmt: skip


def _in_batches(engine: Engine, chunks: Sequence[Pcm], size: int) -> list[Outcome]:
    left = iter(chunks)
    found: list[Outcome] = []
    while batch := list(islice(left, size)):
        found.extend(engine.transcribe(batch))
    return found
