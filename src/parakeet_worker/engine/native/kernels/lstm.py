"""One step of one LSTM layer for the rows that emitted a token; other rows keep their state.

A program computes all four gates of `tile.columns` units, so that the new cell state stays in
registers. If none of its rows emitted, it reads no weights.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from parakeet_worker.engine.native.kernels.launcher import launch_kernel
from parakeet_worker.engine.native.kernels.tiles import Tile


@dataclass(frozen=True, slots=True, eq=False)
class Layer:
    """Weights of a layer of H units.

    Columns are in the order input gate, forget gate, candidate, output gate.
    """

    input_weight: Tensor
    """(H, 4 H) float16 or float32; in the first layer a (V + 1, 4 H) float32 table of each token's
    embedding times the weight, plus the bias."""
    bias: Tensor
    """(4 H,) float32, the sum of both biases; not read in the first layer."""
    hidden_weight: Tensor
    """(H, 4 H) float16 or float32."""


def launch(
    layer: Layer,
    inputs: Tensor,
    emitted: Tensor,
    hidden: Tensor,
    cell: Tensor,
    next_hidden: Tensor,
    *,
    tile: Tile,
) -> None:
    """Write the next hidden state of every row to `next_hidden`; update `cell` in place.

    `inputs` are (R,) int32 tokens for the first layer, (R, H) float32 hidden states of the previous
    layer for the others. `emitted` is (R,) int32; `hidden`, `cell` and `next_hidden` are (R, H)
    float32.
    """
    tile = tile.for_dtype(layer.hidden_weight.dtype)
    rows, width = hidden.shape
    launch_kernel(
        _lstm,
        (triton.cdiv(width, tile.columns), triton.cdiv(rows, tile.rows)),
        inputs,
        emitted,
        hidden,
        cell,
        layer.input_weight,
        layer.bias,
        layer.hidden_weight,
        next_hidden,
        rows,
        WIDTH=width,
        IS_FIRST=inputs.dtype == torch.int32,
        BLOCK_ROWS=tile.rows,
        BLOCK_COLUMNS=tile.columns,
        BLOCK_DEPTH=tile.depth,
        num_warps=tile.warps,
        num_stages=tile.stages,
    )


def reference(
    layer: Layer,
    inputs: Tensor,
    emitted: Tensor,
    hidden: Tensor,
    cell: Tensor,
    next_hidden: Tensor,
    *,
    tile: Tile | None = None,  # noqa: ARG001
) -> None:
    """Same as `launch`, in plain PyTorch."""
    gates = _product(hidden, layer.hidden_weight)
    if inputs.dtype == torch.int32:
        gates += layer.input_weight[inputs]
    else:
        gates += _product(inputs, layer.input_weight) + layer.bias
    input_gate, forget_gate, candidate, output_gate = gates.chunk(4, dim=1)
    next_cell = forget_gate.sigmoid() * cell + input_gate.sigmoid() * candidate.tanh()
    mask = (emitted != 0).unsqueeze(1)
    next_hidden.copy_(torch.where(mask, output_gate.sigmoid() * next_cell.tanh(), hidden))
    cell.copy_(torch.where(mask, next_cell, cell))


def _product(states: Tensor, weight: Tensor) -> Tensor:
    """Product with both factors rounded to the weight's dtype, summed in float32."""
    return states.to(weight.dtype).float() @ weight.float()


