"""Queries with the bias of positions, laid out by head for one product over all rows."""

import triton
import triton.language as tl
from torch import Tensor

from parakeet_worker.engine.native.kernels.launcher import launch as start
from parakeet_worker.engine.native.kernels.tiles import Tile


def launch(projected: Tensor, bias: Tensor, heads: int, *, tile: Tile) -> Tensor:
    """(N, 3 C) queries, keys and values, (C,) bias -> (heads, N, C / heads)."""
    tokens, width = projected.shape[0], projected.shape[1] // 3
    queries = projected.new_empty(heads, tokens, width // heads)
    start(
        _position_query,
        (triton.cdiv(tokens, tile.rows),),
        projected,
        bias,
        queries,
        tokens,
        WIDTH=width,
        HEAD_WIDTH=width // heads,
        BLOCK=triton.next_power_of_2(width),
        ROWS=tile.rows,
        num_warps=tile.warps,
    )
    return queries


def reference(
    projected: Tensor,
    bias: Tensor,
    heads: int,
    *,
    tile: Tile | None = None,  # noqa: ARG001
) -> Tensor:
    """As `launch`, in plain PyTorch."""
    tokens, width = projected.shape[0], projected.shape[1] // 3
    biased = (projected[:, :width].float() + bias.float()).to(projected.dtype)
    return biased.view(tokens, heads, width // heads).transpose(0, 1).contiguous()


@triton.jit(do_not_specialize=["tokens"])
def _position_query(
    PROJECTED,
    BIAS,
    QUERIES,
    tokens,
    WIDTH: tl.constexpr,
    HEAD_WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
):
    token = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    column = tl.arange(0, BLOCK)
    valid = (token < tokens)[:, None] & (column < WIDTH)[None, :]
    query = tl.load(
        PROJECTED + token[:, None] * 3 * WIDTH + column[None, :], mask=valid, other=0.0
    ).to(tl.float32)
    query += tl.load(BIAS + column, mask=column < WIDTH, other=0.0).to(tl.float32)[None, :]
    head, place = column // HEAD_WIDTH, column % HEAD_WIDTH
    target = (head[None, :] * tokens.to(tl.int64) + token[:, None]) * HEAD_WIDTH + place[None, :]
    tl.store(QUERIES + target, query.to(QUERIES.dtype.element_ty), mask=valid)
