"""The depthwise convolution equals plain PyTorch and sees no other row."""

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
    """Rows of every length, side by side."""
    torch.manual_seed(width)
    rows = layout(samples)
    states = torch.randn(rows.tokens, width).to(dtype)
    weight, bias = torch.randn(taps, width).to(dtype), torch.randn(width).to(dtype)
    result = depthwise.launch(states, weight, bias, rows, tile=TILE)
    assert_close(result, depthwise.reference(states, weight, bias, rows))


def test_a_row_is_the_same_alone() -> None:
    """Bit for bit, whatever lies beside it, tokens beyond the last row among them."""
    torch.manual_seed(0)
    plan = Plan((9 * 1280, 5 * 1280), 160)
    states, weight, bias = torch.randn(20, 32), torch.randn(9, 32), torch.randn(32)
    out = torch.empty(layout_words(3, 20), dtype=torch.int32)
    write_layout(plan, (1.0, 1.0), 3, 20, out.numpy())
    together = depthwise.launch(
        states, weight, bias, view_layout(out, 3, 20, 9, (Group(0, 20),)), tile=TILE
    )
    for first, end in ((0, 9), (9, 14)):
        alone = layout(((end - first) * 1280,))
        part = states[first:end].clone()
        assert torch.equal(
            depthwise.launch(part, weight, bias, alone, tile=TILE), together[first:end]
        )
