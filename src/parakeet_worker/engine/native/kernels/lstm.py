"""One step of one LSTM layer for the rows that emitted a token; the others keep their state.

A program computes all four gates of `tile.columns` units, so that the new cell stays in
registers. Where none of its rows emitted, it reads no weights.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from parakeet_worker.engine.native.kernels.launcher import launch as start
from parakeet_worker.engine.native.kernels.tiles import Tile


@dataclass(frozen=True, slots=True, eq=False)
class Layer:
    """Weights of a layer of H units; columns are gates in the order input, forget, cell, output."""

    from_inputs: Tensor
    """(H, 4 H) float16 or float32; of the first layer the (V + 1, 4 H) float32 products of every
    token's embedding, with the bias added."""
    bias: Tensor
    """(4 H,) float32, the sum of both; of the first layer not read."""
    from_hidden: Tensor
    """(H, 4 H) float16 or float32."""


def launch(
    layer: Layer,
    inputs: Tensor,
    emitted: Tensor,
    hidden: Tensor,
    cell: Tensor,
    advanced: Tensor,
    *,
    tile: Tile,
) -> None:
    """Write the next hidden state of every row to `advanced`, and its cell in place.

    `inputs` are (R,) int32 tokens for the first layer, for others (R, H) float32 hidden states
    of the layer before. `emitted` is (R,) int32; `hidden`, `cell`, `advanced` are (R, H) float32.
    """
    tile = tile.of_type(layer.from_hidden.dtype)
    rows, width = hidden.shape
    start(
        _lstm,
        (triton.cdiv(width, tile.columns), triton.cdiv(rows, tile.rows)),
        inputs,
        emitted,
        hidden,
        cell,
        layer.from_inputs,
        layer.bias,
        layer.from_hidden,
        advanced,
        rows,
        WIDTH=width,
        FIRST=inputs.dtype == torch.int32,
        ROWS=tile.rows,
        COLUMNS=tile.columns,
        DEPTH=tile.depth,
        num_warps=tile.warps,
        num_stages=tile.stages,
    )


def reference(
    layer: Layer,
    inputs: Tensor,
    emitted: Tensor,
    hidden: Tensor,
    cell: Tensor,
    advanced: Tensor,
    *,
    tile: Tile | None = None,  # noqa: ARG001  # it decides nothing here
) -> None:
    """As `launch`, in plain PyTorch."""
    gates = _product(hidden, layer.from_hidden)
    if inputs.dtype == torch.int32:
        gates += layer.from_inputs[inputs]
    else:
        gates += _product(inputs, layer.from_inputs) + layer.bias
    into, keep, fresh, out = gates.chunk(4, dim=1)
    memory = keep.sigmoid() * cell + into.sigmoid() * fresh.tanh()
    said = (emitted != 0).unsqueeze(1)
    advanced.copy_(torch.where(said, out.sigmoid() * memory.tanh(), hidden))
    cell.copy_(torch.where(said, memory, cell))


def _product(states: Tensor, weight: Tensor) -> Tensor:
    """Both factors rounded to the type of the weight, the sum in float32."""
    return states.to(weight.dtype).float() @ weight.float()


@triton.jit(do_not_specialize=["rows"])
def _lstm(
    INPUTS,
    EMITTED,
    HIDDEN,
    CELL,
    FROM_INPUTS,
    BIAS,
    FROM_HIDDEN,
    ADVANCED,
    rows,
    WIDTH: tl.constexpr,
    FIRST: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
):
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    unit = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    emitted = tl.load(EMITTED + row, mask=row < rows, other=0)
    any_emitted = tl.max(emitted, 0) != 0
    valid_unit = unit < WIDTH
    valid = (row < rows)[:, None] & valid_unit[None, :]
    if FIRST:
        token = tl.load(INPUTS + row, mask=emitted != 0, other=0).to(tl.int64)
        table = FROM_INPUTS + token[:, None] * (4 * WIDTH) + unit[None, :]
        said = valid & (emitted != 0)[:, None]
        into = tl.load(table, mask=said, other=0.0)
        keep = tl.load(table + WIDTH, mask=said, other=0.0)
        fresh = tl.load(table + 2 * WIDTH, mask=said, other=0.0)
        out = tl.load(table + 3 * WIDTH, mask=said, other=0.0)
    else:
        zero = tl.zeros((ROWS, COLUMNS), tl.float32)
        bias = BIAS + unit
        into = zero + tl.load(bias, mask=valid_unit, other=0.0)[None, :]
        keep = zero + tl.load(bias + WIDTH, mask=valid_unit, other=0.0)[None, :]
        fresh = zero + tl.load(bias + 2 * WIDTH, mask=valid_unit, other=0.0)[None, :]
        out = zero + tl.load(bias + 3 * WIDTH, mask=valid_unit, other=0.0)[None, :]
        into, keep, fresh, out = _gates(
            INPUTS, FROM_INPUTS, row, unit, rows, any_emitted, into, keep, fresh, out, WIDTH, DEPTH
        )
    into, keep, fresh, out = _gates(
        HIDDEN, FROM_HIDDEN, row, unit, rows, any_emitted, into, keep, fresh, out, WIDTH, DEPTH
    )
    place = row[:, None] * WIDTH + unit[None, :]
    hidden = tl.load(HIDDEN + place, mask=valid, other=0.0)
    cell = tl.load(CELL + place, mask=valid, other=0.0)
    memory = tl.sigmoid(keep) * cell + tl.sigmoid(into) * _tanh(fresh)
    advanced = tl.sigmoid(out) * _tanh(memory)
    said = (emitted != 0)[:, None]
    tl.store(ADVANCED + place, tl.where(said, advanced, hidden), mask=valid)
    tl.store(CELL + place, tl.where(said, memory, cell), mask=valid)


@triton.jit
def _gates(
    STATES,
    WEIGHT,
    row,
    unit,
    rows,
    any_emitted,
    into,
    keep,
    fresh,
    out,
    WIDTH: tl.constexpr,
    DEPTH: tl.constexpr,
):
    """Add the product of the states to all four gates."""
    inner = tl.arange(0, DEPTH)
    if any_emitted:
        for first in range(0, WIDTH, DEPTH):
            k = first + inner
            states = tl.load(
                STATES + row[:, None] * WIDTH + k[None, :],
                mask=(row < rows)[:, None] & (k < WIDTH)[None, :],
                other=0.0,
            ).to(WEIGHT.dtype.element_ty)
            weight = WEIGHT + k[:, None] * (4 * WIDTH) + unit[None, :]
            valid = (k < WIDTH)[:, None] & (unit < WIDTH)[None, :]
            w = tl.load(weight, mask=valid, other=0.0)
            into = tl.dot(states, w, into, input_precision="ieee")
            w = tl.load(weight + WIDTH, mask=valid, other=0.0)
            keep = tl.dot(states, w, keep, input_precision="ieee")
            w = tl.load(weight + 2 * WIDTH, mask=valid, other=0.0)
            fresh = tl.dot(states, w, fresh, input_precision="ieee")
            w = tl.load(weight + 3 * WIDTH, mask=valid, other=0.0)
            out = tl.dot(states, w, out, input_precision="ieee")
    return into, keep, fresh, out


@triton.jit
def _tanh(x):
    return 2.0 * tl.sigmoid(2.0 * x) - 1.0
