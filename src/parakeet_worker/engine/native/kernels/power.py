"""The power of a spectrum, with columns of zeros up to a multiple of eight for the product."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from parakeet_worker.engine.native.kernels.launcher import launch as start
from parakeet_worker.engine.native.kernels.tiles import Tile


def launch(spectrum: Tensor, columns: int, *, tile: Tile) -> Tensor:
    """(P, bins, 2) float32 real and imaginary parts -> (P, columns); columns >= bins."""
    count, bins = spectrum.shape[:2]
    result = torch.empty(count, columns, dtype=torch.float32, device=spectrum.device)
    start(
        _power,
        (triton.cdiv(count * columns, tile.rows),),
        spectrum,
        result,
        count * columns,
        BINS=bins,
        COLUMNS=columns,
        BLOCK=tile.rows,
        num_warps=tile.warps,
    )
    return result


def reference(spectrum: Tensor, columns: int, *, tile: Tile | None = None) -> Tensor:  # noqa: ARG001
    """As `launch`, in plain PyTorch."""
    count, bins = spectrum.shape[:2]
    result = spectrum.new_zeros(count, columns)
    result[:, :bins] = spectrum.square().sum(2)
    return result


@triton.jit(do_not_specialize=["total"])
def _power(
    SPECTRUM,
    POWER,
    total,
    BINS: tl.constexpr,
    COLUMNS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    column = place % COLUMNS
    source = SPECTRUM + (place // COLUMNS * BINS + column) * 2
    valid = (place < total) & (column < BINS)
    real = tl.load(source, mask=valid, other=0.0)
    imaginary = tl.load(source + 1, mask=valid, other=0.0)
    tl.store(POWER + place, real * real + imaginary * imaginary, mask=place < total)
