"""Last depthwise convolution of the subsampling, with the ReLU that precedes it."""

import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional

from parakeet_worker.engine.native.kernels.launcher import launch_kernel
from parakeet_worker.engine.native.kernels.tiles import Tile
from parakeet_worker.engine.native.rows import Group, Rows

_STEPS_PER_TOKEN = 2
"""Time steps of the input per token."""


def launch(
    planes: Tensor, weight: Tensor, bias: Tensor, rows: Rows, group: Group, *, tile: Tile
) -> Tensor:
    """(2 n, F, C) planes before their ReLU, (9, C) weight, (C,) bias -> (n, F / 2, C).

    n is the number of tokens in a group of rows.
    """
    bands, channels = planes.shape[1:]
    points = (bands - 1) // 2 + 1
    output = planes.new_empty(group.tokens, points, channels)
    launch_kernel(
        _subsampling_next,
        (triton.cdiv(group.tokens * points, tile.rows),),
        planes,
        rows.offsets,
        rows.frames,
        rows.row_of,
        weight,
        bias,
        output,
        group.first,
        group.tokens * points,
        BANDS=bands,
        POINTS=points,
        CHANNELS=channels,
        BLOCK_CHANNELS=triton.next_power_of_2(channels),
        BLOCK_POINTS=tile.rows,
        num_warps=tile.warps,
    )
    return output


def reference(
    planes: Tensor,
    weight: Tensor,
    bias: Tensor,
    rows: Rows,
    group: Group,
    *,
    tile: Tile | None = None,  # noqa: ARG001
) -> Tensor:
    """Same as `launch`, in plain PyTorch, row by row."""
    bands, channels = planes.shape[1:]
    output = planes.new_zeros(group.tokens, (bands - 1) // 2 + 1, channels)
    kernel = weight.float().t().reshape(channels, 1, 3, 3)
    for first_token, frames in zip(rows.offsets.tolist(), rows.frames.tolist(), strict=False):
        offset = first_token - group.first
        if not frames or not 0 <= offset < group.tokens:
            continue
        steps = -(-frames // 4)
        start = offset * _STEPS_PER_TOKEN
        plane = planes[start : start + steps].float().relu()
        plane = functional.conv2d(
            plane.permute(2, 0, 1)[None], kernel, bias.float(), stride=2, padding=1, groups=channels
        )
        output[offset : offset + plane.shape[2]] = plane[0].permute(1, 2, 0).to(planes.dtype)
    return output


@triton.jit(do_not_specialize=["first_token", "total"])
def _subsampling_next(
    planes_ptr,
    offsets_ptr,
    frames_ptr,
    row_of_ptr,
    weight_ptr,
    bias_ptr,
    output_ptr,
    first_token,
    total,
    BANDS: tl.constexpr,
    POINTS: tl.constexpr,
    CHANNELS: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
    BLOCK_POINTS: tl.constexpr,
):
    point = tl.program_id(0) * BLOCK_POINTS + tl.arange(0, BLOCK_POINTS)
    token = first_token + point // POINTS
    row = tl.load(row_of_ptr + token, mask=point < total, other=-1)
    offset = tl.load(offsets_ptr + row, mask=row >= 0, other=0)
    frames = tl.load(frames_ptr + row, mask=row >= 0, other=0)
    steps = ((frames + 1) // 2 + 1) // 2
    row_ptrs = planes_ptr + (offset - first_token).to(tl.int64)[:, None] * (2 * BANDS * CHANNELS)
    channel = tl.arange(0, BLOCK_CHANNELS)
    in_channels = channel < CHANNELS
    bias = tl.load(bias_ptr + channel, mask=in_channels, other=0.0).to(tl.float32)
    output = tl.zeros((BLOCK_POINTS, BLOCK_CHANNELS), tl.float32) + bias[None, :]
    for i in tl.static_range(3):
        for j in tl.static_range(3):
            step = 2 * (token - offset) + i - 1
            band = 2 * (point % POINTS) + j - 1
            valid = (step >= 0) & (step < steps) & (band >= 0) & (band < BANDS)
            source_ptrs = row_ptrs + (step * BANDS + band)[:, None] * CHANNELS + channel[None, :]
            mask = valid[:, None] & in_channels[None, :]
            x = tl.load(source_ptrs, mask=mask, other=0.0).to(tl.float32)
            weight = tl.load(
                weight_ptr + (3 * i + j) * CHANNELS + channel, mask=in_channels, other=0.0
            )
            output += tl.maximum(x, 0.0) * weight.to(tl.float32)[None, :]
    output_ptrs = output_ptr + point.to(tl.int64)[:, None] * CHANNELS + channel[None, :]
    mask = (point < total)[:, None] & in_channels[None, :]
    tl.store(output_ptrs, output.to(output_ptr.dtype.element_ty), mask=mask)
