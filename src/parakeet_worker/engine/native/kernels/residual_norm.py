"""A residual sum and the layer norm of it, or the two layer norms where one layer meets the next.

Bound by memory: each row is read once and stays in registers.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional

from parakeet_worker.engine.native.kernels.launcher import launch as start
from parakeet_worker.engine.native.kernels.tiles import Tile

_EPSILON = 1e-5

Affine = tuple[Tensor, Tensor]
"""Weight and bias of a layer norm, (C,) each."""


def launch(
    states: Tensor,
    update: Tensor | None,
    norm: Affine,
    then: Affine | None = None,
    *,
    tile: Tile,
) -> Tensor:
    """(N, C) states and update of one type -> (N, C), the norm of their sum.

    `states` become the sum, in place. With `then`, they become the norm of the sum, and the
    result is the second norm of that.
    """
    rows, width = states.shape
    normed = torch.empty_like(states)
    first, second = norm, then or norm
    start(
        _residual_norm,
        (rows,),
        states,
        states if update is None else update,
        *first,
        *second,
        normed,
        WIDTH=width,
        BLOCK=triton.next_power_of_2(width),
        ADD=update is not None,
        TWICE=then is not None,
        EPSILON=_EPSILON,
        num_warps=tile.warps,
    )
    return normed


def reference(
    states: Tensor,
    update: Tensor | None,
    norm: Affine,
    then: Affine | None = None,
    *,
    tile: Tile | None = None,  # noqa: ARG001  # it decides nothing here
) -> Tensor:
    """As `launch`, in plain PyTorch."""
    total = states if update is None else (states.float() + update.float()).to(states.dtype)
    normed = functional.layer_norm(total, total.shape[1:], *norm, eps=_EPSILON)
    if then is None:
        states.copy_(total)
        return normed
    states.copy_(normed)
    return functional.layer_norm(normed, normed.shape[1:], *then, eps=_EPSILON)


@triton.jit
def _residual_norm(
    STATES,
    UPDATE,
    WEIGHT,
    BIAS,
    SECOND_WEIGHT,
    SECOND_BIAS,
    NORMED,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    ADD: tl.constexpr,
    TWICE: tl.constexpr,
    EPSILON: tl.constexpr,
):
    start_of_row = tl.program_id(0).to(tl.int64) * WIDTH
    column = tl.arange(0, BLOCK)
    valid = column < WIDTH
    place = start_of_row + column
    kind = STATES.dtype.element_ty
    x = tl.load(STATES + place, mask=valid, other=0.0).to(tl.float32)
    if ADD:
        x += tl.load(UPDATE + place, mask=valid, other=0.0).to(tl.float32)
        # What follows sees what is stored.
        x = x.to(kind).to(tl.float32)
    normed = _normed(x, WEIGHT, BIAS, column, valid, WIDTH, EPSILON)
    if TWICE:
        x = normed.to(kind).to(tl.float32)
        normed = _normed(x, SECOND_WEIGHT, SECOND_BIAS, column, valid, WIDTH, EPSILON)
    if ADD or TWICE:
        tl.store(STATES + place, x.to(kind), mask=valid)
    tl.store(NORMED + place, normed.to(kind), mask=valid)


@triton.jit
def _normed(x, WEIGHT, BIAS, column, valid, WIDTH: tl.constexpr, EPSILON: tl.constexpr):
    mean = tl.sum(x, 0) / WIDTH
    centred = tl.where(valid, x - mean, 0.0)
    variance = tl.sum(centred * centred, 0) / WIDTH
    weight = tl.load(WEIGHT + column, mask=valid, other=0.0).to(tl.float32)
    bias = tl.load(BIAS + column, mask=valid, other=0.0).to(tl.float32)
    return centred * tl.rsqrt(variance + EPSILON) * weight + bias
