"""Tile sizes of each kernel by compute capability: a table, no autotuning at start."""

from dataclasses import dataclass, replace

import torch


@dataclass(frozen=True, slots=True)
class Tile:
    """The block of the output that one program computes."""

    rows: int
    """Rows of the output (tokens, frames, points or utterances)."""
    columns: int = 0
    """Columns of the output, or keys that attention reads per iteration; 0 means all of them."""
    depth: int = 0
    """Elements of the inner dimension that a product reads per iteration."""
    warps: int = 4
    stages: int = 3

    def for_dtype(self, dtype: torch.dtype) -> "Tile":
        """Tile of a product in `dtype`: smaller for float32, which has no tensor cores.

        The columns stay, since the layout of buffers between kernels depends on them.
        """
        if dtype != torch.float32:
            return self
        return replace(self, rows=min(self.rows, 32), depth=min(self.depth, 16))


@dataclass(frozen=True, slots=True)
class Tiles:
    """One `Tile` for each kernel."""

    frames: Tile = Tile(rows=4)
    power: Tile = Tile(rows=1024)
    mel_norm: Tile = Tile(rows=64, columns=16)
    subsampling_first: Tile = Tile(rows=8)
    subsampling_next: Tile = Tile(rows=16)
    residual_norm: Tile = Tile(rows=1)
    position_query: Tile = Tile(rows=4)
    attention: Tile = Tile(rows=128, columns=64, warps=8, stages=2)
    glu: Tile = Tile(rows=4)
    depthwise: Tile = Tile(rows=16, columns=256)
    product: Tile = Tile(rows=128, columns=128, depth=64, warps=8, stages=3)
    lstm: Tile = Tile(rows=64, columns=16, depth=64)
    joint_hidden: Tile = Tile(rows=64, columns=16, depth=64)
    joint_scores: Tile = Tile(rows=64, columns=128, depth=64)
    search_step: Tile = Tile(rows=16)


_HOPPER = Tiles()
# With Hopper's tiles the other cards would spill hundreds of bytes per thread: see
# scripts/check-kernels.
_OTHERS = replace(_HOPPER, product=Tile(rows=128, columns=64, depth=64, warps=8, stages=3))
_AMPERE = replace(_OTHERS, attention=Tile(rows=64, columns=32, warps=4, stages=2))
_BY_CAPABILITY = {
    (8, 0): _AMPERE,
    (8, 6): _AMPERE,
    (8, 9): _AMPERE,
    (9, 0): _HOPPER,
    (10, 0): replace(_OTHERS, attention=Tile(rows=128, columns=32, warps=8, stages=2)),
    (12, 0): replace(_OTHERS, attention=Tile(rows=64, columns=64, warps=8, stages=2)),
}
CAPABILITIES = tuple(_BY_CAPABILITY)
"""Compute capabilities that kernels are compiled and checked for ahead of time."""

_SHARED_KIB = {(8, 0): 163, (8, 6): 99, (8, 9): 99, (9, 0): 227, (10, 0): 227, (12, 0): 99}


def shared_bytes(capability: tuple[int, int]) -> int:
    """Shared memory available to one program: "CUDA C++ Programming Guide", table 24."""
    return 1024 * _SHARED_KIB[capability]


def tiles_for(capability: tuple[int, int]) -> Tiles:
    """Tiles of the nearest listed capability that is not above `capability`; at least (8, 0)."""
    supported = [listed for listed in CAPABILITIES if listed <= capability]
    return _BY_CAPABILITY[max(supported)]
