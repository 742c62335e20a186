"""The decision of a step equals plain PyTorch, in every bit but the logarithm's last."""

import math

import pytest
import torch
from comparing import assert_close
from search_state import copied, rows_at_random

from parakeet_worker.engine.native.kernels import search_step
from parakeet_worker.engine.native.kernels.joint_scores import Partials
from parakeet_worker.engine.native.kernels.search_rows import FAILED, SearchRows
from parakeet_worker.engine.native.kernels.tiles import Tile

BLANK = 40
DURATIONS = torch.tensor([0, 1, 2, 3, 4], dtype=torch.int32)


def partials_at_random(rows: int, blocks: int, seed: int) -> Partials:
    """Of tokens 0 to 40 where half of the rows find the blank best."""
    generator = torch.Generator().manual_seed(seed)
    shape = (blocks + 1, rows)
    maximum = torch.randn(shape, generator=generator)
    indices = torch.randint(0, BLANK, shape, generator=generator, dtype=torch.int32)
    blank = torch.rand(rows, generator=generator) < 0.5
    indices[:-1, blank] = BLANK
    indices[-1] = torch.randint(0, 5, (rows,), generator=generator)
    return Partials(
        maximum=maximum,
        total=1 + torch.rand(shape, generator=generator),
        best=maximum + torch.randn(shape, generator=generator),
        raw=maximum - torch.rand(shape, generator=generator),
        indices=indices,
    )


def both(
    rows: SearchRows, partials: Partials, tile: Tile
) -> tuple[tuple[SearchRows, torch.Tensor, torch.Tensor], ...]:
    found = []
    for step in (search_step.launch, search_step.reference):
        mine = copied(rows)
        record = torch.zeros(int(rows.lengths.sum()) + 1, 4, dtype=torch.int32)
        left = torch.full((-(-len(rows.frames) // tile.rows),), -9, dtype=torch.int32)
        arguments = (mine, partials, DURATIONS, record, left)
        step(*arguments, blank=BLANK, max_symbols=3, tile=tile)
        found.append((mine, record[:-1], left))
    return tuple(found)


@pytest.mark.parametrize("tile", [Tile(rows=16), Tile(rows=4)])
@pytest.mark.parametrize("lengths", [[1], [0], [5, 0, 1, 30, 9] * 7, [3] * 16])
@pytest.mark.parametrize("blocks", [1, 5, 8])
def test_every_row_moves_as_in_the_reference(lengths: list[int], blocks: int, tile: Tile) -> None:
    """Blank or not, stuck or not, full or not, ended or not."""
    seen = 0
    for seed in range(6):
        rows = rows_at_random(lengths, seed)
        partials = partials_at_random(len(lengths), blocks, seed)
        (mine, record, ahead), (theirs, right, expected) = both(rows, partials, tile)
        for name in SearchRows.__slots__:
            assert torch.equal(getattr(mine, name), getattr(theirs, name)), name
        assert torch.equal(ahead, expected)
        assert torch.equal(record[:, :3], right[:, :3])
        assert_close(*(each[:, 3].view(torch.float32) for each in (record, right)), roundings=16)
        seen += int((right[:, 3] != 0).sum())
    assert seen or sum(lengths) <= 1


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_row_whose_scores_are_not_finite_has_ended(value: float) -> None:
    """Reported by its count; nothing is recorded."""
    rows = rows_at_random([8, 8, 8])
    rows.frames.fill_(2)
    partials = partials_at_random(3, 5, seed=1)
    partials.total[3, 1] = value
    partials.indices[:, 1] = 127
    for found, record, left in both(rows, partials, Tile(rows=16)):
        assert found.counts[1] == FAILED
        assert found.frames[1] == 8
        assert found.emitted[1] == 0
        assert not record[8:16].any()
        assert left.tolist() == [int((found.lengths - found.frames).max())]
