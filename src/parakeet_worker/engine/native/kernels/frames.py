"""Packed samples to windowed frames with pre-emphasis, the input of the Fourier transform.

Frames are centred on multiples of the hop; samples outside the row count as zero, as in
`features.Features`.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional

from parakeet_worker.engine.native.kernels.launcher import launch_kernel
from parakeet_worker.engine.native.kernels.tiles import Tile
from parakeet_worker.engine.native.rows import FACTOR, Rows


def launch(
    samples: Tensor,
    window: Tensor,
    rows: Rows,
    first: int,
    count: int,
    *,
    hop_samples: int,
    preemphasis: float,
    tile: Tile,
) -> Tensor:
    """(S,) samples, (F,) window -> (count, F) float32, the frames from `first` on.

    Frames are numbered across all rows, 8 per token; those that belong to no row, and those beyond
    the last token, are zero. F is a power of two.
    """
    size = len(window)
    output = torch.empty(count, size, dtype=torch.float32, device=samples.device)
    launch_kernel(
        _frames,
        (triton.cdiv(count, tile.rows),),
        samples,
        rows.scales,
        rows.offsets,
        rows.frames,
        rows.sample_offsets,
        rows.samples,
        rows.row_of,
        window,
        output,
        first,
        count,
        rows.tokens,
        preemphasis,
        HOP=hop_samples,
        SIZE=size,
        FACTOR=FACTOR,
        BLOCK_ROWS=tile.rows,
        num_warps=tile.warps,
    )
    return output


def reference(
    samples: Tensor,
    window: Tensor,
    rows: Rows,
    first: int,
    count: int,
    *,
    hop_samples: int,
    preemphasis: float,
    tile: Tile | None = None,  # noqa: ARG001
) -> Tensor:
    """Same as `launch`, in plain PyTorch, row by row."""
    size = len(window)
    total = max(rows.tokens * FACTOR, first + count)
    output = samples.new_zeros(total, size, dtype=torch.float32)
    layout = zip(
        rows.offsets.tolist(), rows.frames.tolist(), rows.sample_offsets.tolist(),
        rows.samples.tolist(), rows.scales.tolist(), strict=False,
    )  # fmt: skip
    for offset, frames, sample_offset, length, scale in layout:
        if not frames:
            continue
        row = samples[sample_offset : sample_offset + length].float() * scale
        emphasised = torch.cat((row[:1], row[1:] - preemphasis * row[:-1]))
        padded = functional.pad(emphasised, (size // 2, size // 2))
        start = offset * FACTOR
        output[start : start + frames] = padded.unfold(0, size, hop_samples)[:frames] * window
    return output[first : first + count].contiguous()


@triton.jit(do_not_specialize=["first", "count", "tokens"])
def _frames(
    samples_ptr,
    scales_ptr,
    offsets_ptr,
    frames_ptr,
    sample_offsets_ptr,
    lengths_ptr,
    row_of_ptr,
    window_ptr,
    output_ptr,
    first,
    count,
    tokens,
    preemphasis,
    HOP: tl.constexpr,
    SIZE: tl.constexpr,
    FACTOR: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
):
    index = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    in_range = index < count
    token = (first + index) // FACTOR
    row = tl.load(row_of_ptr + token, mask=in_range & (token < tokens), other=-1)
    valid = row >= 0
    frame = first + index - FACTOR * tl.load(offsets_ptr + row, mask=valid, other=0)
    valid = valid & (frame < tl.load(frames_ptr + row, mask=valid, other=0))
    length = tl.load(lengths_ptr + row, mask=valid, other=0)
    base = tl.load(sample_offsets_ptr + row, mask=valid, other=0)
    scale = tl.load(scales_ptr + row, mask=valid, other=0.0)
    column = tl.arange(0, SIZE)
    sample = frame[:, None] * HOP + column[None, :] - SIZE // 2
    mask = valid[:, None] & (sample >= 0) & (sample < length[:, None])
    source_ptrs = samples_ptr + base[:, None] + sample
    current = tl.load(source_ptrs, mask=mask, other=0.0).to(tl.float32)
    previous = tl.load(source_ptrs - 1, mask=mask & (sample > 0), other=0.0).to(tl.float32)
    emphasised = current * scale[:, None] - preemphasis * (previous * scale[:, None])
    output = emphasised * tl.load(window_ptr + column)[None, :]
    output_ptrs = output_ptr + index.to(tl.int64)[:, None] * SIZE + column[None, :]
    tl.store(output_ptrs, output, mask=in_range[:, None])
