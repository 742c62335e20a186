"""The logarithm of mel powers, normalised per band over the frames of each row.

One program has some bands of one row and walks through its frames three times: mean, deviation,
result. The order of its sums depends on the row alone.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from parakeet_worker.engine.native.kernels.launcher import launch as start
from parakeet_worker.engine.native.kernels.tiles import Tile
from parakeet_worker.engine.native.rows import FACTOR, Rows

_STD_FLOOR = 1e-5


def launch(
    power: Tensor, rows: Rows, *, log_guard: float, dtype: torch.dtype, tile: Tile
) -> Tensor:
    """(8 N, mels) float32 powers -> (8 N, mels) in `dtype`; frames that no row has are zero."""
    mels = power.shape[1]
    normed = torch.zeros(power.shape, dtype=dtype, device=power.device)
    start(
        _mel_norm,
        (rows.count, triton.cdiv(mels, tile.columns)),
        power,
        rows.offsets,
        rows.frames,
        normed,
        log_guard,
        MELS=mels,
        FACTOR=FACTOR,
        ROWS=tile.rows,
        COLUMNS=tile.columns,
        STD_FLOOR=_STD_FLOOR,
        num_warps=tile.warps,
    )
    return normed


def reference(
    power: Tensor,
    rows: Rows,
    *,
    log_guard: float,
    dtype: torch.dtype,
    tile: Tile | None = None,  # noqa: ARG001
) -> Tensor:
    """As `launch`, in plain PyTorch, row by row."""
    normed = torch.zeros(power.shape, dtype=dtype, device=power.device)
    for offset, frames in zip(rows.offsets.tolist(), rows.frames.tolist(), strict=False):
        if not frames:
            continue
        at = slice(offset * FACTOR, offset * FACTOR + frames)
        mels = torch.log(power[at] + log_guard)
        centred = mels - mels.mean(0)
        deviation = (centred.square().sum(0) / max(frames - 1, 1)).sqrt()
        normed[at] = (centred / (deviation + _STD_FLOOR)).to(dtype)
    return normed


@triton.jit
def _mel_norm(
    POWER,
    OFFSETS,
    FRAMES,
    NORMED,
    log_guard,
    MELS: tl.constexpr,
    FACTOR: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    STD_FLOOR: tl.constexpr,
):
    row = tl.program_id(0)
    frames = tl.load(FRAMES + row)
    base = tl.load(OFFSETS + row).to(tl.int64) * FACTOR * MELS
    band = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = (band < MELS)[None, :]
    step = tl.arange(0, ROWS)
    count = tl.maximum(frames, 1).to(tl.float32)
    total = tl.zeros((COLUMNS,), tl.float32)
    for first in range(0, frames, ROWS):
        frame = (first + step)[:, None]
        valid = (frame < frames) & inside
        mels = tl.log(
            tl.load(POWER + base + frame * MELS + band[None, :], mask=valid, other=1.0) + log_guard
        )
        total += tl.sum(tl.where(valid, mels, 0.0), 0)
    mean = total / count
    squares = tl.zeros((COLUMNS,), tl.float32)
    for first in range(0, frames, ROWS):
        frame = (first + step)[:, None]
        valid = (frame < frames) & inside
        mels = tl.log(
            tl.load(POWER + base + frame * MELS + band[None, :], mask=valid, other=1.0) + log_guard
        )
        centred = tl.where(valid, mels - mean[None, :], 0.0)
        squares += tl.sum(centred * centred, 0)
    deviation = tl.sqrt(squares / tl.maximum(count - 1.0, 1.0)) + STD_FLOOR
    for first in range(0, frames, ROWS):
        frame = (first + step)[:, None]
        valid = (frame < frames) & inside
        place = base + frame * MELS + band[None, :]
        mels = tl.log(tl.load(POWER + place, mask=valid, other=1.0) + log_guard)
        normed = tl.where(valid, mels - mean[None, :], 0.0) / deviation[None, :]
        tl.store(NORMED + place, normed.to(NORMED.dtype.element_ty), mask=valid)
