"""Attention with relative positions equals plain PyTorch and stays within each row."""

from dataclasses import replace

import pytest
import torch
from comparing import PRODUCT_DTYPES, assert_close
from layouts import SAMPLES, layout

from parakeet_worker.engine.native.kernels import attention
from parakeet_worker.engine.native.kernels.tiles import Tile

TILE = Tile(rows=16, columns=16)


@pytest.mark.parametrize("samples", SAMPLES)
@pytest.mark.parametrize(
    ("dtype", "heads", "head_width"),
    [
        *((dtype, 2, 20) for dtype in PRODUCT_DTYPES),
        (torch.float32, 2, 8),
        (torch.float32, 1, 32),
    ],
)
def test_attention_equals_the_reference(
    dtype: torch.dtype, samples: tuple[int, ...], heads: int, head_width: int
) -> None:
    """Rows of every length, with more position columns than required, in tiles of 16."""
    torch.manual_seed(len(samples))
    rows = layout(tuple(7 * count for count in samples))
    width, columns = heads * head_width, max(8, -(-(2 * rows.longest - 1) // 8) * 8)
    qkv = torch.randn(rows.tokens, 3 * width).to(dtype)
    scores = torch.randn(heads, rows.tokens, columns).to(dtype)
    actual = attention.launch(qkv, scores, rows, tile=TILE)
    assert_close(actual, attention.reference(qkv, scores, rows), roundings=32)


def test_a_row_is_bitwise_equal_alone_and_in_a_batch() -> None:
    """Neither the row's offset nor the longest row of the batch affects it."""
    torch.manual_seed(0)
    rows = layout((40 * 1280, 23 * 1280))
    qkv, scores = torch.randn(63, 48), torch.randn(2, 63, 80)
    together = attention.launch(qkv, scores, rows, tile=TILE)
    row = layout((23 * 1280,))
    # Column longest - 1 - t + s: the first column depends on the longest row.
    row_scores = scores[:, 40:, 40 - 23 :].contiguous()
    alone = attention.launch(qkv[40:].clone(), row_scores, row, tile=TILE)
    assert torch.equal(alone, together[40:])


def test_tokens_beyond_the_last_row_are_zero() -> None:
    """A graph's bucket has more tokens than its rows."""
    rows = layout((16 * 1280,))
    rows = replace(rows, row_of=torch.cat((rows.row_of, torch.full((4,), -1, dtype=torch.int32))))
    output = attention.launch(torch.randn(20, 48), torch.randn(2, 20, 32), rows, tile=TILE)
    assert not output[16:].any()
    assert output[:16].any()
