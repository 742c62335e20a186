"""The decision of one step of the greedy TDT search: what every row emits, and where it moves."""

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional

from parakeet_worker.engine.native.kernels.joint_scores import Partials
from parakeet_worker.engine.native.kernels.launcher import launch as start
from parakeet_worker.engine.native.kernels.search_rows import FAILED, SearchRows
from parakeet_worker.engine.native.kernels.tiles import Tile

COLUMNS = 4
"""Of a record: token, frame, duration, and the bits of the float32 log-probability."""


def launch(
    rows: SearchRows,
    partials: Partials,
    durations: Tensor,
    record: Tensor,
    left: Tensor,
    *,
    blank: int,
    max_symbols: int,
    tile: Tile,
) -> None:
    """Advance all rows in place, as `decoder.GreedyDecoder` defines it.

    `durations` is (D,) int32. What a row emits is written to (N + 1, 4) int32 `record`, from the
    row's first frame on, as far as it has room; the last line is a place for what is dropped.
    `left` is (ceil(R / tile.rows),) int32: the most frames that a row of each tile has left.
    """
    (count,) = rows.frames.shape
    blocks = len(partials.best) - 1
    start(
        _search_step,
        (triton.cdiv(count, tile.rows),),
        rows.offsets,
        rows.lengths,
        rows.frames,
        rows.counts,
        rows.repeats,
        rows.tokens,
        rows.emitted,
        partials.maximum,
        partials.total,
        partials.best,
        partials.raw,
        partials.indices,
        durations,
        record,
        left,
        count,
        BLOCKS=blocks,
        PADDED=triton.next_power_of_2(blocks),
        DURATIONS=len(durations),
        BLANK=blank,
        MAX_SYMBOLS=max_symbols,
        FAILED_COUNT=FAILED,
        ROWS=tile.rows,
        num_warps=tile.warps,
        num_stages=tile.stages,
    )


def reference(
    rows: SearchRows,
    partials: Partials,
    durations: Tensor,
    record: Tensor,
    left: Tensor,
    *,
    blank: int,
    max_symbols: int,
    tile: Tile,
) -> None:
    """As `launch`, in plain PyTorch."""
    maximum, total, best, raw, indices = (
        part[:-1]
        for part in (
            partials.maximum,
            partials.total,
            partials.best,
            partials.raw,
            partials.indices,
        )
    )
    top = maximum.amax(dim=0)
    mass = (total * (maximum - top).exp()).sum(dim=0)
    at = best.argmax(dim=0, keepdim=True)
    token, score = indices.gather(0, at).squeeze(0), raw.gather(0, at).squeeze(0)
    duration = durations[partials.indices[-1].clamp(max=len(durations) - 1)]
    finite = mass.isfinite()
    active = rows.frames < rows.lengths
    emitted = active & finite & (token != blank)
    written = emitted & (rows.counts < rows.lengths)
    place = torch.where(written, rows.offsets + rows.counts, len(record) - 1)
    bits = (score - top - mass.log()).view(torch.int32)
    record[place] = torch.stack((token, rows.frames, duration, bits), dim=1)
    _move(rows, active & finite, emitted, duration, max_symbols)
    failed = active & ~finite
    rows.counts.copy_(torch.where(failed, FAILED, rows.counts + emitted))
    rows.frames.copy_(torch.where(failed, rows.lengths, rows.frames))
    rows.tokens.copy_(token)
    rows.emitted.copy_(emitted)
    ahead = (rows.lengths - rows.frames).clamp(min=0)
    padded = functional.pad(ahead, (0, -len(ahead) % tile.rows))
    left.copy_(padded.view(-1, tile.rows).amax(dim=1))


def _move(
    rows: SearchRows, active: Tensor, emitted: Tensor, duration: Tensor, max_symbols: int
) -> None:
    moved = torch.where(emitted, duration, duration.clamp(min=1))
    repeats = torch.where(emitted & (moved == 0), rows.repeats + 1, 0)
    stuck = repeats >= max_symbols
    rows.repeats.copy_(repeats.masked_fill(stuck, 0))
    rows.frames.copy_(torch.where(active, rows.frames + moved + stuck, rows.frames))


