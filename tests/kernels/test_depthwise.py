"""The depthwise convolution equals plain PyTorch and reads no other row."""

import pytest
import torch
from comparing import DTYPES, assert_close
from layouts import SAMPLES, layout

from parakeet_worker.engine.native.kernels import depthwise
from parakeet_worker.engine.native.kernels.tiles import Tiles
from parakeet_worker.engine.native.rows import Group, Plan, layout_words, view_layout, write_layout

TILE = Tiles().depthwise


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("samples", SAMPLES)
@pytest.mark.parametrize(("width", "taps"), [(32, 9), (300, 5)])
def test_convolution_equals_the_reference(
    dtype: torch.dtype, samples: tuple[int, ...], width: int, taps: int
) -> None:
    """Adjacent rows of every length."""
    torch.manual_seed(width)
    rows = layout(samples)
    states = torch.randn(rows.tokens, width).to(dtype)
    weight, bias = torch.randn(taps, width).to(dtype), torch.randn(width).to(dtype)
    actual = depthwise.launch(states, weight, bias, rows, tile=TILE)
    assert_close(actual, depthwise.reference(states, weight, bias, rows))


def test_a_row_is_bitwise_equal_alone_and_in_a_batch() -> None:
    """Whatever its neighbours are, including tokens beyond the last row."""
    torch.manual_seed(0)
    plan = Plan((9 * 1280, 5 * 1280), 160)
    states, weight, bias = torch.randn(20, 32), torch.randn(9, 32), torch.randn(32)
    words = torch.empty(layout_words(3, 20), dtype=torch.int32)
    write_layout(plan, (1.0, 1.0), 3, 20, words.numpy())
    rows = view_layout(words, 3, 20, 9, (Group(0, 20),))
    together = depthwise.launch(states, weight, bias, rows, tile=TILE)
    for first, end in ((0, 9), (9, 14)):
        row = layout(((end - first) * 1280,))
        alone = depthwise.launch(states[first:end].clone(), weight, bias, row, tile=TILE)
        assert torch.equal(alone, together[first:end])
