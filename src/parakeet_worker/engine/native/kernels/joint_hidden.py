"""The joint network's hidden layer: encoder frame plus predictor projection, activated."""

from collections.abc import Callable

import torch
import triton
import triton.language as tl
from torch import Tensor

from parakeet_worker.engine.native.kernels.launcher import launch as start
from parakeet_worker.engine.native.kernels.search_rows import SearchRows
from parakeet_worker.engine.native.kernels.tiles import Tile

_FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
}


def launch(
    rows: SearchRows,
    encoded: Tensor,
    predicted: Tensor,
    weight: Tensor,
    bias: Tensor,
    joined: Tensor,
    *,
    activation: str,
    tile: Tile,
) -> None:
    """Write the (R, J) activated sum of both projections at every row's frame to `joined`.

    `encoded` is (N, J), the projected frames of all rows, packed; `predicted` is (R, H) float32,
    the last LSTM layer's hidden state; `weight` is (H, J) and `bias` (J,) float32. `encoded`,
    `weight` and `joined` are float16 or float32. `activation` is relu, sigmoid or tanh. The lines
    of rows that have ended hold values without a meaning.
    """
    tile = tile.of_type(weight.dtype)
    (count, inner), width = predicted.shape, joined.shape[1]
    start(
        _joint_hidden,
        (triton.cdiv(width, tile.columns), triton.cdiv(count, tile.rows)),
        rows.offsets,
        rows.lengths,
        rows.frames,
        encoded,
        predicted,
        weight,
        bias,
        joined,
        count,
        INNER=inner,
        WIDTH=width,
        ACTIVATION=activation,
        ROWS=tile.rows,
        COLUMNS=tile.columns,
        DEPTH=tile.depth,
        num_warps=tile.warps,
        num_stages=tile.stages,
    )


def reference(
    rows: SearchRows,
    encoded: Tensor,
    predicted: Tensor,
    weight: Tensor,
    bias: Tensor,
    joined: Tensor,
    *,
    activation: str,
    tile: Tile | None = None,  # noqa: ARG001  # it decides nothing here
) -> None:
    """As `launch`, in plain PyTorch."""
    active = rows.frames < rows.lengths
    place = torch.where(active, rows.offsets + rows.frames, 0)
    here = torch.where(active.unsqueeze(1), encoded[place].float(), 0.0)
    projected = predicted.to(weight.dtype).float() @ weight.float() + bias
    joined.copy_(_FUNCTIONS[activation](projected + here))


@triton.jit(do_not_specialize=["rows"])
def _joint_hidden(
    OFFSETS,
    LENGTHS,
    FRAMES,
    ENCODED,
    PREDICTED,
    WEIGHT,
    BIAS,
    JOINED,
    rows,
    INNER: tl.constexpr,
    WIDTH: tl.constexpr,
    ACTIVATION: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
):
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    in_rows = row < rows
    in_columns = column < WIDTH
    frame = tl.load(FRAMES + row, mask=in_rows, other=0)
    active = frame < tl.load(LENGTHS + row, mask=in_rows, other=0)
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    total += tl.load(BIAS + column, mask=in_columns, other=0.0)[None, :]
    inner = tl.arange(0, DEPTH)
    if tl.max(active.to(tl.int32), 0) != 0:
        for first in range(0, INNER, DEPTH):
            k = first + inner
            states = tl.load(
                PREDICTED + row[:, None] * INNER + k[None, :],
                mask=in_rows[:, None] & (k < INNER)[None, :],
                other=0.0,
            ).to(WEIGHT.dtype.element_ty)
            weight = tl.load(
                WEIGHT + k[:, None] * WIDTH + column[None, :],
                mask=(k < INNER)[:, None] & in_columns[None, :],
                other=0.0,
            )
            total = tl.dot(states, weight, total, input_precision="ieee")
    token = (tl.load(OFFSETS + row, mask=active, other=0) + frame).to(tl.int64)
    total += tl.load(
        ENCODED + token[:, None] * WIDTH + column[None, :],
        mask=active[:, None] & in_columns[None, :],
        other=0.0,
    ).to(tl.float32)
    if ACTIVATION == "relu":
        # Not a maximum with zero: that would make a number of what is none.
        total = tl.where(total < 0.0, 0.0, total)
    elif ACTIVATION == "sigmoid":
        total = tl.sigmoid(total)
    else:
        total = 2.0 * tl.sigmoid(2.0 * total) - 1.0
    tl.store(
        JOINED + row[:, None] * WIDTH + column[None, :],
        total.to(JOINED.dtype.element_ty),
        mask=in_rows[:, None] & in_columns[None, :],
    )
