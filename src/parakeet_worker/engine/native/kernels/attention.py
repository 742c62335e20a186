"""Attention within each row, with relative positions whose scores are read skewed in place.

Online softmax over tiles of keys: Dao et al., "FlashAttention", 2022. The scores of query t for
the position of key s lie in column longest - 1 - t + s of the product of queries and the table of
positions (Dai et al., "Transformer-XL", 2019, appendix B), so that no shifted copy is made.
"""

from itertools import pairwise

import torch
import triton
import triton.language as tl
from torch import Tensor

from parakeet_worker.engine.native.kernels.launcher import launch as start
from parakeet_worker.engine.native.kernels.tiles import Tile
from parakeet_worker.engine.native.rows import Rows

_LOG2_E = 1.4426950408889634
# Below any score, and finite: a row of one masked tile must not become NaN.
_FLOOR = -1e30
_SMALLEST_PRODUCT = 16


def launch(projected: Tensor, positions: Tensor, rows: Rows, *, tile: Tile) -> Tensor:
    """(N, 3 C) scaled queries, keys and values, (heads, N, S) position scores -> (N, C).

    S is at least 2 `rows.longest` - 1. Tokens beyond the last row become zero.
    """
    heads, tokens, span = positions.shape
    width = projected.shape[1] // 3
    attended = projected.new_zeros(tokens, width)
    head_width = width // heads
    start(
        _attention,
        (triton.cdiv(rows.longest, tile.rows), rows.count * heads),
        projected,
        positions,
        rows.offsets,
        attended,
        tokens,
        span,
        rows.longest,
        HEADS=heads,
        HEAD_WIDTH=head_width,
        BLOCK_HEAD=max(_SMALLEST_PRODUCT, triton.next_power_of_2(head_width)),
        QUERIES=tile.rows,
        KEYS=tile.columns,
        LOG2_E=_LOG2_E,
        FLOOR=_FLOOR,
        num_warps=tile.warps,
        num_stages=tile.stages,
    )
    return attended


def reference(
    projected: Tensor,
    positions: Tensor,
    rows: Rows,
    *,
    tile: Tile | None = None,  # noqa: ARG001
) -> Tensor:
    """As `launch`, in plain PyTorch, row by row."""
    heads, tokens, _ = positions.shape
    head_width = projected.shape[1] // (3 * heads)
    split = projected.view(tokens, 3, heads, head_width).permute(1, 2, 0, 3)
    attended = projected.new_zeros(heads, tokens, head_width)
    offsets = rows.offsets.tolist()
    for first, end in pairwise(offsets):
        if first == end:
            continue
        query, key, value = (part[:, first:end].float() for part in split)
        place = torch.arange(end - first, device=projected.device)
        column = rows.longest - 1 - place[:, None] + place[None, :]
        skewed = positions[:, first:end].float().gather(2, column.expand(heads, -1, -1))
        shares = torch.softmax(query @ key.transpose(1, 2) + skewed, dim=2)
        attended[:, first:end] = (shares @ value).to(projected.dtype)
    return attended.transpose(0, 1).reshape(tokens, heads * head_width)


@triton.jit(do_not_specialize=["tokens", "span", "longest"])
def _attention(
    PROJECTED,
    POSITIONS,
    OFFSETS,
    ATTENDED,
    tokens,
    span,
    longest,
    HEADS: tl.constexpr,
    HEAD_WIDTH: tl.constexpr,
    BLOCK_HEAD: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
    LOG2_E: tl.constexpr,
    FLOOR: tl.constexpr,
):
    row = tl.program_id(1) // HEADS
    head = tl.program_id(1) % HEADS
    first = tl.load(OFFSETS + row)
    length = tl.load(OFFSETS + row + 1) - first
    if tl.program_id(0) * QUERIES >= length:
        return
    width: tl.constexpr = HEADS * HEAD_WIDTH
    t = tl.program_id(0) * QUERIES + tl.arange(0, QUERIES)
    s = tl.arange(0, KEYS)
    place = tl.arange(0, BLOCK_HEAD)
    inside = place < HEAD_WIDTH
    live = t < length
    base = PROJECTED + first.to(tl.int64) * (3 * width) + head * HEAD_WIDTH
    query = tl.load(
        base + t[:, None] * (3 * width) + place[None, :],
        mask=live[:, None] & inside[None, :],
        other=0.0,
    )
    by_position = POSITIONS + (head * tokens.to(tl.int64) + first + t[:, None]) * span
    by_position += longest - 1 - t[:, None]
    highest = tl.full((QUERIES,), FLOOR, tl.float32)
    total = tl.zeros((QUERIES,), tl.float32)
    attended = tl.zeros((QUERIES, BLOCK_HEAD), tl.float32)
    for start_of_tile in range(0, length, KEYS):
        key_at = start_of_tile + s
        valid = key_at < length
        key = tl.load(
            base + width + key_at[None, :] * (3 * width) + place[:, None],
            mask=valid[None, :] & inside[:, None],
            other=0.0,
        )
        scores = tl.dot(query, key, input_precision="ieee")
        scores += tl.load(
            by_position + key_at[None, :], mask=valid[None, :] & live[:, None], other=0.0
        ).to(tl.float32)
        scores = tl.where(valid[None, :], scores * LOG2_E, FLOOR)
        higher = tl.maximum(highest, tl.max(scores, 1))
        shares = tl.exp2(scores - higher[:, None])
        faded = tl.exp2(highest - higher)
        total = total * faded + tl.sum(shares, 1)
        value = tl.load(
            base + 2 * width + key_at[:, None] * (3 * width) + place[None, :],
            mask=valid[:, None] & inside[None, :],
            other=0.0,
        )
        attended = attended * faded[:, None]
        attended = tl.dot(shares.to(value.dtype), value, attended, input_precision="ieee")
        highest = higher
    attended = attended / total[:, None]
    target = ATTENDED + (first + t).to(tl.int64)[:, None] * width + head * HEAD_WIDTH
    tl.store(
        target + place[None, :],
        attended.to(ATTENDED.dtype.element_ty),
        mask=live[:, None] & inside[None, :],
    )
