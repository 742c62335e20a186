"""Power spectrum, with zero columns up to a multiple of eight for the following product."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from parakeet_worker.engine.native.kernels.launcher import launch_kernel
from parakeet_worker.engine.native.kernels.tiles import Tile


def launch(spectrum: Tensor, columns: int, *, tile: Tile) -> Tensor:
    """(P, bins, 2) float32 real and imaginary parts -> (P, columns) float32; columns >= bins."""
    count, bins = spectrum.shape[:2]
    output = torch.empty(count, columns, dtype=torch.float32, device=spectrum.device)
    launch_kernel(
        _power,
        (triton.cdiv(count * columns, tile.rows),),
        spectrum,
        output,
        count * columns,
        BINS=bins,
        COLUMNS=columns,
        BLOCK=tile.rows,
        num_warps=tile.warps,
    )
    return output


def reference(spectrum: Tensor, columns: int, *, tile: Tile | None = None) -> Tensor:  # noqa: ARG001
    """Same as `launch`, in plain PyTorch."""
    count, bins = spectrum.shape[:2]
    output = spectrum.new_zeros(count, columns)
    output[:, :bins] = spectrum.square().sum(2)
    return output


@triton.jit(do_not_specialize=["total"])
def _power(
    spectrum_ptr,
    output_ptr,
    total,
    BINS: tl.constexpr,
    COLUMNS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    column = index % COLUMNS
    source_ptrs = spectrum_ptr + (index // COLUMNS * BINS + column) * 2
    mask = (index < total) & (column < BINS)
    real = tl.load(source_ptrs, mask=mask, other=0.0)
    imaginary = tl.load(source_ptrs + 1, mask=mask, other=0.0)
    tl.store(output_ptr + index, real * real + imaginary * imaginary, mask=index < total)
