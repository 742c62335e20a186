"""The joint network's hidden layer equals plain PyTorch."""

from dataclasses import replace

import pytest
import torch
from comparing import assert_close
from search_state import random_rows

from parakeet_worker.engine.native.kernels import joint_hidden
from parakeet_worker.engine.native.kernels.tiles import Tile, Tiles

TILE = replace(Tiles().joint_hidden, rows=16)


@pytest.mark.parametrize("activation", ["relu", "sigmoid", "tanh"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize(
    ("lengths", "depth", "width", "tile"),
    [
        ([1], 16, 16, TILE),
        ([0], 16, 20, TILE),
        ([5, 0, 1, 30, 0, 7] * 6, 40, 72, TILE),
        ([9] * 16, 80, 128, Tile(rows=64, columns=16, depth=32)),
    ],
)
def test_active_rows_equal_the_reference(
    lengths: list[int], depth: int, width: int, tile: Tile, dtype: torch.dtype, activation: str
) -> None:
    """Each row at its own frame of the packed buffer."""
    torch.manual_seed(width)
    rows = random_rows(lengths)
    count = len(lengths)
    encoded = torch.randn(sum(lengths), width).to(dtype)
    predicted, bias = torch.randn(count, depth), torch.randn(width)
    weight = (torch.randn(depth, width) * 0.3).to(dtype)
    actual, expected = (torch.zeros(count, width, dtype=dtype) for _ in range(2))
    arguments = (rows, encoded, predicted, weight, bias)
    joint_hidden.launch(*arguments, actual, activation=activation, tile=tile)
    if sum(lengths):
        joint_hidden.reference(*arguments, expected, activation=activation)
    active = rows.frames < rows.lengths
    assert active.any() == (sum(lengths) > 0)
    assert_close(actual[active], expected[active], roundings=16)


def test_nan_in_a_frame_is_propagated() -> None:
    """The activation must not replace it by zero: the search detects failed rows by it."""
    rows = random_rows([3])
    rows.frames.zero_()
    encoded = torch.full((3, 16), float("nan"))
    output = torch.zeros(1, 16)
    joint_hidden.launch(
        rows,
        encoded,
        torch.zeros(1, 16),
        torch.zeros(16, 16),
        torch.zeros(16),
        output,
        activation="relu",
        tile=TILE,
    )
    assert output.isnan().all()
