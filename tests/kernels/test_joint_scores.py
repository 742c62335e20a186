"""The joint network's outputs, reduced per block, equal plain PyTorch."""

import math

import pytest
import torch
from comparing import assert_close
from search_state import rows_at_random
from torch import Tensor
from torch.nn import functional

from parakeet_worker.engine.native.kernels import joint_scores
from parakeet_worker.engine.native.kernels.joint_scores import Partials, blocks
from parakeet_worker.engine.native.kernels.search_rows import SearchRows
from parakeet_worker.engine.native.kernels.tiles import Tile

TILE = Tile(rows=16, columns=32, depth=32)


def partials_of(rows: int, tokens: int, tile: Tile) -> Partials:
    shape = (blocks(tokens, tile) + 1, rows)
    return Partials(
        *(torch.zeros(shape) for _ in range(4)), torch.full(shape, -5, dtype=torch.int32)
    )


def both(
    rows: SearchRows, joined: Tensor, weight: Tensor, bias: Tensor, added: Tensor, tile: Tile
) -> tuple[Partials, Partials]:
    """By the kernel and by its reference, with (slots, tokens) additive scores."""
    tokens = added.shape[1]
    found = tuple(partials_of(len(joined), tokens, tile) for _ in range(2))
    table = functional.pad(added, (0, blocks(tokens, tile) * tile.columns - tokens))
    for step, partials in zip((joint_scores.launch, joint_scores.reference), found, strict=True):
        step(rows, joined, weight, bias, table, partials, tokens=tokens, tile=tile)
    return found


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
    """With additive scores of no, one and every kind in the same batch."""
    torch.manual_seed(tokens)
    rows = rows_at_random([4, 0, 9, 5] * 10, slots=slots)
    rows = SearchRows(*(getattr(rows, name)[:count].clone() for name in SearchRows.__slots__))
    joined = torch.randn(count, width).to(dtype)
    weight = torch.randn(tokens + durations, width).to(dtype)
    bias, added = torch.randn(tokens + durations), torch.zeros(3, tokens)
    added[1] = torch.randn(tokens)
    added[2, torch.rand(tokens) < 0.5] = -math.inf
    rows.frames[0] = 0
    mine, theirs = both(rows, joined, weight, bias, added, tile)
    active = rows.frames < rows.lengths
    assert active.any()
    for name in Partials.__slots__[:4]:
        ours, right = (getattr(each, name)[:-1, active] for each in (mine, theirs))
        lost = right.isinf()
        assert torch.equal(ours.isinf(), lost)
        assert_close(ours[~lost], right[~lost], roundings=64)
    assert torch.equal(mine.indices[:, active], theirs.indices[:, active])


def test_the_first_of_equal_scores_wins() -> None:
    """As torch's argmax has it, within a block."""
    rows = rows_at_random([3])
    rows.frames.zero_()
    bias = torch.zeros(40)
    bias[[7, 9, 33]] = 2.0
    bias[[36, 38]] = 1.0
    weights = (torch.zeros(1, 16), torch.zeros(40, 16), bias, torch.zeros(1, 35))
    mine, theirs = both(rows, *weights, TILE)
    assert mine.indices.squeeze(1).tolist() == theirs.indices.squeeze(1).tolist() == [7, 33, 1]


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # numpy's, in the interpreter
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_score_that_is_not_finite_makes_the_sum_so(value: float) -> None:
    """The next kernel ends the row by it."""
    rows = rows_at_random([3])
    rows.frames.zero_()
    bias = torch.zeros(40)
    bias[33] = value
    weights = (torch.zeros(1, 16), torch.zeros(40, 16), bias, torch.zeros(1, 35))
    for found in both(rows, *weights, TILE):
        assert found.total[0].isfinite()
        assert not found.total[1].isfinite()
