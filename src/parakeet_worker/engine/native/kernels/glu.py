"""Gated linear unit: the first half of each row times the sigmoid of the second half."""

import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional

from parakeet_worker.engine.native.kernels.launcher import launch_kernel
from parakeet_worker.engine.native.kernels.tiles import Tile


def launch(states: Tensor, *, tile: Tile) -> Tensor:
    """(N, 2 C) -> (N, C)."""
    rows, width = states.shape[0], states.shape[1] // 2
    output = states.new_empty(rows, width)
    launch_kernel(
        _glu,
        (triton.cdiv(rows, tile.rows),),
        states,
        output,
        rows,
        WIDTH=width,
        BLOCK_WIDTH=triton.next_power_of_2(width),
        BLOCK_ROWS=tile.rows,
        num_warps=tile.warps,
    )
    return output


def reference(states: Tensor, *, tile: Tile | None = None) -> Tensor:  # noqa: ARG001
    """Same as `launch`, in plain PyTorch."""
    return functional.glu(states.float(), dim=1).to(states.dtype)


@triton.jit(do_not_specialize=["rows"])
def _glu(
    states_ptr,
    output_ptr,
    rows,
    WIDTH: tl.constexpr,
    BLOCK_WIDTH: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
):
    row = (tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)).to(tl.int64)[:, None]
    column = tl.arange(0, BLOCK_WIDTH)[None, :]
    mask = (row < rows) & (column < WIDTH)
    value_ptrs = states_ptr + row * 2 * WIDTH + column
    value = tl.load(value_ptrs, mask=mask, other=0.0).to(tl.float32)
    gate = tl.load(value_ptrs + WIDTH, mask=mask, other=0.0).to(tl.float32)
    output = value * tl.sigmoid(gate)
    output_ptrs = output_ptr + row * WIDTH + column
    tl.store(output_ptrs, output.to(output_ptr.dtype.element_ty), mask=mask)
