"""Depthwise convolution over the tokens of each row, followed by SiLU.

Every tap is a separate load that hits the cache: a window of values carried from one iteration to
the next was compiled incorrectly on a GPU.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional

from parakeet_worker.engine.native.kernels.launcher import launch_kernel
from parakeet_worker.engine.native.kernels.tiles import Tile
from parakeet_worker.engine.native.rows import Rows


def launch(states: Tensor, weight: Tensor, bias: Tensor, rows: Rows, *, tile: Tile) -> Tensor:
    """(N, C) states, (taps, C) weight, (C,) bias -> (N, C); each row is zero-padded separately."""
    tokens, width = states.shape
    output = torch.empty_like(states)
    columns = min(tile.columns, triton.next_power_of_2(width))
    launch_kernel(
        _depthwise,
        (triton.cdiv(tokens, tile.rows), triton.cdiv(width, columns)),
        states,
        weight,
        bias,
        rows.offsets,
        rows.row_of,
        output,
        tokens,
        WIDTH=width,
        TAPS=weight.shape[0],
        BLOCK_ROWS=tile.rows,
        BLOCK_COLUMNS=columns,
        num_warps=tile.warps,
    )
    return output


def reference(
    states: Tensor,
    weight: Tensor,
    bias: Tensor,
    rows: Rows,
    *,
    tile: Tile | None = None,  # noqa: ARG001
) -> Tensor:
    """Same as `launch`, in plain PyTorch."""
    taps, width = weight.shape
    token = torch.arange(rows.tokens, device=states.device)
    row = rows.row_of.clamp(min=0).long()
    first, end = rows.offsets[row], torch.where(rows.row_of < 0, 0, rows.offsets[row + 1])
    total = bias.float().expand(rows.tokens, width)
    for tap in range(taps):
        source = token + tap - taps // 2
        valid = (source >= first) & (source < end)
        values = states[source.clamp(0, max(0, rows.tokens - 1))].float()
        total = total + torch.where(valid.unsqueeze(1), values, 0.0) * weight[tap].float()
    return functional.silu(total).to(states.dtype)


@triton.jit(do_not_specialize=["tokens"])
def _depthwise(
    states_ptr,
    weight_ptr,
    bias_ptr,
    offsets_ptr,
    row_of_ptr,
    output_ptr,
    tokens,
    WIDTH: tl.constexpr,
    TAPS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
):
    token = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    column = tl.program_id(1) * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)
    in_width = column < WIDTH
    row = tl.load(row_of_ptr + token, mask=token < tokens, other=-1)
    first = tl.load(offsets_ptr + row, mask=row >= 0, other=0)
    end = tl.load(offsets_ptr + row + 1, mask=row >= 0, other=0)
    bias = tl.load(bias_ptr + column, mask=in_width, other=0.0).to(tl.float32)
    total = tl.zeros((BLOCK_ROWS, BLOCK_COLUMNS), tl.float32) + bias[None, :]
    for tap in tl.static_range(TAPS):
        source = token + (tap - TAPS // 2)
        valid = (source >= first) & (source < end)
        values = tl.load(
            states_ptr + source.to(tl.int64)[:, None] * WIDTH + column[None, :],
            mask=valid[:, None] & in_width[None, :],
            other=0.0,
        ).to(tl.float32)
        weight = tl.load(weight_ptr + tap * WIDTH + column, mask=in_width, other=0.0)
        total += values * weight.to(tl.float32)[None, :]
    output = total * tl.sigmoid(total)
    tl.store(
        output_ptr + token.to(tl.int64)[:, None] * WIDTH + column[None, :],
        output.to(output_ptr.dtype.element_ty),
        mask=(token < tokens)[:, None] & in_width[None, :],
    )
