"""The joint network's outputs, reduced per block, equal plain PyTorch."""

import math

import pytest
import torch
from comparing import assert_close
from search_state import random_rows
from torch import Tensor
from torch.nn import functional

from parakeet_worker.engine.native.kernels import joint_scores
from parakeet_worker.engine.native.kernels.joint_scores import Partials, blocks
from parakeet_worker.engine.native.kernels.search_rows import SearchRows
from parakeet_worker.engine.native.kernels.tiles import Tile

TILE = Tile(rows=16, columns=32, depth=32)


def empty_partials(rows: int, tokens: int, tile: Tile) -> Partials:
    shape = (blocks(tokens, tile) + 1, rows)
    return Partials(
        *(torch.zeros(shape) for _ in range(4)), torch.full(shape, -5, dtype=torch.int32)
    )


def run_both(
    rows: SearchRows, states: Tensor, weight: Tensor, bias: Tensor, logit_bias: Tensor, tile: Tile
) -> tuple[Partials, Partials]:
    """Results of the kernel and of its reference, with (slots, tokens) logit biases."""
    tokens = logit_bias.shape[1]
    results = tuple(empty_partials(len(states), tokens, tile) for _ in range(2))
    table = functional.pad(logit_bias, (0, blocks(tokens, tile) * tile.columns - tokens))
    for step, partials in zip((joint_scores.launch, joint_scores.reference), results, strict=True):
        step(rows, states, weight, bias, table, partials, tokens=tokens, tile=tile)
    return results


@pytest.mark.parametrize("slots", [1, 2, 3])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize(
    ("count", "width", "tokens", "durations", "tile"),
    [
        (1, 16, 13, 5, TILE),
        (37, 40, 97, 5, TILE),
        (16, 72, 64, 1, TILE),
        (16, 128, 894, 5, Tile(rows=64, columns=128, depth=64)),
    ],
)
def test_partial_results_equal_the_reference(
    count: int, width: int, tokens: int, durations: int, tile: Tile, dtype: torch.dtype, slots: int
) -> None:
    """With logit biases of no, one and every kind in the same batch."""
    torch.manual_seed(tokens)
    rows = random_rows([4, 0, 9, 5] * 10, slots=slots)
    rows = SearchRows(*(getattr(rows, name)[:count].clone() for name in SearchRows.__slots__))
    states = torch.randn(count, width).to(dtype)
    weight = torch.randn(tokens + durations, width).to(dtype)
    bias, logit_bias = torch.randn(tokens + durations), torch.zeros(3, tokens)
    logit_bias[1] = torch.randn(tokens)
    logit_bias[2, torch.rand(tokens) < 0.5] = -math.inf
    rows.frames[0] = 0
    actual, expected = run_both(rows, states, weight, bias, logit_bias, tile)
    active = rows.frames < rows.lengths
    assert active.any()
    for name in Partials.__slots__[:4]:
        values, right = (getattr(partials, name)[:-1, active] for partials in (actual, expected))
        infinite = right.isinf()
        assert torch.equal(values.isinf(), infinite)
        assert_close(values[~infinite], right[~infinite], roundings=64)
    assert torch.equal(actual.best_index[:, active], expected.best_index[:, active])


def test_ties_select_the_lowest_index_of_a_block() -> None:
    """Same as torch's argmax."""
    rows = random_rows([3])
    rows.frames.zero_()
    bias = torch.zeros(40)
    bias[[7, 9, 33]] = 2.0
    bias[[36, 38]] = 1.0
    inputs = (torch.zeros(1, 16), torch.zeros(40, 16), bias, torch.zeros(1, 35))
    for partials in run_both(rows, *inputs, TILE):
        assert partials.best_index.squeeze(1).tolist() == [7, 33, 1]


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # numpy's, in the interpreter
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_non_finite_score_makes_the_sum_non_finite(value: float) -> None:
    """`search_step` ends the row by it."""
    rows = random_rows([3])
    rows.frames.zero_()
    bias = torch.zeros(40)
    bias[33] = value
    inputs = (torch.zeros(1, 16), torch.zeros(40, 16), bias, torch.zeros(1, 35))
    for partials in run_both(rows, *inputs, TILE):
        assert partials.exp_sum[0].isfinite()
        assert not partials.exp_sum[1].isfinite()
