"""Decision of one step of the greedy TDT search: what every row emits, and how far it advances."""

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional

from parakeet_worker.engine.native.kernels.joint_scores import Partials
from parakeet_worker.engine.native.kernels.launcher import launch_kernel
from parakeet_worker.engine.native.kernels.search_rows import FAILED, SearchRows
from parakeet_worker.engine.native.kernels.tiles import Tile

RECORD_COLUMNS = 4
"""Token, frame, duration, and the bits of the float32 log-probability."""


def launch(
    rows: SearchRows,
    partials: Partials,
    durations: Tensor,
    record: Tensor,
    remaining: Tensor,
    *,
    blank: int,
    max_symbols: int,
    tile: Tile,
) -> None:
    """Advance all rows in place, as `decoder.GreedyDecoder` defines it.

    `durations` is (D,) int32. Emissions are written to the (N + 1, 4) int32 `record`, from the
    row's first frame on, up to its capacity; the last line is the overflow slot. `remaining` is
    (ceil(R / tile.rows),) int32: the maximum of the remaining frames over each tile of rows.
    """
    (count,) = rows.frames.shape
    blocks = len(partials.best_score) - 1
    launch_kernel(
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
        partials.exp_sum,
        partials.best_score,
        partials.best_logit,
        partials.best_index,
        durations,
        record,
        remaining,
        count,
        BLOCKS=blocks,
        PADDED_BLOCKS=triton.next_power_of_2(blocks),
        DURATIONS=len(durations),
        BLANK=blank,
        MAX_SYMBOLS=max_symbols,
        FAILED_COUNT=FAILED,
        BLOCK_ROWS=tile.rows,
        num_warps=tile.warps,
        num_stages=tile.stages,
    )


def reference(
    rows: SearchRows,
    partials: Partials,
    durations: Tensor,
    record: Tensor,
    remaining: Tensor,
    *,
    blank: int,
    max_symbols: int,
    tile: Tile,
) -> None:
    """Same as `launch`, in plain PyTorch."""
    maximum, exp_sum, best_score, best_logit, best_index = (
        part[:-1]
        for part in (
            partials.maximum,
            partials.exp_sum,
            partials.best_score,
            partials.best_logit,
            partials.best_index,
        )
    )
    row_max = maximum.amax(dim=0)
    row_sum = (exp_sum * (maximum - row_max).exp()).sum(dim=0)
    block = best_score.argmax(dim=0, keepdim=True)
    token, logit = best_index.gather(0, block).squeeze(0), best_logit.gather(0, block).squeeze(0)
    duration = durations[partials.best_index[-1].clamp(max=len(durations) - 1)]
    finite = row_sum.isfinite()
    active = rows.frames < rows.lengths
    emitted = active & finite & (token != blank)
    recorded = emitted & (rows.counts < rows.lengths)
    overflow_slot = len(record) - 1
    index = torch.where(recorded, rows.offsets + rows.counts, overflow_slot)
    logprob_bits = (logit - row_max - row_sum.log()).view(torch.int32)
    record[index] = torch.stack((token, rows.frames, duration, logprob_bits), dim=1)
    _advance(rows, active & finite, emitted, duration, max_symbols)
    failed = active & ~finite
    rows.counts.copy_(torch.where(failed, FAILED, rows.counts + emitted))
    rows.frames.copy_(torch.where(failed, rows.lengths, rows.frames))
    rows.tokens.copy_(token)
    rows.emitted.copy_(emitted)
    frames_left = (rows.lengths - rows.frames).clamp(min=0)
    padded = functional.pad(frames_left, (0, -len(frames_left) % tile.rows))
    remaining.copy_(padded.view(-1, tile.rows).amax(dim=1))


def _advance(
    rows: SearchRows, active: Tensor, emitted: Tensor, duration: Tensor, max_symbols: int
) -> None:
    advance = torch.where(emitted, duration, duration.clamp(min=1))
    repeats = torch.where(emitted & (advance == 0), rows.repeats + 1, 0)
    at_limit = repeats >= max_symbols
    rows.repeats.copy_(repeats.masked_fill(at_limit, 0))
    rows.frames.copy_(torch.where(active, rows.frames + advance + at_limit, rows.frames))


