"""Packed samples to windowed frames, with pre-emphasis, ready for the Fourier transform.

Frames are centred on multiples of the hop, and what lies outside their row counts as zero, as in
`features.Features`.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional

from parakeet_worker.engine.native.kernels.launcher import launch as start
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
    """Packed samples, (F,) window -> (count, F) float32, frames `first` to `first + count`.

    Frames are counted through all rows, 8 to a token; those that no row has, and those beyond the
    last token, are zero. F is a power of two.
    """
    size = len(window)
    framed = torch.empty(count, size, dtype=torch.float32, device=samples.device)
    start(
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
        framed,
        first,
        count,
        rows.tokens,
        preemphasis,
        HOP=hop_samples,
        SIZE=size,
        FACTOR=FACTOR,
        ROWS=tile.rows,
        num_warps=tile.warps,
    )
    return framed


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
    """As `launch`, in plain PyTorch, row by row."""
    size = len(window)
    total = max(rows.tokens * FACTOR, first + count)
    framed = samples.new_zeros(total, size, dtype=torch.float32)
    numbers = zip(
        rows.offsets.tolist(), rows.frames.tolist(), rows.sample_offsets.tolist(),
        rows.samples.tolist(), rows.scales.tolist(), strict=False,
    )  # fmt: skip
    for offset, frames, sample_offset, length, scale in numbers:
        if not frames:
            continue
        row = samples[sample_offset : sample_offset + length].float() * scale
        emphasised = torch.cat((row[:1], row[1:] - preemphasis * row[:-1]))
        padded = functional.pad(emphasised, (size // 2, size // 2))
        at = offset * FACTOR
        framed[at : at + frames] = padded.unfold(0, size, hop_samples)[:frames] * window
    return framed[first : first + count].contiguous()


@triton.jit(do_not_specialize=["first", "count", "tokens"])
def _frames(
    SAMPLES,
    SCALES,
    OFFSETS,
    FRAMES,
    SAMPLE_OFFSETS,
    LENGTHS,
    ROW_OF,
    WINDOW,
    FRAMED,
    first,
    count,
    tokens,
    preemphasis,
    HOP: tl.constexpr,
    SIZE: tl.constexpr,
    FACTOR: tl.constexpr,
    ROWS: tl.constexpr,
):
    place = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    wanted = place < count
    token = (first + place) // FACTOR
    row = tl.load(ROW_OF + token, mask=wanted & (token < tokens), other=-1)
    live = row >= 0
    frame = first + place - FACTOR * tl.load(OFFSETS + row, mask=live, other=0)
    live = live & (frame < tl.load(FRAMES + row, mask=live, other=0))
    length = tl.load(LENGTHS + row, mask=live, other=0)
    base = tl.load(SAMPLE_OFFSETS + row, mask=live, other=0)
    scale = tl.load(SCALES + row, mask=live, other=0.0)
    column = tl.arange(0, SIZE)
    sample = frame[:, None] * HOP + column[None, :] - SIZE // 2
    inside = live[:, None] & (sample >= 0) & (sample < length[:, None])
    source = SAMPLES + base[:, None] + sample
    here = tl.load(source, mask=inside, other=0.0).to(tl.float32)
    before = tl.load(source - 1, mask=inside & (sample > 0), other=0.0).to(tl.float32)
    emphasised = here * scale[:, None] - preemphasis * (before * scale[:, None])
    framed = emphasised * tl.load(WINDOW + column)[None, :]
    target = FRAMED + place.to(tl.int64)[:, None] * SIZE + column[None, :]
    tl.store(target, framed, mask=wanted[:, None])
