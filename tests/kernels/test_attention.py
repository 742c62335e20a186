"""Attention with relative positions equals plain PyTorch and stays within each row."""

from dataclasses import replace

import pytest
import torch
from comparing import PRODUCT_DTYPES, assert_close
from layouts import SAMPLES, layout

from parakeet_worker.engine.native.kernels import attention
from parakeet_worker.engine.native.kernels.tiles import Tile

TILE = Tile(rows=16, columns=16)


@pytest.mark.parametrize("dtype", PRODUCT_DTYPES)
@pytest.mark.parametrize("samples", SAMPLES)
@pytest.mark.parametrize(("heads", "head_width"), [(2, 8), (1, 32), (2, 20)])
def test_attention_equals_the_reference(
    dtype: torch.dtype, samples: tuple[int, ...], heads: int, head_width: int
) -> None:
    """Rows of every length, with more columns of positions than needed, in tiles of 16."""
    torch.manual_seed(len(samples))
    rows = layout(tuple(7 * count for count in samples))
    width, span = heads * head_width, max(8, -(-(2 * rows.longest - 1) // 8) * 8)
    projected = torch.randn(rows.tokens, 3 * width).to(dtype)
    positions = torch.randn(heads, rows.tokens, span).to(dtype)
    result = attention.launch(projected, positions, rows, tile=TILE)
    assert_close(result, attention.reference(projected, positions, rows), roundings=32)


def test_a_row_is_the_same_alone() -> None:
    """Bit for bit: neither its place nor the longest row of the batch changes it."""
    torch.manual_seed(0)
    rows = layout((40 * 1280, 23 * 1280))
    projected, positions = torch.randn(63, 48), torch.randn(2, 63, 80)
    together = attention.launch(projected, positions, rows, tile=TILE)
    alone = layout((23 * 1280,))
    # Column longest - 1 - t + s: the same scores begin elsewhere for another longest row.
    scores = positions[:, 40:, 40 - 23 :].contiguous()
    part = attention.launch(projected[40:].clone(), scores, alone, tile=TILE)
    assert torch.equal(part, together[40:])


def test_tokens_beyond_the_last_row_are_zero() -> None:
    """A graph's bucket holds more tokens than its rows."""
    rows = layout((16 * 1280,))
    rows = replace(rows, row_of=torch.cat((rows.row_of, torch.full((4,), -1, dtype=torch.int32))))
    result = attention.launch(torch.randn(20, 48), torch.randn(2, 20, 32), rows, tile=TILE)
    assert not result[16:].any()
    assert result[:16].any()
