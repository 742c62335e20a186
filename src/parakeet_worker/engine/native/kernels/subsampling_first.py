"""First two convolutions of the subsampling, fused: 3 x 3 with ReLU, then 3 x 3 depthwise.

Both halve time and frequency. The intermediate plane, the largest of the model, is recomputed
where it is read; it is never written and never rounded to the output's dtype.
"""

import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional

from parakeet_worker.engine.native.kernels.launcher import launch_kernel
from parakeet_worker.engine.native.kernels.tiles import Tile
from parakeet_worker.engine.native.rows import FACTOR, Group, Rows

_STEPS_PER_TOKEN = FACTOR // 4
"""Time steps of the output per token."""


def launch(
    mels: Tensor,
    first: tuple[Tensor, Tensor],
    second: tuple[Tensor, Tensor],
    rows: Rows,
    group: Group,
    *,
    tile: Tile,
) -> Tensor:
    """(8 N, M) frames -> (2 n, M / 4, C) for the n tokens of a group of rows.

    `first` and `second` are the (9, C) weight and the (C,) bias of one convolution each. The output
    at time steps that belong to no row is undefined.
    """
    bands, channels = mels.shape[1], first[0].shape[1]
    steps = group.tokens * _STEPS_PER_TOKEN
    points = _halved(_halved(bands))
    output = mels.new_empty(steps, points, channels)
    launch_kernel(
        _subsampling_first,
        (triton.cdiv(steps * points, tile.rows),),
        mels,
        rows.offsets,
        rows.frames,
        rows.row_of,
        *first,
        *second,
        output,
        group.first * _STEPS_PER_TOKEN,
        steps * points,
        BANDS=bands,
        POINTS=points,
        CHANNELS=channels,
        BLOCK_CHANNELS=triton.next_power_of_2(channels),
        FACTOR=FACTOR,
        BLOCK_POINTS=tile.rows,
        num_warps=tile.warps,
    )
    return output


def reference(
    mels: Tensor,
    first: tuple[Tensor, Tensor],
    second: tuple[Tensor, Tensor],
    rows: Rows,
    group: Group,
    *,
    tile: Tile | None = None,  # noqa: ARG001
) -> Tensor:
    """Same as `launch`, in plain PyTorch, row by row."""
    bands, channels = mels.shape[1], first[0].shape[1]
    output = mels.new_zeros(rows.tokens * _STEPS_PER_TOKEN, _halved(_halved(bands)), channels)
    kernels = [weight.float().t().reshape(channels, 1, 3, 3) for weight in (first[0], second[0])]
    for offset, frames in zip(rows.offsets.tolist(), rows.frames.tolist(), strict=False):
        if not frames:
            continue
        plane = mels[offset * FACTOR : offset * FACTOR + frames].float()[None, None]
        plane = functional.conv2d(plane, kernels[0], first[1].float(), stride=2, padding=1).relu()
        plane = functional.conv2d(
            plane, kernels[1], second[1].float(), stride=2, padding=1, groups=channels
        )
        start = offset * _STEPS_PER_TOKEN
        output[start : start + plane.shape[2]] = plane[0].permute(1, 2, 0).to(mels.dtype)
    return output[group.first * _STEPS_PER_TOKEN :][: group.tokens * _STEPS_PER_TOKEN].clone()


def _halved(size: int) -> int:
    return (size - 1) // 2 + 1


@triton.jit(do_not_specialize=["first_step", "total"])
def _subsampling_first(
    mels_ptr,
    offsets_ptr,
    frames_ptr,
    row_of_ptr,
    first_weight_ptr,
    first_bias_ptr,
    second_weight_ptr,
    second_bias_ptr,
    output_ptr,
    first_step,
    total,
    BANDS: tl.constexpr,
    POINTS: tl.constexpr,
    CHANNELS: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
    FACTOR: tl.constexpr,
    BLOCK_POINTS: tl.constexpr,
):
    halved_bands: tl.constexpr = (BANDS - 1) // 2 + 1
    point = tl.program_id(0) * BLOCK_POINTS + tl.arange(0, BLOCK_POINTS)
    step = first_step + point // POINTS
    band = point % POINTS
    row = tl.load(row_of_ptr + step // (FACTOR // 4), mask=point < total, other=-1)
    offset = tl.load(offsets_ptr + row, mask=row >= 0, other=0)
    frames = tl.load(frames_ptr + row, mask=row >= 0, other=0)
    step = step - offset * (FACTOR // 4)
    base_ptr = mels_ptr + offset.to(tl.int64) * FACTOR * BANDS
    channel = tl.arange(0, BLOCK_CHANNELS)
    in_channels = channel < CHANNELS
    first_bias = tl.load(first_bias_ptr + channel, mask=in_channels, other=0.0).to(tl.float32)
    second_bias = tl.load(second_bias_ptr + channel, mask=in_channels, other=0.0).to(tl.float32)
    output = tl.zeros((BLOCK_POINTS, BLOCK_CHANNELS), tl.float32) + second_bias[None, :]
    # A loop, not 81 unrolled taps, which would take seconds to compile.
    for tap in range(9):
        time = 2 * step + tap // 3 - 1
        halved_band = 2 * band + tap % 3 - 1
        value = tl.zeros((BLOCK_POINTS, BLOCK_CHANNELS), tl.float32) + first_bias[None, :]
        for i in tl.static_range(3):
            for j in tl.static_range(3):
                frame = 2 * time + i - 1
                mel = 2 * halved_band + j - 1
                valid = (frame >= 0) & (frame < frames) & (mel >= 0) & (mel < BANDS)
                x = tl.load(base_ptr + frame * BANDS + mel, mask=valid, other=0.0).to(tl.float32)
                weight = tl.load(
                    first_weight_ptr + (3 * i + j) * CHANNELS + channel, mask=in_channels, other=0.0
                )
                value += x[:, None] * weight.to(tl.float32)[None, :]
        valid = (time >= 0) & (time < (frames + 1) // 2)
        valid = valid & (halved_band >= 0) & (halved_band < halved_bands)
        value = tl.where(valid[:, None], tl.maximum(value, 0.0), 0.0)
        weight = tl.load(second_weight_ptr + tap * CHANNELS + channel, mask=in_channels, other=0.0)
        output += value * weight.to(tl.float32)[None, :]
    output_ptrs = output_ptr + point.to(tl.int64)[:, None] * CHANNELS + channel[None, :]
    mask = (point < total)[:, None] & in_channels[None, :]
    tl.store(output_ptrs, output.to(output_ptr.dtype.element_ty), mask=mask)
