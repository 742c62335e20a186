"""The decision of a step equals plain PyTorch in every bit except the logarithm's last ones."""

import math

import pytest
import torch
from comparing import assert_close
from hypothesis import given, settings
from hypothesis import strategies as st
from search_state import clone, random_rows

from parakeet_worker.engine.native.kernels import search_step
from parakeet_worker.engine.native.kernels.joint_scores import Partials
from parakeet_worker.engine.native.kernels.search_rows import FAILED, SearchRows
from parakeet_worker.engine.native.kernels.tiles import Tile

BLANK = 40
DURATIONS = torch.tensor([0, 1, 2, 3, 4], dtype=torch.int32)


def random_partials(rows: int, blocks: int, seed: int) -> Partials:
    """Partial results of tokens 0 to 40; the blank has the best score in half of the rows."""
    generator = torch.Generator().manual_seed(seed)
    shape = (blocks + 1, rows)
    maximum = torch.randn(shape, generator=generator)
    best_index = torch.randint(0, BLANK, shape, generator=generator, dtype=torch.int32)
    blank = torch.rand(rows, generator=generator) < 0.5
    best_index[:-1, blank] = BLANK
    best_index[-1] = torch.randint(0, 5, (rows,), generator=generator)
    return Partials(
        maximum=maximum,
        exp_sum=1 + torch.rand(shape, generator=generator),
        best_score=maximum + torch.randn(shape, generator=generator),
        best_logit=maximum - torch.rand(shape, generator=generator),
        best_index=best_index,
    )


def run_both(
    rows: SearchRows, partials: Partials, tile: Tile
) -> tuple[tuple[SearchRows, torch.Tensor, torch.Tensor], ...]:
    """Rows, record and remaining frames, by the kernel and by its reference."""
    results = []
    for step in (search_step.launch, search_step.reference):
        state = clone(rows)
        record = torch.zeros(int(rows.lengths.sum()) + 1, 4, dtype=torch.int32)
        remaining = torch.full((-(-len(rows.frames) // tile.rows),), -9, dtype=torch.int32)
        arguments = (state, partials, DURATIONS, record, remaining)
        step(*arguments, blank=BLANK, max_symbols=3, tile=tile)
        results.append((state, record[:-1], remaining))
    return tuple(results)


@settings(max_examples=50)
@given(
    lengths=st.lists(st.sampled_from([0, 1, 3, 5, 9, 30]), min_size=1, max_size=36),
    blocks=st.sampled_from([1, 5, 8]),
    tile_rows=st.sampled_from([4, 16]),
    seed=st.integers(0, 1000),
)
def test_every_row_advances_as_in_the_reference(
    lengths: list[int], blocks: int, tile_rows: int, seed: int
) -> None:
    """Blank or token, at the symbol limit or below, at capacity or below, finished or not."""
    rows = random_rows(lengths, seed)
    partials = random_partials(len(lengths), blocks, seed)
    (state, record, remaining), (expected_state, expected_record, expected_remaining) = run_both(
        rows, partials, Tile(rows=tile_rows)
    )
    for name in SearchRows.__slots__:
        assert torch.equal(getattr(state, name), getattr(expected_state, name)), name
    assert torch.equal(remaining, expected_remaining)
    assert torch.equal(record[:, :3], expected_record[:, :3])
    logprobs, expected = (each[:, 3].view(torch.float32) for each in (record, expected_record))
    assert_close(logprobs, expected, roundings=16)


def test_random_rows_cover_every_case_of_a_step() -> None:
    """The comparison above is meaningful: tokens are recorded, dropped, and rows are finished."""
    rows = random_rows([5, 0, 1, 30, 9] * 7, seed=0)
    _, (state, record, _) = run_both(rows, random_partials(35, 5, seed=0), Tile(rows=16))
    emitted = state.emitted != 0
    assert record[:, 3].any()
    assert (emitted & (rows.counts >= rows.lengths)).any()
    assert (emitted & (state.frames == rows.frames)).any()
    assert (rows.frames >= rows.lengths).any()


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_row_with_non_finite_scores_fails(value: float) -> None:
    """Its count is `FAILED`, and nothing is recorded."""
    rows = random_rows([8, 8, 8])
    rows.frames.fill_(2)
    partials = random_partials(3, 5, seed=1)
    partials.exp_sum[3, 1] = value
    partials.best_index[:, 1] = 127
    for state, record, remaining in run_both(rows, partials, Tile(rows=16)):
        assert state.counts[1] == FAILED
        assert state.frames[1] == 8
        assert state.emitted[1] == 0
        assert not record[8:16].any()
        assert remaining.tolist() == [int((state.lengths - state.frames).max())]