@triton.jit(do_not_specialize=["rows"])
def _lstm(
    inputs_ptr,
    emitted_ptr,
    hidden_ptr,
    cell_ptr,
    input_weight_ptr,
    bias_ptr,
    hidden_weight_ptr,
    next_hidden_ptr,
    rows,
    WIDTH: tl.constexpr,
    IS_FIRST: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
    BLOCK_DEPTH: tl.constexpr,
):
    row = tl.program_id(1) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    unit = tl.program_id(0) * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)
    emitted = tl.load(emitted_ptr + row, mask=row < rows, other=0)
    any_emitted = tl.max(emitted, 0) != 0
    in_width = unit < WIDTH
    mask = (row < rows)[:, None] & in_width[None, :]
    if IS_FIRST:
        token = tl.load(inputs_ptr + row, mask=emitted != 0, other=0).to(tl.int64)
        table_ptrs = input_weight_ptr + token[:, None] * (4 * WIDTH) + unit[None, :]
        emitted_mask = mask & (emitted != 0)[:, None]
        input_gate = tl.load(table_ptrs, mask=emitted_mask, other=0.0)
        forget_gate = tl.load(table_ptrs + WIDTH, mask=emitted_mask, other=0.0)
        candidate = tl.load(table_ptrs + 2 * WIDTH, mask=emitted_mask, other=0.0)
        output_gate = tl.load(table_ptrs + 3 * WIDTH, mask=emitted_mask, other=0.0)
    else:
        zero = tl.zeros((BLOCK_ROWS, BLOCK_COLUMNS), tl.float32)
        bias_ptrs = bias_ptr + unit
        input_gate = zero + tl.load(bias_ptrs, mask=in_width, other=0.0)[None, :]
        forget_gate = zero + tl.load(bias_ptrs + WIDTH, mask=in_width, other=0.0)[None, :]
        candidate = zero + tl.load(bias_ptrs + 2 * WIDTH, mask=in_width, other=0.0)[None, :]
        output_gate = zero + tl.load(bias_ptrs + 3 * WIDTH, mask=in_width, other=0.0)[None, :]
        input_gate, forget_gate, candidate, output_gate = _add_product(
            inputs_ptr, input_weight_ptr, row, unit, rows, any_emitted,
            input_gate, forget_gate, candidate, output_gate, WIDTH, BLOCK_DEPTH,
        )  # fmt: skip
    input_gate, forget_gate, candidate, output_gate = _add_product(
        hidden_ptr, hidden_weight_ptr, row, unit, rows, any_emitted,
        input_gate, forget_gate, candidate, output_gate, WIDTH, BLOCK_DEPTH,
    )  # fmt: skip
    offset = row[:, None] * WIDTH + unit[None, :]
    hidden = tl.load(hidden_ptr + offset, mask=mask, other=0.0)
    cell = tl.load(cell_ptr + offset, mask=mask, other=0.0)
    next_cell = tl.sigmoid(forget_gate) * cell + tl.sigmoid(input_gate) * _tanh(candidate)
    next_hidden = tl.sigmoid(output_gate) * _tanh(next_cell)
    did_emit = (emitted != 0)[:, None]
    tl.store(next_hidden_ptr + offset, tl.where(did_emit, next_hidden, hidden), mask=mask)
    tl.store(cell_ptr + offset, tl.where(did_emit, next_cell, cell), mask=mask)


@triton.jit
def _add_product(
    states_ptr,
    weight_ptr,
    row,
    unit,
    rows,
    any_emitted,
    input_gate,
    forget_gate,
    candidate,
    output_gate,
    WIDTH: tl.constexpr,
    BLOCK_DEPTH: tl.constexpr,
):
    """Add the product of states and weight to all four gates."""
    k_range = tl.arange(0, BLOCK_DEPTH)
    if any_emitted:
        for first in range(0, WIDTH, BLOCK_DEPTH):
            k = first + k_range
            states = tl.load(
                states_ptr + row[:, None] * WIDTH + k[None, :],
                mask=(row < rows)[:, None] & (k < WIDTH)[None, :],
                other=0.0,
            ).to(weight_ptr.dtype.element_ty)
            weight_ptrs = weight_ptr + k[:, None] * (4 * WIDTH) + unit[None, :]
            mask = (k < WIDTH)[:, None] & (unit < WIDTH)[None, :]
            w = tl.load(weight_ptrs, mask=mask, other=0.0)
            input_gate = tl.dot(states, w, input_gate, input_precision="ieee")
            w = tl.load(weight_ptrs + WIDTH, mask=mask, other=0.0)
            forget_gate = tl.dot(states, w, forget_gate, input_precision="ieee")
            w = tl.load(weight_ptrs + 2 * WIDTH, mask=mask, other=0.0)
            candidate = tl.dot(states, w, candidate, input_precision="ieee")
            w = tl.load(weight_ptrs + 3 * WIDTH, mask=mask, other=0.0)
            output_gate = tl.dot(states, w, output_gate, input_precision="ieee")
    return input_gate, forget_gate, candidate, output_gate


@triton.jit
def _tanh(x):
    return 2.0 * tl.sigmoid(2.0 * x) - 1.0
