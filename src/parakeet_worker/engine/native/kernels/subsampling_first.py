"""The first two convolutions of the subsampling in one: 3 x 3 with ReLU, then 3 x 3 depthwise.

Both halve time and frequency. The plane between them, the largest of the model, is computed where
it is read and never written. It is also never rounded to the result's type.
"""

import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional

from parakeet_worker.engine.native.kernels.launcher import launch as start
from parakeet_worker.engine.native.kernels.tiles import Tile
from parakeet_worker.engine.native.rows import FACTOR, Group, Rows

_PLACES = FACTOR // 4
"""Places of the result per token."""


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

    `first` and `second` are the (9, C) weight and the (C,) bias of a convolution each. Places that
    no row has are the biases' convolution: they mean nothing.
    """
    bands, channels = mels.shape[1], first[0].shape[1]
    places = group.tokens * _PLACES
    points = _halved(_halved(bands))
    result = mels.new_empty(places, points, channels)
    start(
        _subsampling_first,
        (triton.cdiv(places * points, tile.rows),),
        mels,
        rows.offsets,
        rows.frames,
        rows.row_of,
        *first,
        *second,
        result,
        group.first * _PLACES,
        places * points,
        BANDS=bands,
        POINTS=points,
        CHANNELS=channels,
        BLOCK=triton.next_power_of_2(channels),
        FACTOR=FACTOR,
        ROWS=tile.rows,
        num_warps=tile.warps,
    )
    return result


def reference(
    mels: Tensor,
    first: tuple[Tensor, Tensor],
    second: tuple[Tensor, Tensor],
    rows: Rows,
    group: Group,
    *,
    tile: Tile | None = None,  # noqa: ARG001
) -> Tensor:
    """As `launch`, in plain PyTorch, row by row."""
    bands, channels = mels.shape[1], first[0].shape[1]
    result = mels.new_zeros(rows.tokens * _PLACES, _halved(_halved(bands)), channels)
    kernels = [weight.float().t().reshape(channels, 1, 3, 3) for weight in (first[0], second[0])]
    for offset, frames in zip(rows.offsets.tolist(), rows.frames.tolist(), strict=False):
        if not frames:
            continue
        plane = mels[offset * FACTOR : offset * FACTOR + frames].float()[None, None]
        plane = functional.conv2d(plane, kernels[0], first[1].float(), stride=2, padding=1).relu()
        plane = functional.conv2d(
            plane, kernels[1], second[1].float(), stride=2, padding=1, groups=channels
        )
        at = offset * _PLACES
        result[at : at + plane.shape[2]] = plane[0].permute(1, 2, 0).to(mels.dtype)
    return result[group.first * _PLACES :][: group.tokens * _PLACES].clone()


def _halved(size: int) -> int:
    return (size - 1) // 2 + 1


@triton.jit(do_not_specialize=["first_place", "total"])
def _subsampling_first(
    MELS,
    OFFSETS,
    FRAMES,
    ROW_OF,
    FIRST_WEIGHT,
    FIRST_BIAS,
    SECOND_WEIGHT,
    SECOND_BIAS,
    RESULT,
    first_place,
    total,
    BANDS: tl.constexpr,
    POINTS: tl.constexpr,
    CHANNELS: tl.constexpr,
    BLOCK: tl.constexpr,
    FACTOR: tl.constexpr,
    ROWS: tl.constexpr,
):
    halved_bands: tl.constexpr = (BANDS - 1) // 2 + 1
    point = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    place = first_place + point // POINTS
    band = point % POINTS
    row = tl.load(ROW_OF + place // (FACTOR // 4), mask=point < total, other=-1)
    offset = tl.load(OFFSETS + row, mask=row >= 0, other=0)
    frames = tl.load(FRAMES + row, mask=row >= 0, other=0)
    place = place - offset * (FACTOR // 4)
    base = MELS + offset.to(tl.int64) * FACTOR * BANDS
    channel = tl.arange(0, BLOCK)
    inside = channel < CHANNELS
    first_bias = tl.load(FIRST_BIAS + channel, mask=inside, other=0.0).to(tl.float32)
    second_bias = tl.load(SECOND_BIAS + channel, mask=inside, other=0.0).to(tl.float32)
    result = tl.zeros((ROWS, BLOCK), tl.float32) + second_bias[None, :]
    # A loop and not 81 unrolled taps, which would take seconds to compile.
    for tap in range(9):
        time = 2 * place + tap // 3 - 1
        halved_band = 2 * band + tap % 3 - 1
        value = tl.zeros((ROWS, BLOCK), tl.float32) + first_bias[None, :]
        for i in tl.static_range(3):
            for j in tl.static_range(3):
                frame = 2 * time + i - 1
                mel = 2 * halved_band + j - 1
                valid = (frame >= 0) & (frame < frames) & (mel >= 0) & (mel < BANDS)
                x = tl.load(base + frame * BANDS + mel, mask=valid, other=0.0).to(tl.float32)
                weight = tl.load(
                    FIRST_WEIGHT + (3 * i + j) * CHANNELS + channel, mask=inside, other=0.0
                )
                value += x[:, None] * weight.to(tl.float32)[None, :]
        valid = (time >= 0) & (time < (frames + 1) // 2)
        valid = valid & (halved_band >= 0) & (halved_band < halved_bands)
        value = tl.where(valid[:, None], tl.maximum(value, 0.0), 0.0)
        weight = tl.load(SECOND_WEIGHT + tap * CHANNELS + channel, mask=inside, other=0.0)
        result += value * weight.to(tl.float32)[None, :]
    target = RESULT + point.to(tl.int64)[:, None] * CHANNELS + channel[None, :]
    valid = (point < total)[:, None] & inside[None, :]
    tl.store(target, result.to(RESULT.dtype.element_ty), mask=valid)
