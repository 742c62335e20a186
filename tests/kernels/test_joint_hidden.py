"""The joint network's hidden layer equals plain PyTorch."""

from dataclasses import replace

import pytest
import torch
from comparing import assert_close
from search_state import rows_at_random

from parakeet_worker.engine.native.kernels import joint_hidden
from parakeet_worker.engine.native.kernels.tiles import Tile, Tiles

TILE = replace(Tiles().joint_hidden, rows=16)


@pytest.mark.parametrize("activation", ["relu", "sigmoid", "tanh"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize(
    ("lengths", "inner", "width", "tile"),
    [
        ([1], 16, 16, TILE),
        ([0], 16, 20, TILE),
        ([5, 0, 1, 30, 0, 7] * 6, 40, 72, TILE),
        ([9] * 16, 80, 128, Tile(rows=64, columns=16, depth=32)),
    ],
)
def test_the_layer_equals_the_reference_for_rows_that_have_frames_left(
    lengths: list[int], inner: int, width: int, tile: Tile, dtype: torch.dtype, activation: str
) -> None:
    """Every row at its own frame of the packed buffer."""
    torch.manual_seed(width)
    rows = rows_at_random(lengths)
    count = len(lengths)
    encoded = torch.randn(sum(lengths), width).to(dtype)
    predicted, bias = torch.randn(count, inner), torch.randn(width)
    weight = (torch.randn(inner, width) * 0.3).to(dtype)
    mine, theirs = (torch.zeros(count, width, dtype=dtype) for _ in range(2))
    arguments = (rows, encoded, predicted, weight, bias)
    joint_hidden.launch(*arguments, mine, activation=activation, tile=tile)
    if sum(lengths):
        joint_hidden.reference(*arguments, theirs, activation=activation)
    active = rows.frames < rows.lengths
    assert active.any() == (sum(lengths) > 0)
    assert_close(mine[active], theirs[active], roundings=16)


def test_a_frame_that_is_not_a_number_stays_none() -> None:
    """The activation must not turn it into zero: the search reports the row by it."""
    rows = rows_at_random([3])
    rows.frames.zero_()
    encoded = torch.full((3, 16), float("nan"))
    joined = torch.zeros(1, 16)
    joint_hidden.launch(
        rows,
        encoded,
        torch.zeros(1, 16),
        torch.zeros(16, 16),
        torch.zeros(16),
        joined,
        activation="relu",
        tile=TILE,
    )
    assert joined.isnan().all()
