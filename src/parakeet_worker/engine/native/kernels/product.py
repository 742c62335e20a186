"""Matrix products whose every row is computed in one order, however many rows there are.

cuBLAS chooses a kernel by the number of rows, and with it the order of its sums: a chunk then has
other states alone than in a batch. Here the tile shape and the order over the inner dimension are
fixed, so that a row depends on itself alone, bit for bit.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional

from parakeet_worker.engine.native.kernels.launcher import launch as start
from parakeet_worker.engine.native.kernels.tiles import Tile

# Programs that share columns of the weight run close together, for the cache's sake.
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

    With `silu` of that. Sums are float32; of float32 inputs no bit is dropped. The matrices of a
    batch of weights may lie apart; all else is contiguous.
    """
    tile = tile.of_type(states.dtype)
    assert weight.stride()[-2:] == (weight.shape[-1], 1)
    batch = states.shape[0] if states.dim() == 3 else 1
    rows, depth = states.shape[-2:]
    columns = weight.shape[-2]
    result = states.new_empty(*states.shape[:-1], columns)
    start(
        _product,
        (triton.cdiv(rows, tile.rows) * triton.cdiv(columns, tile.columns), batch),
        states,
        weight,
        states if bias is None else bias,
        result,
        rows,
        columns,
        weight.stride(0) if batch > 1 else 0,
        DEPTH=depth,
        BIASED=bias is not None,
        SILU=silu,
        ROWS=tile.rows,
        COLUMNS=tile.columns,
        INNER=tile.depth,
        GROUP=_GROUP_ROWS,
        num_warps=tile.warps,
        num_stages=tile.stages,
    )
    return result


def library(
    states: Tensor, weight: Tensor, bias: Tensor | None = None, *, silu: bool = False
) -> Tensor:
    """The same by cuBLAS: the fastest, but not in one order for any number of rows."""
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
    """As `launch`, in plain PyTorch."""
    product = torch.matmul(states.float(), weight.float().transpose(-1, -2))
    if bias is not None:
        product = product + bias.float()
    return (functional.silu(product) if silu else product).to(states.dtype)


@triton.jit(do_not_specialize=["rows", "columns", "apart"])
def _product(
    STATES,
    WEIGHT,
    BIAS,
    RESULT,
    rows,
    columns,
    apart,
    DEPTH: tl.constexpr,
    BIASED: tl.constexpr,
    SILU: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    INNER: tl.constexpr,
    GROUP: tl.constexpr,
):
    batch = tl.program_id(1).to(tl.int64)
    tiles_down = tl.cdiv(rows, ROWS)
    tiles_across = tl.cdiv(columns, COLUMNS)
    in_group = GROUP * tiles_across
    first_down = tl.program_id(0) // in_group * GROUP
    height = tl.minimum(tiles_down - first_down, GROUP)
    down = first_down + tl.program_id(0) % in_group % height
    across = tl.program_id(0) % in_group // height
    row = down * ROWS + tl.arange(0, ROWS)
    column = across * COLUMNS + tl.arange(0, COLUMNS)
    k = tl.arange(0, INNER)
    # Rows and columns beyond the end are read as the last: they are not stored.
    left = STATES + (batch * rows + tl.minimum(row, rows - 1))[:, None] * DEPTH + k[None, :]
    right = WEIGHT + batch * apart + tl.minimum(column, columns - 1)[None, :] * DEPTH
    right += k[:, None]
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for first in range(0, DEPTH, INNER):
        if DEPTH % INNER == 0:
            a = tl.load(left + first)
            b = tl.load(right + first)
        else:
            inside = first + k < DEPTH
            a = tl.load(left + first, mask=inside[None, :], other=0.0)
            b = tl.load(right + first, mask=inside[:, None], other=0.0)
        total = tl.dot(a, b, total, input_precision="ieee")
    if BIASED:
        bias = tl.load(BIAS + tl.minimum(column, columns - 1)).to(tl.float32)
        total += bias[None, :]
    if SILU:
        total = total * tl.sigmoid(total)
    target = RESULT + (batch * rows + row)[:, None] * columns + column[None, :]
    valid = (row < rows)[:, None] & (column < columns)[None, :]
    tl.store(target, total.to(RESULT.dtype.element_ty), mask=valid)
