"""Depthwise convolution over the tokens of each row, and SiLU.

Every tap is a load of its own, which the cache serves: a window of values moved from one
iteration to the next was compiled wrongly on a GPU.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional

from parakeet_worker.engine.native.kernels.launcher import launch as start
from parakeet_worker.engine.native.kernels.tiles import Tile
from parakeet_worker.engine.native.rows import Rows


def launch(states: Tensor, weight: Tensor, bias: Tensor, rows: Rows, *, tile: Tile) -> Tensor:
    """(N, C) states, (taps, C) weight and (C,) bias -> (N, C); rows do not see each other."""
    tokens, width = states.shape
    mixed = torch.empty_like(states)
    columns = min(tile.columns, triton.next_power_of_2(width))
    start(
        _depthwise,
        (triton.cdiv(tokens, tile.rows), triton.cdiv(width, columns)),
        states,
        weight,
        bias,
        rows.offsets,
        rows.row_of,
        mixed,
        tokens,
        WIDTH=width,
        TAPS=weight.shape[0],
        ROWS=tile.rows,
        COLUMNS=columns,
        num_warps=tile.warps,
    )
    return mixed


def reference(
    states: Tensor,
    weight: Tensor,
    bias: Tensor,
    rows: Rows,
    *,
    tile: Tile | None = None,  # noqa: ARG001
) -> Tensor:
    """As `launch`, in plain PyTorch."""
    taps, width = weight.shape
    token = torch.arange(rows.tokens, device=states.device)
    row = rows.row_of.clamp(min=0).long()
    first, end = rows.offsets[row], torch.where(rows.row_of < 0, 0, rows.offsets[row + 1])
    total = bias.float().expand(rows.tokens, width)
    for tap in range(taps):
        place = token + tap - taps // 2
        valid = (place >= first) & (place < end)
        seen = states[place.clamp(0, max(0, rows.tokens - 1))].float()
        total = total + torch.where(valid.unsqueeze(1), seen, 0.0) * weight[tap].float()
    return functional.silu(total).to(states.dtype)


@triton.jit(do_not_specialize=["tokens"])
def _depthwise(
    STATES,
    WEIGHT,
    BIAS,
    OFFSETS,
    ROW_OF,
    MIXED,
    tokens,
    WIDTH: tl.constexpr,
    TAPS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    token = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = column < WIDTH
    row = tl.load(ROW_OF + token, mask=token < tokens, other=-1)
    first = tl.load(OFFSETS + row, mask=row >= 0, other=0)
    end = tl.load(OFFSETS + row + 1, mask=row >= 0, other=0)
    bias = tl.load(BIAS + column, mask=inside, other=0.0).to(tl.float32)
    total = tl.zeros((ROWS, COLUMNS), tl.float32) + bias[None, :]
    for tap in tl.static_range(TAPS):
        place = token + (tap - TAPS // 2)
        valid = (place >= first) & (place < end)
        seen = tl.load(
            STATES + place.to(tl.int64)[:, None] * WIDTH + column[None, :],
            mask=valid[:, None] & inside[None, :],
            other=0.0,
        ).to(tl.float32)
        weight = tl.load(WEIGHT + tap * WIDTH + column, mask=inside, other=0.0).to(tl.float32)
        total += seen * weight[None, :]
    mixed = total * tl.sigmoid(total)
    tl.store(
        MIXED + token.to(tl.int64)[:, None] * WIDTH + column[None, :],
        mixed.to(MIXED.dtype.element_ty),
        mask=(token < tokens)[:, None] & inside[None, :],
    )
