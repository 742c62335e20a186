"""Compares the packed chain and the search as a whole with plain PyTorch, on the serving device."""

from collections.abc import Iterator, Sequence
from difflib import SequenceMatcher

import torch
from torch import Tensor

from parakeet_worker.engine import budget
from parakeet_worker.engine.base import Waveform, as_float
from parakeet_worker.engine.kernel_report import KernelReport
from parakeet_worker.engine.native.engine import NativeEngine
from parakeet_worker.engine.native.packed_pipeline import PackedPipeline
from parakeet_worker.engine.native.precision import Precision
from parakeet_worker.engine.native.rows import Plan
from parakeet_worker.engine.native.script_bias import SCRIPT_SLOTS
from parakeet_worker.engine.native.search import GraphSearch
from parakeet_worker.engine.native.staging import Shape

# Rows of several tokens, of one, and of none, and the longest that fits a small graph.
_SECONDS = (3.1, 0.9, 0.005, 0.07, 6.4)
# Rounding errors accumulate over 24 layers: on random weights bfloat16 differs from float32 by
# 0.07. Smaller defects are found by comparing each kernel separately.
CHAIN_TOLERANCE = {Precision.BF16: 0.15, Precision.FP16: 0.03, Precision.FP32: 1e-3}
# Fraction of tokens that may differ: another summation order may change a close decision.
_SEARCH_TOLERANCE = 0.25
_SEARCH_LENGTHS = (40, 1, 17, 40)


def compare_chain(
    pipeline: PackedPipeline, plain: NativeEngine, precision: Precision
) -> Iterator[KernelReport]:
    """Compare encoder states on noise, without and with a CUDA graph."""
    sample_rate = plain.features.config.sample_rate
    batch = [budget.noise(seconds, sample_rate) for seconds in _SECONDS]
    plan = pipeline.plan(batch)
    expected = plain_states(plain, batch, plan).split(plan.tokens)
    cases: list[tuple[str, Shape | None]] = [("chain", None)]
    if (graph := pipeline.graph_shape(plan)) is not None:
        cases.append(("chain in a graph", graph))
    for name, shape in cases:
        states = pipeline.encode(shape, batch, plan)[1]
        actual = states[: sum(plan.tokens)].split(plan.tokens)
        error = max(map(_relative_error, actual, expected))
        yield KernelReport(name, error, CHAIN_TOLERANCE[precision])


def compare_search(
    search: GraphSearch, width: int, blank: int, device: torch.device
) -> KernelReport:
    """Compare tokens on noise in place of (N, `width`) states.

    Half of the rows have the blank forbidden, so that the rows of any model emit tokens.
    """
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(sum(_SEARCH_LENGTHS), width, generator=generator).to(device)
    bias = torch.zeros(blank + 1, device=device)
    bias[-1] = -torch.inf
    without_blank = len(SCRIPT_SLOTS)
    search.set_logit_bias(without_blank, bias)
    slots = [0, without_blank, 0, without_blank]
    actual = search.decode(states, _SEARCH_LENGTHS, slots)
    expected = search.decode_reference(states, _SEARCH_LENGTHS, slots)
    similarities = [
        SequenceMatcher(None, row.tokens.tolist(), reference.tokens.tolist()).ratio()
        for row, reference in zip(actual.rows, expected.rows, strict=True)
    ]
    return KernelReport("search", 1 - min(similarities), _SEARCH_TOLERANCE)


def plain_states(plain: NativeEngine, batch: Sequence[Waveform], plan: Plan) -> Tensor:
    """(N, width) packed states of the rows from the plain encoder, which pads."""
    padded, _ = plain.encode([as_float(chunk) for chunk in batch])
    return torch.cat([row[:tokens] for row, tokens in zip(padded, plan.tokens, strict=True)])


def _relative_error(actual: Tensor, expected: Tensor) -> float:
    difference = (actual.float() - expected.float()).norm()
    return float(difference / expected.float().norm().clamp(min=1e-6))
