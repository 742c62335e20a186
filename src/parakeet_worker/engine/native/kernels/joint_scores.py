"""The joint network's outputs, reduced per block of columns as soon as they are computed.

Scores are never written: of each block of `tile.columns` tokens there remain what a log-softmax
needs, and the best token by score plus the row's additive score. The next kernel combines the
blocks. The last block has the durations, of which only the best one's index is kept.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional

from parakeet_worker.engine.native.kernels.launcher import launch as start
from parakeet_worker.engine.native.kernels.search_rows import SearchRows
from parakeet_worker.engine.native.kernels.tiles import Tile


@dataclass(frozen=True, slots=True, eq=False)
class Partials:
    """Of every block and row; (blocks + 1, R), float32 but for the indices."""

    maximum: Tensor
    """The largest score."""
    total: Tensor
    """The sum of exp(score - maximum); not finite if any score is not."""
    best: Tensor
    """The largest score plus additive score."""
    raw: Tensor
    """The score of that token alone."""
    indices: Tensor
    """Int32: that token; in the last block, where nothing else is written, the best duration."""


def blocks(tokens: int, tile: Tile) -> int:
    """Blocks of columns that hold the tokens."""
    return -(-tokens // tile.columns)


def launch(
    rows: SearchRows,
    joined: Tensor,
    weight: Tensor,
    bias: Tensor,
    table: Tensor,
    partials: Partials,
    *,
    tokens: int,
    tile: Tile,
) -> None:
    """Write the partial results of all rows; those that have ended have some without a meaning.

    `joined` is (R, J) and `weight` (tokens + durations, J), float16 or float32; `bias` is float32.
    The `tokens` include the blank. `table` is (slots, blocks * tile.columns) float32: additive
    scores, of which slot 0 is all zero and not read; minus infinity forbids a token.
    """
    tile = tile.of_type(weight.dtype)
    (count, width), (outputs, _) = joined.shape, weight.shape
    assert outputs - tokens <= tile.columns
    assert table.shape[1] == blocks(tokens, tile) * tile.columns
    start(
        _joint_scores,
        (blocks(tokens, tile) + 1, triton.cdiv(count, tile.rows)),
        rows.lengths,
        rows.frames,
        rows.slots,
        joined,
        weight,
        bias,
        table,
        partials.maximum,
        partials.total,
        partials.best,
        partials.raw,
        partials.indices,
        count,
        WIDTH=width,
        TOKENS=tokens,
        BLOCKS=len(partials.best) - 1,
        OUTPUTS=outputs,
        ROWS=tile.rows,
        COLUMNS=tile.columns,
        DEPTH=tile.depth,
        num_warps=tile.warps,
        num_stages=tile.stages,
    )


def reference(
    rows: SearchRows,
    joined: Tensor,
    weight: Tensor,
    bias: Tensor,
    table: Tensor,
    partials: Partials,
    *,
    tokens: int,
    tile: Tile,
) -> None:
    """As `launch`, in plain PyTorch."""
    scores = joined.float() @ weight.float().t() + bias
    padding = (0, table.shape[1] - tokens)
    padded = functional.pad(scores[:, :tokens], padding, value=float("-inf"))
    shape = (len(scores), -1, tile.columns)
    raw = padded.view(shape)
    maximum = raw.amax(dim=2)
    best, at = (padded + table[rows.slots]).view(shape).max(dim=2)
    first = torch.arange(0, raw.shape[1] * tile.columns, tile.columns, device=at.device)
    found = (
        (partials.maximum, maximum),
        (partials.total, (raw - maximum.unsqueeze(2)).exp().sum(dim=2)),
        (partials.best, best),
        (partials.raw, raw.gather(2, at.unsqueeze(2)).squeeze(2)),
        (partials.indices, at + first),
    )
    for kept, values in found:
        kept[:-1].copy_(values.t())
    partials.indices[-1].copy_(scores[:, tokens:].argmax(dim=1))


@triton.jit(do_not_specialize=["rows"])
def _joint_scores(
    LENGTHS,
    FRAMES,
    SLOTS,
    JOINED,
    WEIGHT,
    BIAS,
    TABLE,
    MAXIMUM,
    TOTAL,
    BEST,
    RAW,
    INDICES,
    rows,
    WIDTH: tl.constexpr,
    TOKENS: tl.constexpr,
    BLOCKS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
):
    block = tl.program_id(0)
    durations = block == BLOCKS
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    in_rows = row < rows
    first_column = tl.where(durations, TOKENS, block * COLUMNS)
    column = first_column + tl.arange(0, COLUMNS)
    in_columns = column < tl.where(durations, OUTPUTS, TOKENS)
    frame = tl.load(FRAMES + row, mask=in_rows, other=0)
    active = frame < tl.load(LENGTHS + row, mask=in_rows, other=0)
    scores = tl.zeros((ROWS, COLUMNS), tl.float32)
    scores += tl.load(BIAS + column, mask=in_columns, other=0.0)[None, :]
    inner = tl.arange(0, DEPTH)
    if tl.max(active.to(tl.int32), 0) != 0:
        for first in range(0, WIDTH, DEPTH):
            k = first + inner
            states = tl.load(
                JOINED + row[:, None] * WIDTH + k[None, :],
                mask=in_rows[:, None] & (k < WIDTH)[None, :],
                other=0.0,
            )
            weight = tl.load(
                WEIGHT + column[None, :] * WIDTH + k[:, None],
                mask=in_columns[None, :] & (k < WIDTH)[:, None],
                other=0.0,
            )
            scores = tl.dot(states, weight, scores, input_precision="ieee")
    scores = tl.where(in_columns[None, :], scores, float("-inf"))
    place = block * rows + row
    if durations:
        _, at = tl.max(scores, 1, return_indices=True)
        tl.store(INDICES + place, at, mask=in_rows)
    else:
        maximum, at = tl.max(scores, 1, return_indices=True)
        total = tl.sum(tl.exp(scores - maximum[:, None]), 1)
        best, raw = maximum, maximum
        slot = tl.load(SLOTS + row, mask=in_rows, other=0)
        if tl.max(slot, 0) != 0:
            # Not `column`, which the compiler cannot see to be aligned: it would load one by one.
            token = block * COLUMNS + tl.arange(0, COLUMNS)
            added = tl.load(
                TABLE + slot[:, None] * (BLOCKS * COLUMNS) + token[None, :],
                mask=(slot != 0)[:, None],
                other=0.0,
            )
            best, at = tl.max(scores + added, 1, return_indices=True)
            here = tl.arange(0, COLUMNS)[None, :] == at[:, None]
            raw = tl.sum(tl.where(here, scores, 0.0), 1)
        tl.store(MAXIMUM + place, maximum, mask=in_rows)
        tl.store(TOTAL + place, total, mask=in_rows)
        tl.store(BEST + place, best, mask=in_rows)
        tl.store(RAW + place, raw, mask=in_rows)
        tl.store(INDICES + place, at + first_column, mask=in_rows)
