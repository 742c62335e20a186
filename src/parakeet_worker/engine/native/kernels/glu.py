"""The gated linear unit: the first half of each row times the sigmoid of the second."""

import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional

from parakeet_worker.engine.native.kernels.launcher import launch as start
from parakeet_worker.engine.native.kernels.tiles import Tile


def launch(states: Tensor, *, tile: Tile) -> Tensor:
    """(N, 2 C) -> (N, C)."""
    rows, width = states.shape[0], states.shape[1] // 2
    gated = states.new_empty(rows, width)
    start(
        _glu,
        (triton.cdiv(rows, tile.rows),),
        states,
        gated,
        rows,
        WIDTH=width,
        BLOCK=triton.next_power_of_2(width),
        ROWS=tile.rows,
        num_warps=tile.warps,
    )
    return gated


def reference(states: Tensor, *, tile: Tile | None = None) -> Tensor:  # noqa: ARG001
    """As `launch`, in plain PyTorch."""
    return functional.glu(states.float(), dim=1).to(states.dtype)


@triton.jit(do_not_specialize=["rows"])
def _glu(STATES, GATED, rows, WIDTH: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr):
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)[:, None]
    column = tl.arange(0, BLOCK)[None, :]
    valid = (row < rows) & (column < WIDTH)
    place = STATES + row * 2 * WIDTH + column
    value = tl.load(place, mask=valid, other=0.0).to(tl.float32)
    gate = tl.load(place + WIDTH, mask=valid, other=0.0).to(tl.float32)
    gated = value * tl.sigmoid(gate)
    tl.store(GATED + row * WIDTH + column, gated.to(GATED.dtype.element_ty), mask=valid)
