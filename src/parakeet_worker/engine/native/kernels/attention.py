"""Attention within each row, with relative position scores that are read skewed in place.

Online softmax over tiles of keys: Dao et al., "FlashAttention", 2022. The position score of query
t and key s is in column longest - 1 - t + s of the product of queries and the position table
(Dai et al., "Transformer-XL", 2019, appendix B), so that no shifted copy is made.
"""

from itertools import pairwise

import torch
import triton
import triton.language as tl
from torch import Tensor

from parakeet_worker.engine.native.kernels.launcher import launch_kernel
from parakeet_worker.engine.native.kernels.tiles import Tile
from parakeet_worker.engine.native.rows import Rows

_LOG2_E = 1.4426950408889634
# Below any score, and finite: a row with a fully masked tile must not become NaN.
_MASKED_SCORE = -1e30
_MIN_DOT_SIZE = 16


def launch(qkv: Tensor, position_scores: Tensor, rows: Rows, *, tile: Tile) -> Tensor:
    """(N, 3 C) scaled queries, keys and values, (heads, N, S) position scores -> (N, C).

    S is at least 2 `rows.longest` - 1. Tokens beyond the last row become zero.
    """
    heads, tokens, columns = position_scores.shape
    width = qkv.shape[1] // 3
    output = qkv.new_zeros(tokens, width)
    head_width = width // heads
    launch_kernel(
        _attention,
        (triton.cdiv(rows.longest, tile.rows), rows.count * heads),
        qkv,
        position_scores,
        rows.offsets,
        output,
        tokens,
        columns,
        rows.longest,
        HEADS=heads,
        HEAD_WIDTH=head_width,
        BLOCK_HEAD=max(_MIN_DOT_SIZE, triton.next_power_of_2(head_width)),
        BLOCK_QUERIES=tile.rows,
        BLOCK_KEYS=tile.columns,
        LOG2_E=_LOG2_E,
        MASKED_SCORE=_MASKED_SCORE,
        num_warps=tile.warps,
        num_stages=tile.stages,
    )
    return output


def reference(
    qkv: Tensor,
    position_scores: Tensor,
    rows: Rows,
    *,
    tile: Tile | None = None,  # noqa: ARG001
) -> Tensor:
    """Same as `launch`, in plain PyTorch, row by row."""
    heads, tokens, _ = position_scores.shape
    head_width = qkv.shape[1] // (3 * heads)
    split = qkv.view(tokens, 3, heads, head_width).permute(1, 2, 0, 3)
    output = qkv.new_zeros(heads, tokens, head_width)
    offsets = rows.offsets.tolist()
    for first, end in pairwise(offsets):
        if first == end:
            continue
        query, key, value = (part[:, first:end].float() for part in split)
        index = torch.arange(end - first, device=qkv.device)
        column = rows.longest - 1 - index[:, None] + index[None, :]
        skewed = position_scores[:, first:end].float().gather(2, column.expand(heads, -1, -1))
        weights = torch.softmax(query @ key.transpose(1, 2) + skewed, dim=2)
        output[:, first:end] = (weights @ value).to(qkv.dtype)
    return output.transpose(0, 1).reshape(tokens, heads * head_width)


@triton.jit(do_not_specialize=["tokens", "columns", "longest"])
def _attention(
    qkv_ptr,
    position_scores_ptr,
    offsets_ptr,
    output_ptr,
    tokens,
    columns,
    longest,
    HEADS: tl.constexpr,
    HEAD_WIDTH: tl.constexpr,
    BLOCK_HEAD: tl.constexpr,
    BLOCK_QUERIES: tl.constexpr,
    BLOCK_KEYS: tl.constexpr,
    LOG2_E: tl.constexpr,
    MASKED_SCORE: tl.constexpr,
):
    row = tl.program_id(1) // HEADS
    head = tl.program_id(1) % HEADS
    first = tl.load(offsets_ptr + row)
    length = tl.load(offsets_ptr + row + 1) - first
    if tl.program_id(0) * BLOCK_QUERIES >= length:
        return
    width: tl.constexpr = HEADS * HEAD_WIDTH
    t = tl.program_id(0) * BLOCK_QUERIES + tl.arange(0, BLOCK_QUERIES)
    s = tl.arange(0, BLOCK_KEYS)
    dim = tl.arange(0, BLOCK_HEAD)
    in_head = dim < HEAD_WIDTH
    valid_query = t < length
    base_ptr = qkv_ptr + first.to(tl.int64) * (3 * width) + head * HEAD_WIDTH
    query = tl.load(
        base_ptr + t[:, None] * (3 * width) + dim[None, :],
        mask=valid_query[:, None] & in_head[None, :],
        other=0.0,
    )
    score_ptrs = position_scores_ptr + (head * tokens.to(tl.int64) + first + t[:, None]) * columns
    score_ptrs += longest - 1 - t[:, None]
    row_max = tl.full((BLOCK_QUERIES,), MASKED_SCORE, tl.float32)
    row_sum = tl.zeros((BLOCK_QUERIES,), tl.float32)
    accumulator = tl.zeros((BLOCK_QUERIES, BLOCK_HEAD), tl.float32)
    for first_key in range(0, length, BLOCK_KEYS):
        key_index = first_key + s
        valid_key = key_index < length
        key = tl.load(
            base_ptr + width + key_index[None, :] * (3 * width) + dim[:, None],
            mask=valid_key[None, :] & in_head[:, None],
            other=0.0,
        )
        scores = tl.dot(query, key, input_precision="ieee")
        scores += tl.load(
            score_ptrs + key_index[None, :],
            mask=valid_key[None, :] & valid_query[:, None],
            other=0.0,
        ).to(tl.float32)
        scores = tl.where(valid_key[None, :], scores * LOG2_E, MASKED_SCORE)
        new_max = tl.maximum(row_max, tl.max(scores, 1))
        weights = tl.exp2(scores - new_max[:, None])
        rescale = tl.exp2(row_max - new_max)
        row_sum = row_sum * rescale + tl.sum(weights, 1)
        value = tl.load(
            base_ptr + 2 * width + key_index[:, None] * (3 * width) + dim[None, :],
            mask=valid_key[:, None] & in_head[None, :],
            other=0.0,
        )
        accumulator = accumulator * rescale[:, None]
        accumulator = tl.dot(weights.to(value.dtype), value, accumulator, input_precision="ieee")
        row_max = new_max
    accumulator = accumulator / row_sum[:, None]
    output_ptrs = output_ptr + (first + t).to(tl.int64)[:, None] * width + head * HEAD_WIDTH
    tl.store(
        output_ptrs + dim[None, :],
        accumulator.to(output_ptr.dtype.element_ty),
        mask=valid_query[:, None] & in_head[None, :],
    )
