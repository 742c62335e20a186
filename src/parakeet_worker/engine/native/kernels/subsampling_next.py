"""The last depthwise convolution of the subsampling, with the ReLU that comes before it."""

import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional

from parakeet_worker.engine.native.kernels.launcher import launch as start
from parakeet_worker.engine.native.kernels.tiles import Tile
from parakeet_worker.engine.native.rows import Group, Rows

_PLACES = 2
"""Places of the input per token."""


def launch(
    planes: Tensor, weight: Tensor, bias: Tensor, rows: Rows, group: Group, *, tile: Tile
) -> Tensor:
    """(2 n, F, C) planes before their ReLU, (9, C) weight, (C,) bias -> (n, F / 2, C).

    n are the tokens of a group of rows.
    """
    bands, channels = planes.shape[1:]
    points = (bands - 1) // 2 + 1
    result = planes.new_empty(group.tokens, points, channels)
    start(
        _subsampling_next,
        (triton.cdiv(group.tokens * points, tile.rows),),
        planes,
        rows.offsets,
        rows.frames,
        rows.row_of,
        weight,
        bias,
        result,
        group.first,
        group.tokens * points,
        BANDS=bands,
        POINTS=points,
        CHANNELS=channels,
        BLOCK=triton.next_power_of_2(channels),
        ROWS=tile.rows,
        num_warps=tile.warps,
    )
    return result


def reference(
    planes: Tensor,
    weight: Tensor,
    bias: Tensor,
    rows: Rows,
    group: Group,
    *,
    tile: Tile | None = None,  # noqa: ARG001
) -> Tensor:
    """As `launch`, in plain PyTorch, row by row."""
    bands, channels = planes.shape[1:]
    result = planes.new_zeros(group.tokens, (bands - 1) // 2 + 1, channels)
    kernel = weight.float().t().reshape(channels, 1, 3, 3)
    for start_of_row, frames in zip(rows.offsets.tolist(), rows.frames.tolist(), strict=False):
        offset = start_of_row - group.first
        if not frames or not 0 <= offset < group.tokens:
            continue
        places = -(-frames // 4)
        plane = planes[offset * _PLACES : offset * _PLACES + places].float().relu()
        plane = functional.conv2d(
            plane.permute(2, 0, 1)[None], kernel, bias.float(), stride=2, padding=1, groups=channels
        )
        result[offset : offset + plane.shape[2]] = plane[0].permute(1, 2, 0).to(planes.dtype)
    return result


@triton.jit(do_not_specialize=["first_token", "total"])
def _subsampling_next(
    PLANES,
    OFFSETS,
    FRAMES,
    ROW_OF,
    WEIGHT,
    BIAS,
    RESULT,
    first_token,
    total,
    BANDS: tl.constexpr,
    POINTS: tl.constexpr,
    CHANNELS: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
):
    point = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    token = first_token + point // POINTS
    row = tl.load(ROW_OF + token, mask=point < total, other=-1)
    offset = tl.load(OFFSETS + row, mask=row >= 0, other=0)
    frames = tl.load(FRAMES + row, mask=row >= 0, other=0)
    places = ((frames + 1) // 2 + 1) // 2
    base = PLANES + (offset - first_token).to(tl.int64)[:, None] * (2 * BANDS * CHANNELS)
    channel = tl.arange(0, BLOCK)
    inside = channel < CHANNELS
    bias = tl.load(BIAS + channel, mask=inside, other=0.0).to(tl.float32)
    result = tl.zeros((ROWS, BLOCK), tl.float32) + bias[None, :]
    for i in tl.static_range(3):
        for j in tl.static_range(3):
            place = 2 * (token - offset) + i - 1
            band = 2 * (point % POINTS) + j - 1
            valid = (place >= 0) & (place < places) & (band >= 0) & (band < BANDS)
            source = base + (place * BANDS + band)[:, None] * CHANNELS + channel[None, :]
            x = tl.load(source, mask=valid[:, None] & inside[None, :], other=0.0).to(tl.float32)
            weight = tl.load(WEIGHT + (3 * i + j) * CHANNELS + channel, mask=inside, other=0.0)
            result += tl.maximum(x, 0.0) * weight.to(tl.float32)[None, :]
    target = RESULT + point.to(tl.int64)[:, None] * CHANNELS + channel[None, :]
    valid = (point < total)[:, None] & inside[None, :]
    tl.store(target, result.to(RESULT.dtype.element_ty), mask=valid)