@triton.jit(do_not_specialize=["rows"])
def _search_step(
    offsets_ptr,
    lengths_ptr,
    frames_ptr,
    counts_ptr,
    repeats_ptr,
    tokens_ptr,
    emitted_ptr,
    maximum_ptr,
    exp_sum_ptr,
    best_score_ptr,
    best_logit_ptr,
    best_index_ptr,
    durations_ptr,
    record_ptr,
    remaining_ptr,
    rows,
    BLOCKS: tl.constexpr,
    PADDED_BLOCKS: tl.constexpr,
    DURATIONS: tl.constexpr,
    BLANK: tl.constexpr,
    MAX_SYMBOLS: tl.constexpr,
    FAILED_COUNT: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
):
    row = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    in_rows = row < rows
    block = tl.arange(0, PADDED_BLOCKS)
    offset = block[:, None] * rows + row[None, :]
    mask = (block < BLOCKS)[:, None] & in_rows[None, :]
    # Padding blocks have a finite minimum: their weight exp(minimum - row_max) is zero.
    minimum = -3.0e38
    maximum = tl.load(maximum_ptr + offset, mask=mask, other=minimum)
    exp_sum = tl.load(exp_sum_ptr + offset, mask=mask, other=0.0)
    best_score = tl.load(best_score_ptr + offset, mask=mask, other=minimum)
    _, best_block = tl.max(best_score, 0, return_indices=True)
    is_best = block[:, None] == best_block[None, :]
    best_logit = tl.load(best_logit_ptr + offset, mask=mask, other=0.0)
    logit = tl.sum(tl.where(is_best, best_logit, 0.0), 0)
    best_index = tl.load(best_index_ptr + offset, mask=mask, other=0)
    token = tl.sum(tl.where(is_best, best_index, 0), 0)
    row_max = tl.max(maximum, 0)
    row_sum = tl.sum(tl.where(mask, exp_sum * tl.exp(maximum - row_max[None, :]), 0.0), 0)
    # The index of NaN scores may be out of range.
    index = tl.load(best_index_ptr + BLOCKS * rows + row, mask=in_rows, other=0)
    duration = tl.load(durations_ptr + tl.minimum(index, DURATIONS - 1))

    frame = tl.load(frames_ptr + row, mask=in_rows, other=0)
    length = tl.load(lengths_ptr + row, mask=in_rows, other=0)
    count = tl.load(counts_ptr + row, mask=in_rows, other=0)
    active = frame < length
    finite = row_sum < float("inf")  # false for NaN as well
    failed = active & (finite == 0)
    emitted = active & finite & (token != BLANK)

    line = tl.load(offsets_ptr + row, mask=in_rows, other=0) + count
    record_ptrs = record_ptr + line.to(tl.int64) * 4
    recorded = emitted & (count < length)
    tl.store(record_ptrs, token, mask=recorded)
    tl.store(record_ptrs + 1, frame, mask=recorded)
    tl.store(record_ptrs + 2, duration, mask=recorded)
    logprob = logit - row_max - tl.log(tl.where(in_rows, row_sum, 1.0))
    tl.store(record_ptrs + 3, logprob.to(tl.int32, bitcast=True), mask=recorded)

    advance = tl.where(emitted, duration, tl.maximum(duration, 1))
    stayed = emitted & (advance == 0)
    repeats = tl.where(stayed, tl.load(repeats_ptr + row, mask=in_rows, other=0) + 1, 0)
    at_limit = repeats >= MAX_SYMBOLS
    frame += tl.where(active, advance + at_limit.to(tl.int32), 0)
    frame = tl.where(failed, length, frame)
    count = tl.where(failed, FAILED_COUNT, count + emitted.to(tl.int32))
    tl.store(frames_ptr + row, frame, mask=in_rows)
    tl.store(counts_ptr + row, count, mask=in_rows)
    tl.store(repeats_ptr + row, tl.where(at_limit, 0, repeats), mask=in_rows)
    tl.store(tokens_ptr + row, token, mask=in_rows)
    tl.store(emitted_ptr + row, emitted.to(tl.int32), mask=in_rows)
    tl.store(remaining_ptr + tl.program_id(0), tl.max(tl.maximum(length - frame, 0), 0))
