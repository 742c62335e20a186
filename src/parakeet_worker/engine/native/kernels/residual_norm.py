"""Residual sum with the layer norm of it, or with two layer norms where one layer meets the next.

The kernel is memory-bound: each row is read once and stays in registers.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional

from parakeet_worker.engine.native.kernels.launcher import launch_kernel
from parakeet_worker.engine.native.kernels.tiles import Tile

_EPSILON = 1e-5

Affine = tuple[Tensor, Tensor]
"""Weight and bias of a layer norm, (C,) each."""


def launch(
    states: Tensor,
    update: Tensor | None,
    norm: Affine,
    next_norm: Affine | None = None,
    *,
    tile: Tile,
) -> Tensor:
    """(N, C) states and update of one dtype -> (N, C), the norm of their sum.

    `states` become the sum, in place. With `next_norm` they become the norm of the sum, and the
    result is the second norm of that.
    """
    rows, width = states.shape
    output = torch.empty_like(states)
    first, second = norm, next_norm or norm
    launch_kernel(
        _residual_norm,
        (rows,),
        states,
        states if update is None else update,
        *first,
        *second,
        output,
        WIDTH=width,
        BLOCK_WIDTH=triton.next_power_of_2(width),
        HAS_UPDATE=update is not None,
        HAS_NEXT=next_norm is not None,
        EPSILON=_EPSILON,
        num_warps=tile.warps,
    )
    return output


def reference(
    states: Tensor,
    update: Tensor | None,
    norm: Affine,
    next_norm: Affine | None = None,
    *,
    tile: Tile | None = None,  # noqa: ARG001
) -> Tensor:
    """Same as `launch`, in plain PyTorch."""
    total = states if update is None else (states.float() + update.float()).to(states.dtype)
    normed = functional.layer_norm(total, total.shape[1:], *norm, eps=_EPSILON)
    if next_norm is None:
        states.copy_(total)
        return normed
    states.copy_(normed)
    return functional.layer_norm(normed, normed.shape[1:], *next_norm, eps=_EPSILON)


@triton.jit
def _residual_norm(
    states_ptr,
    update_ptr,
    weight_ptr,
    bias_ptr,
    next_weight_ptr,
    next_bias_ptr,
    output_ptr,
    WIDTH: tl.constexpr,
    BLOCK_WIDTH: tl.constexpr,
    HAS_UPDATE: tl.constexpr,
    HAS_NEXT: tl.constexpr,
    EPSILON: tl.constexpr,
):
    row_offset = tl.program_id(0).to(tl.int64) * WIDTH
    column = tl.arange(0, BLOCK_WIDTH)
    mask = column < WIDTH
    offset = row_offset + column
    dtype = states_ptr.dtype.element_ty
    x = tl.load(states_ptr + offset, mask=mask, other=0.0).to(tl.float32)
    if HAS_UPDATE:
        x += tl.load(update_ptr + offset, mask=mask, other=0.0).to(tl.float32)
        # The norm must see the rounded values that are stored.
        x = x.to(dtype).to(tl.float32)
    normed = _layer_norm(x, weight_ptr, bias_ptr, column, mask, WIDTH, EPSILON)
    if HAS_NEXT:
        x = normed.to(dtype).to(tl.float32)
        normed = _layer_norm(x, next_weight_ptr, next_bias_ptr, column, mask, WIDTH, EPSILON)
    if HAS_UPDATE or HAS_NEXT:
        tl.store(states_ptr + offset, x.to(dtype), mask=mask)
    tl.store(output_ptr + offset, normed.to(dtype), mask=mask)


@triton.jit
def _layer_norm(x, weight_ptr, bias_ptr, column, mask, WIDTH: tl.constexpr, EPSILON: tl.constexpr):
    mean = tl.sum(x, 0) / WIDTH
    centred = tl.where(mask, x - mean, 0.0)
    variance = tl.sum(centred * centred, 0) / WIDTH
    weight = tl.load(weight_ptr + column, mask=mask, other=0.0).to(tl.float32)
    bias = tl.load(bias_ptr + column, mask=mask, other=0.0).to(tl.float32)
    return centred * tl.rsqrt(variance + EPSILON) * weight + bias