@triton.jit(do_not_specialize=["rows"])
def _search_step(
    OFFSETS,
    LENGTHS,
    FRAMES,
    COUNTS,
    REPEATS,
    TOKENS,
    EMITTED,
    MAXIMUM,
    TOTAL,
    BEST,
    RAW,
    INDICES,
    DURATION_OF,
    RECORD,
    LEFT,
    rows,
    BLOCKS: tl.constexpr,
    PADDED: tl.constexpr,
    DURATIONS: tl.constexpr,
    BLANK: tl.constexpr,
    MAX_SYMBOLS: tl.constexpr,
    FAILED_COUNT: tl.constexpr,
    ROWS: tl.constexpr,
):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    in_rows = row < rows
    block = tl.arange(0, PADDED)
    place = block[:, None] * rows + row[None, :]
    valid = (block < BLOCKS)[:, None] & in_rows[None, :]
    # Of blocks that do not exist. It is finite: their weight is exp(least - top), which is zero.
    least = -3.0e38
    maximum = tl.load(MAXIMUM + place, mask=valid, other=least)
    total = tl.load(TOTAL + place, mask=valid, other=0.0)
    best = tl.load(BEST + place, mask=valid, other=least)
    _, at = tl.max(best, 0, return_indices=True)
    chosen = block[:, None] == at[None, :]
    raw = tl.sum(tl.where(chosen, tl.load(RAW + place, mask=valid, other=0.0), 0.0), 0)
    token = tl.sum(tl.where(chosen, tl.load(INDICES + place, mask=valid, other=0), 0), 0)
    top = tl.max(maximum, 0)
    mass = tl.sum(tl.where(valid, total * tl.exp(maximum - top[None, :]), 0.0), 0)
    # An index of scores that are no numbers may lie outside.
    index = tl.load(INDICES + BLOCKS * rows + row, mask=in_rows, other=0)
    duration = tl.load(DURATION_OF + tl.minimum(index, DURATIONS - 1))

    frame = tl.load(FRAMES + row, mask=in_rows, other=0)
    length = tl.load(LENGTHS + row, mask=in_rows, other=0)
    count = tl.load(COUNTS + row, mask=in_rows, other=0)
    active = frame < length
    finite = mass < float("inf")  # false for what is not a number, too
    failed = active & (finite == 0)
    emitted = active & finite & (token != BLANK)

    line = tl.load(OFFSETS + row, mask=in_rows, other=0) + count
    record = RECORD + line.to(tl.int64) * 4
    written = emitted & (count < length)
    tl.store(record, token, mask=written)
    tl.store(record + 1, frame, mask=written)
    tl.store(record + 2, duration, mask=written)
    logprob = raw - top - tl.log(tl.where(in_rows, mass, 1.0))
    tl.store(record + 3, logprob.to(tl.int32, bitcast=True), mask=written)

    moved = tl.where(emitted, duration, tl.maximum(duration, 1))
    stayed = emitted & (moved == 0)
    repeats = tl.where(stayed, tl.load(REPEATS + row, mask=in_rows, other=0) + 1, 0)
    stuck = repeats >= MAX_SYMBOLS
    frame += tl.where(active, moved + stuck.to(tl.int32), 0)
    frame = tl.where(failed, length, frame)
    count = tl.where(failed, FAILED_COUNT, count + emitted.to(tl.int32))
    tl.store(FRAMES + row, frame, mask=in_rows)
    tl.store(COUNTS + row, count, mask=in_rows)
    tl.store(REPEATS + row, tl.where(stuck, 0, repeats), mask=in_rows)
    tl.store(TOKENS + row, token, mask=in_rows)
    tl.store(EMITTED + row, emitted.to(tl.int32), mask=in_rows)
    tl.store(LEFT + tl.program_id(0), tl.max(tl.maximum(length - frame, 0), 0))
