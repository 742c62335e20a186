"""Matrix products whose rows are computed in one summation order for any number of rows.

cuBLAS selects a kernel by the number of rows, and with it the order of its sums: the states of a
chunk then depend on the batch. Here the tile shape and the order over the inner dimension are
fixed, so that a row depends on itself only, bit for bit.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional

from parakeet_worker.engine.native.kernels.launcher import launch_kernel
from parakeet_worker.engine.native.kernels.tiles import Tile

# Programs that share columns of the weight run in adjacent order, for L2 cache hits.
_GROUP_ROWS = 8


def launch(
    states: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    silu: bool = False,
    tile: Tile,
) -> Tensor:
    """(N, K) or (B, N, K) states, (M, K) or (B, M, K) weight, (M,) bias -> (N, M) or (B, N, M).

    `silu` applies SiLU to the result. Sums are float32; of float32 inputs no bit is dropped. The
    matrices of a batched weight may have any stride; all other tensors are contiguous.
    """
    tile = tile.for_dtype(states.dtype)
    assert weight.stride()[-2:] == (weight.shape[-1], 1)
    batch = states.shape[0] if states.dim() == 3 else 1
    rows, depth = states.shape[-2:]
    columns = weight.shape[-2]
    output = states.new_empty(*states.shape[:-1], columns)
    launch_kernel(
        _product,
        (triton.cdiv(rows, tile.rows) * triton.cdiv(columns, tile.columns), batch),
        states,
        weight,
        states if bias is None else bias,
        output,
        rows,
        columns,
        weight.stride(0) if batch > 1 else 0,
        DEPTH=depth,
        HAS_BIAS=bias is not None,
        SILU=silu,
        BLOCK_ROWS=tile.rows,
        BLOCK_COLUMNS=tile.columns,
        BLOCK_DEPTH=tile.depth,
        GROUP_ROWS=_GROUP_ROWS,
        num_warps=tile.warps,
        num_stages=tile.stages,
    )
    return output


def library(
    states: Tensor, weight: Tensor, bias: Tensor | None = None, *, silu: bool = False
) -> Tensor:
    """Same product by cuBLAS: fastest, but its summation order depends on the number of rows."""
    if states.dim() == 3:
        result = torch.matmul(states, weight.transpose(1, 2))
    else:
        result = functional.linear(states, weight, bias)
    return functional.silu(result, inplace=True) if silu else result


def reference(
    states: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    silu: bool = False,
    tile: Tile | None = None,  # noqa: ARG001
) -> Tensor:
    """Same as `launch`, in plain PyTorch."""
    product = torch.matmul(states.float(), weight.float().transpose(-1, -2))
    if bias is not None:
        product = product + bias.float()
    return (functional.silu(product) if silu else product).to(states.dtype)


@triton.jit(do_not_specialize=["rows", "columns", "weight_stride"])
def _product(
    states_ptr,
    weight_ptr,
    bias_ptr,
    output_ptr,
    rows,
    columns,
    weight_stride,
    DEPTH: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    SILU: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
    BLOCK_DEPTH: tl.constexpr,
    GROUP_ROWS: tl.constexpr,
):
    batch = tl.program_id(1).to(tl.int64)
    row_blocks = tl.cdiv(rows, BLOCK_ROWS)
    column_blocks = tl.cdiv(columns, BLOCK_COLUMNS)
    blocks_in_group = GROUP_ROWS * column_blocks
    first_row_block = tl.program_id(0) // blocks_in_group * GROUP_ROWS
    group_rows = tl.minimum(row_blocks - first_row_block, GROUP_ROWS)
    row_block = first_row_block + tl.program_id(0) % blocks_in_group % group_rows
    column_block = tl.program_id(0) % blocks_in_group // group_rows
    row = row_block * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    column = column_block * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)
    k = tl.arange(0, BLOCK_DEPTH)
    # Rows and columns beyond the end read the last one; they are not stored.
    states_row = batch * rows + tl.minimum(row, rows - 1)
    states_ptrs = states_ptr + states_row[:, None] * DEPTH + k[None, :]
    weight_ptrs = weight_ptr + batch * weight_stride
    weight_ptrs = weight_ptrs + tl.minimum(column, columns - 1)[None, :] * DEPTH
    weight_ptrs += k[:, None]
    total = tl.zeros((BLOCK_ROWS, BLOCK_COLUMNS), tl.float32)
    for first in range(0, DEPTH, BLOCK_DEPTH):
        if DEPTH % BLOCK_DEPTH == 0:
            a = tl.load(states_ptrs + first)
            b = tl.load(weight_ptrs + first)
        else:
            in_depth = first + k < DEPTH
            a = tl.load(states_ptrs + first, mask=in_depth[None, :], other=0.0)
            b = tl.load(weight_ptrs + first, mask=in_depth[:, None], other=0.0)
        total = tl.dot(a, b, total, input_precision="ieee")
    if HAS_BIAS:
        bias = tl.load(bias_ptr + tl.minimum(column, columns - 1)).to(tl.float32)
        total += bias[None, :]
    if SILU:
        total = total * tl.sigmoid(total)
    output_ptrs = output_ptr + (batch * rows + row)[:, None] * columns + column[None, :]
    mask = (row < rows)[:, None] & (column < columns)[None, :]
    tl.store(output_ptrs, total.to(output_ptr.dtype.element_ty), mask=mask)
