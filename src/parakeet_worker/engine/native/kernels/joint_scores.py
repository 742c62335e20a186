"""Output layer of the joint network, reduced per block of columns as soon as it is computed.

The logits are never written: each block of `tile.columns` tokens leaves what a log-softmax needs
and the best token by logit plus the row's logit bias. `search_step` combines the blocks. The last
block contains the durations, of which only the index of the best one is kept.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional

from parakeet_worker.engine.native.kernels.launcher import launch_kernel
from parakeet_worker.engine.native.kernels.search_rows import SearchRows
from parakeet_worker.engine.native.kernels.tiles import Tile


@dataclass(frozen=True, slots=True, eq=False)
class Partials:
    """Reductions per block and row: (blocks + 1, R), float32 except for the indices."""

    maximum: Tensor
    """Maximum of the logits."""
    exp_sum: Tensor
    """Sum of exp(logit - maximum); not finite if any logit is not."""
    best_score: Tensor
    """Maximum of logit plus logit bias."""
    best_logit: Tensor
    """Logit of the token with the best score."""
    best_index: Tensor
    """Int32: that token; in the last block, which has no other results, the best duration."""


def blocks(tokens: int, tile: Tile) -> int:
    """Blocks of columns that cover the tokens."""
    return -(-tokens // tile.columns)


def launch(
    rows: SearchRows,
    states: Tensor,
    weight: Tensor,
    bias: Tensor,
    logit_bias: Tensor,
    partials: Partials,
    *,
    tokens: int,
    tile: Tile,
) -> None:
    """Write the reductions of all rows to `partials`; those of finished rows are undefined.

    `states` is (R, J) and `weight` (tokens + durations, J), float16 or float32; `bias` is float32.
    `tokens` counts the blank. `logit_bias` is (slots, blocks * tile.columns) float32; slot 0 is
    all zero and not read; minus infinity forbids a token.
    """
    tile = tile.for_dtype(weight.dtype)
    (count, width), (outputs, _) = states.shape, weight.shape
    assert outputs - tokens <= tile.columns
    assert logit_bias.shape[1] == blocks(tokens, tile) * tile.columns
    launch_kernel(
        _joint_scores,
        (blocks(tokens, tile) + 1, triton.cdiv(count, tile.rows)),
        rows.lengths,
        rows.frames,
        rows.slots,
        states,
        weight,
        bias,
        logit_bias,
        partials.maximum,
        partials.exp_sum,
        partials.best_score,
        partials.best_logit,
        partials.best_index,
        count,
        WIDTH=width,
        TOKENS=tokens,
        BLOCKS=len(partials.best_score) - 1,
        OUTPUTS=outputs,
        BLOCK_ROWS=tile.rows,
        BLOCK_COLUMNS=tile.columns,
        BLOCK_DEPTH=tile.depth,
        num_warps=tile.warps,
        num_stages=tile.stages,
    )


def reference(
    rows: SearchRows,
    states: Tensor,
    weight: Tensor,
    bias: Tensor,
    logit_bias: Tensor,
    partials: Partials,
    *,
    tokens: int,
    tile: Tile,
) -> None:
    """Same as `launch`, in plain PyTorch."""
    logits = states.float() @ weight.float().t() + bias
    padding = (0, logit_bias.shape[1] - tokens)
    padded = functional.pad(logits[:, :tokens], padding, value=float("-inf"))
    shape = (len(logits), -1, tile.columns)
    by_block = padded.view(shape)
    maximum = by_block.amax(dim=2)
    best_score, index = (padded + logit_bias[rows.slots]).view(shape).max(dim=2)
    first_column = torch.arange(
        0, by_block.shape[1] * tile.columns, tile.columns, device=index.device
    )
    results = (
        (partials.maximum, maximum),
        (partials.exp_sum, (by_block - maximum.unsqueeze(2)).exp().sum(dim=2)),
        (partials.best_score, best_score),
        (partials.best_logit, by_block.gather(2, index.unsqueeze(2)).squeeze(2)),
        (partials.best_index, index + first_column),
    )
    for buffer, values in results:
        buffer[:-1].copy_(values.t())
    partials.best_index[-1].copy_(logits[:, tokens:].argmax(dim=1))


@triton.jit(do_not_specialize=["rows"])
def _joint_scores(
    lengths_ptr,
    frames_ptr,
    slots_ptr,
    states_ptr,
    weight_ptr,
    bias_ptr,
    logit_bias_ptr,
    maximum_ptr,
    exp_sum_ptr,
    best_score_ptr,
    best_logit_ptr,
    best_index_ptr,
    rows,
    WIDTH: tl.constexpr,
    TOKENS: tl.constexpr,
    BLOCKS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
    BLOCK_DEPTH: tl.constexpr,
):
    block = tl.program_id(0)
    is_durations = block == BLOCKS
    row = tl.program_id(1) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    in_rows = row < rows
    first_column = tl.where(is_durations, TOKENS, block * BLOCK_COLUMNS)
    column = first_column + tl.arange(0, BLOCK_COLUMNS)
    in_columns = column < tl.where(is_durations, OUTPUTS, TOKENS)
    frame = tl.load(frames_ptr + row, mask=in_rows, other=0)
    active = frame < tl.load(lengths_ptr + row, mask=in_rows, other=0)
    logits = tl.zeros((BLOCK_ROWS, BLOCK_COLUMNS), tl.float32)
    logits += tl.load(bias_ptr + column, mask=in_columns, other=0.0)[None, :]
    k_range = tl.arange(0, BLOCK_DEPTH)
    if tl.max(active.to(tl.int32), 0) != 0:
        for first in range(0, WIDTH, BLOCK_DEPTH):
            k = first + k_range
            states = tl.load(
                states_ptr + row[:, None] * WIDTH + k[None, :],
                mask=in_rows[:, None] & (k < WIDTH)[None, :],
                other=0.0,
            )
            weight = tl.load(
                weight_ptr + column[None, :] * WIDTH + k[:, None],
                mask=in_columns[None, :] & (k < WIDTH)[:, None],
                other=0.0,
            )
            logits = tl.dot(states, weight, logits, input_precision="ieee")
    logits = tl.where(in_columns[None, :], logits, float("-inf"))
    offset = block * rows + row
    if is_durations:
        _, index = tl.max(logits, 1, return_indices=True)
        tl.store(best_index_ptr + offset, index, mask=in_rows)
    else:
        maximum, index = tl.max(logits, 1, return_indices=True)
        exp_sum = tl.sum(tl.exp(logits - maximum[:, None]), 1)
        best_score, best_logit = maximum, maximum
        slot = tl.load(slots_ptr + row, mask=in_rows, other=0)
        if tl.max(slot, 0) != 0:
            # Not `column`: the compiler cannot prove its alignment and would emit scalar loads.
            token = block * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)
            logit_bias = tl.load(
                logit_bias_ptr + slot[:, None] * (BLOCKS * BLOCK_COLUMNS) + token[None, :],
                mask=(slot != 0)[:, None],
                other=0.0,
            )
            best_score, index = tl.max(logits + logit_bias, 1, return_indices=True)
            is_best = tl.arange(0, BLOCK_COLUMNS)[None, :] == index[:, None]
            best_logit = tl.sum(tl.where(is_best, logits, 0.0), 1)
        tl.store(maximum_ptr + offset, maximum, mask=in_rows)
        tl.store(exp_sum_ptr + offset, exp_sum, mask=in_rows)
        tl.store(best_score_ptr + offset, best_score, mask=in_rows)
        tl.store(best_logit_ptr + offset, best_logit, mask=in_rows)
        tl.store(best_index_ptr + offset, index + first_column, mask=in_rows)
