"""Hidden layer of the joint network: encoder frame plus predictor projection, activated."""

from collections.abc import Callable

import torch
import triton
import triton.language as tl
from torch import Tensor

from parakeet_worker.engine.native.kernels.launcher import launch_kernel
from parakeet_worker.engine.native.kernels.search_rows import SearchRows
from parakeet_worker.engine.native.kernels.tiles import Tile

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
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
    output: Tensor,
    *,
    activation: str,
    tile: Tile,
) -> None:
    """Write the (R, J) activated sum of both projections at every row's frame to `output`.

    `encoded` is (N, J), the projected frames of all rows, packed; `predicted` is (R, H) float32,
    the hidden state of the last LSTM layer; `weight` is (H, J) and `bias` (J,) float32. `encoded`,
    `weight` and `output` are float16 or float32. `activation` is relu, sigmoid or tanh. The output
    of finished rows is undefined.
    """
    tile = tile.for_dtype(weight.dtype)
    (count, depth), width = predicted.shape, output.shape[1]
    launch_kernel(
        _joint_hidden,
        (triton.cdiv(width, tile.columns), triton.cdiv(count, tile.rows)),
        rows.offsets,
        rows.lengths,
        rows.frames,
        encoded,
        predicted,
        weight,
        bias,
        output,
        count,
        DEPTH=depth,
        WIDTH=width,
        ACTIVATION=activation,
        BLOCK_ROWS=tile.rows,
        BLOCK_COLUMNS=tile.columns,
        BLOCK_DEPTH=tile.depth,
        num_warps=tile.warps,
        num_stages=tile.stages,
    )


def reference(
    rows: SearchRows,
    encoded: Tensor,
    predicted: Tensor,
    weight: Tensor,
    bias: Tensor,
    output: Tensor,
    *,
    activation: str,
    tile: Tile | None = None,  # noqa: ARG001
) -> None:
    """Same as `launch`, in plain PyTorch."""
    active = rows.frames < rows.lengths
    index = torch.where(active, rows.offsets + rows.frames, 0)
    frame = torch.where(active.unsqueeze(1), encoded[index].float(), 0.0)
    projected = predicted.to(weight.dtype).float() @ weight.float() + bias
    output.copy_(_ACTIVATIONS[activation](projected + frame))


@triton.jit(do_not_specialize=["rows"])
def _joint_hidden(
    offsets_ptr,
    lengths_ptr,
    frames_ptr,
    encoded_ptr,
    predicted_ptr,
    weight_ptr,
    bias_ptr,
    output_ptr,
    rows,
    DEPTH: tl.constexpr,
    WIDTH: tl.constexpr,
    ACTIVATION: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
    BLOCK_DEPTH: tl.constexpr,
):
    row = tl.program_id(1) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    column = tl.program_id(0) * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)
    in_rows = row < rows
    in_width = column < WIDTH
    frame = tl.load(frames_ptr + row, mask=in_rows, other=0)
    active = frame < tl.load(lengths_ptr + row, mask=in_rows, other=0)
    total = tl.zeros((BLOCK_ROWS, BLOCK_COLUMNS), tl.float32)
    total += tl.load(bias_ptr + column, mask=in_width, other=0.0)[None, :]
    k_range = tl.arange(0, BLOCK_DEPTH)
    if tl.max(active.to(tl.int32), 0) != 0:
        for first in range(0, DEPTH, BLOCK_DEPTH):
            k = first + k_range
            states = tl.load(
                predicted_ptr + row[:, None] * DEPTH + k[None, :],
                mask=in_rows[:, None] & (k < DEPTH)[None, :],
                other=0.0,
            ).to(weight_ptr.dtype.element_ty)
            weight = tl.load(
                weight_ptr + k[:, None] * WIDTH + column[None, :],
                mask=(k < DEPTH)[:, None] & in_width[None, :],
                other=0.0,
            )
            total = tl.dot(states, weight, total, input_precision="ieee")
    index = (tl.load(offsets_ptr + row, mask=active, other=0) + frame).to(tl.int64)
    total += tl.load(
        encoded_ptr + index[:, None] * WIDTH + column[None, :],
        mask=active[:, None] & in_width[None, :],
        other=0.0,
    ).to(tl.float32)
    if ACTIVATION == "relu":
        # Not a maximum with zero, which would replace NaN by zero.
        total = tl.where(total < 0.0, 0.0, total)
    elif ACTIVATION == "sigmoid":
        total = tl.sigmoid(total)
    else:
        total = 2.0 * tl.sigmoid(2.0 * total) - 1.0
    tl.store(
        output_ptr + row[:, None] * WIDTH + column[None, :],
        total.to(output_ptr.dtype.element_ty),
        mask=in_rows[:, None] & in_width[None, :],
    )
