"""Queries plus the position bias, laid out by head for one product over all rows."""

import triton
import triton.language as tl
from torch import Tensor

from parakeet_worker.engine.native.kernels.launcher import launch_kernel
from parakeet_worker.engine.native.kernels.tiles import Tile


def launch(qkv: Tensor, bias: Tensor, heads: int, *, tile: Tile) -> Tensor:
    """(N, 3 C) queries, keys and values, (C,) bias -> (heads, N, C / heads)."""
    tokens, width = qkv.shape[0], qkv.shape[1] // 3
    output = qkv.new_empty(heads, tokens, width // heads)
    launch_kernel(
        _position_query,
        (triton.cdiv(tokens, tile.rows),),
        qkv,
        bias,
        output,
        tokens,
        WIDTH=width,
        HEAD_WIDTH=width // heads,
        BLOCK_WIDTH=triton.next_power_of_2(width),
        BLOCK_ROWS=tile.rows,
        num_warps=tile.warps,
    )
    return output


def reference(
    qkv: Tensor,
    bias: Tensor,
    heads: int,
    *,
    tile: Tile | None = None,  # noqa: ARG001
) -> Tensor:
    """Same as `launch`, in plain PyTorch."""
    tokens, width = qkv.shape[0], qkv.shape[1] // 3
    biased = (qkv[:, :width].float() + bias.float()).to(qkv.dtype)
    return biased.view(tokens, heads, width // heads).transpose(0, 1).contiguous()


@triton.jit(do_not_specialize=["tokens"])
def _position_query(
    qkv_ptr,
    bias_ptr,
    output_ptr,
    tokens,
    WIDTH: tl.constexpr,
    HEAD_WIDTH: tl.constexpr,
    BLOCK_WIDTH: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
):
    token = (tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)).to(tl.int64)
    column = tl.arange(0, BLOCK_WIDTH)
    mask = (token < tokens)[:, None] & (column < WIDTH)[None, :]
    query = tl.load(qkv_ptr + token[:, None] * 3 * WIDTH + column[None, :], mask=mask, other=0.0)
    query = query.to(tl.float32)
    query += tl.load(bias_ptr + column, mask=column < WIDTH, other=0.0).to(tl.float32)[None, :]
    head, dim = column // HEAD_WIDTH, column % HEAD_WIDTH
    offset = (head[None, :] * tokens.to(tl.int64) + token[:, None]) * HEAD_WIDTH + dim[None, :]
    tl.store(output_ptr + offset, query.to(output_ptr.dtype.element_ty), mask=mask)
