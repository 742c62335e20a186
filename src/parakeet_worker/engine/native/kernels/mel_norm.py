"""Logarithm of mel powers, normalised per band over the frames of each row.

One program covers some bands of one row and iterates over its frames three times: mean, standard
deviation, output. The order of its sums depends on the row only.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from parakeet_worker.engine.native.kernels.launcher import launch_kernel
from parakeet_worker.engine.native.kernels.tiles import Tile
from parakeet_worker.engine.native.rows import FACTOR, Rows

_STD_FLOOR = 1e-5


def launch(
    power: Tensor, rows: Rows, *, log_guard: float, dtype: torch.dtype, tile: Tile
) -> Tensor:
    """(8 N, mels) float32 powers -> (8 N, mels) in `dtype`; frames outside all rows are zero."""
    mels = power.shape[1]
    output = torch.zeros(power.shape, dtype=dtype, device=power.device)
    launch_kernel(
        _mel_norm,
        (rows.count, triton.cdiv(mels, tile.columns)),
        power,
        rows.offsets,
        rows.frames,
        output,
        log_guard,
        MELS=mels,
        FACTOR=FACTOR,
        BLOCK_FRAMES=tile.rows,
        BLOCK_MELS=tile.columns,
        STD_FLOOR=_STD_FLOOR,
        num_warps=tile.warps,
    )
    return output


def reference(
    power: Tensor,
    rows: Rows,
    *,
    log_guard: float,
    dtype: torch.dtype,
    tile: Tile | None = None,  # noqa: ARG001
) -> Tensor:
    """Same as `launch`, in plain PyTorch, row by row."""
    output = torch.zeros(power.shape, dtype=dtype, device=power.device)
    for offset, frames in zip(rows.offsets.tolist(), rows.frames.tolist(), strict=False):
        if not frames:
            continue
        row = slice(offset * FACTOR, offset * FACTOR + frames)
        mels = torch.log(power[row] + log_guard)
        centred = mels - mels.mean(0)
        deviation = (centred.square().sum(0) / max(frames - 1, 1)).sqrt()
        output[row] = (centred / (deviation + _STD_FLOOR)).to(dtype)
    return output


@triton.jit
def _mel_norm(
    power_ptr,
    offsets_ptr,
    frames_ptr,
    output_ptr,
    log_guard,
    MELS: tl.constexpr,
    FACTOR: tl.constexpr,
    BLOCK_FRAMES: tl.constexpr,
    BLOCK_MELS: tl.constexpr,
    STD_FLOOR: tl.constexpr,
):
    row = tl.program_id(0)
    frames = tl.load(frames_ptr + row)
    base = tl.load(offsets_ptr + row).to(tl.int64) * FACTOR * MELS
    band = tl.program_id(1) * BLOCK_MELS + tl.arange(0, BLOCK_MELS)
    in_bands = (band < MELS)[None, :]
    frame_range = tl.arange(0, BLOCK_FRAMES)
    count = tl.maximum(frames, 1).to(tl.float32)
    total = tl.zeros((BLOCK_MELS,), tl.float32)
    for first in range(0, frames, BLOCK_FRAMES):
        frame = (first + frame_range)[:, None]
        mask = (frame < frames) & in_bands
        power_ptrs = power_ptr + base + frame * MELS + band[None, :]
        mels = tl.log(tl.load(power_ptrs, mask=mask, other=1.0) + log_guard)
        total += tl.sum(tl.where(mask, mels, 0.0), 0)
    mean = total / count
    squares = tl.zeros((BLOCK_MELS,), tl.float32)
    for first in range(0, frames, BLOCK_FRAMES):
        frame = (first + frame_range)[:, None]
        mask = (frame < frames) & in_bands
        power_ptrs = power_ptr + base + frame * MELS + band[None, :]
        mels = tl.log(tl.load(power_ptrs, mask=mask, other=1.0) + log_guard)
        centred = tl.where(mask, mels - mean[None, :], 0.0)
        squares += tl.sum(centred * centred, 0)
    deviation = tl.sqrt(squares / tl.maximum(count - 1.0, 1.0)) + STD_FLOOR
    for first in range(0, frames, BLOCK_FRAMES):
        frame = (first + frame_range)[:, None]
        mask = (frame < frames) & in_bands
        offset = base + frame * MELS + band[None, :]
        mels = tl.log(tl.load(power_ptr + offset, mask=mask, other=1.0) + log_guard)
        output = tl.where(mask, mels - mean[None, :], 0.0) / deviation[None, :]
        tl.store(output_ptr + offset, output.to(output_ptr.dtype.element_ty), mask=mask)
