"""The layout of packed rows says where every chunk lies, and nothing else lies there."""

import numpy as np
import pytest
import torch

from parakeet_worker.engine.native.rows import (
    Group,
    Plan,
    layout_words,
    rows_of,
    view_layout,
    write_layout,
)

CPU = torch.device("cpu")


def test_frames_and_tokens_are_those_of_the_subsampling() -> None:
    """A hop makes a frame, and three halvings that round up make tokens of frames."""
    for samples in range(0, 160 * 40, 53):
        plan = Plan((samples,), 160)
        frames = samples // 160
        (tokens,) = plan.tokens
        assert plan.frames == (frames,)
        for _ in range(3):
            frames = (frames - 1) // 2 + 1
        assert tokens == frames


def test_rows_lie_end_to_end() -> None:
    """Tokens and samples of each row begin where those of the one before end."""
    samples = (1600, 0, 159, 12_801, 320)
    rows = rows_of(Plan(samples, 160), [1.0, 0.5, 0.25, 2.0, 3.0], CPU)
    assert rows.offsets.tolist() == [0, 2, 2, 2, 12, 13]
    assert rows.row_of.tolist() == [0] * 2 + [3] * 10 + [4]
    assert rows.sample_offsets.tolist() == [0, 1600, 1600, 1759, 14_560]
    assert rows.samples.tolist() == list(samples)
    assert rows.frames.tolist() == [10, 0, 0, 80, 2]
    assert rows.scales.tolist() == [1.0, 0.5, 0.25, 2.0, 3.0]
    assert (rows.count, rows.tokens, rows.longest) == (5, 13, 10)


def test_a_larger_layout_has_empty_rows_and_tokens_of_none() -> None:
    """What a graph's bucket holds beyond its batch."""
    words = np.full(layout_words(4, 8), 77, np.int32)
    write_layout(Plan((2560,), 160), [1.0], 4, 8, words)
    rows = view_layout(torch.from_numpy(words), 4, 8, 8, (Group(0, 8),))
    assert rows.offsets.tolist() == [0, 2, 2, 2, 2]
    assert rows.row_of.tolist() == [0, 0] + [-1] * 6
    for empty in (rows.frames, rows.samples, rows.scales, rows.sample_offsets):
        assert not empty[1:].any()


def test_every_part_begins_at_a_multiple_of_16_bytes() -> None:
    """Kernels are compiled for such pointers alone."""
    for count in range(1, 10):
        rows = rows_of(Plan((1280,) * count, 160), [1.0] * count, CPU)
        base = rows.offsets.data_ptr()
        parts = (rows.frames, rows.sample_offsets, rows.samples, rows.scales, rows.row_of)
        assert all((part.data_ptr() - base) % 16 == 0 for part in parts)


@pytest.mark.parametrize(
    ("tokens", "limit", "total", "groups"),
    [
        ((), 4, 0, [(0, 0)]),
        ((3, 4, 2), 9, 9, [(0, 9)]),
        ((3, 4, 2), 6, 9, [(0, 3), (3, 6)]),
        ((3, 4, 2), 1, 9, [(0, 3), (3, 4), (7, 2)]),
        ((9, 1), 4, 16, [(0, 9), (9, 7)]),
        ((0, 3, 0), 2, 3, [(0, 3)]),
    ],
)
def test_groups_are_whole_rows_and_cover_all_tokens(
    tokens: tuple[int, ...], limit: int, total: int, groups: list[tuple[int, int]]
) -> None:
    """Up to the limit, a longer row by itself, the last with what belongs to no row."""
    plan = Plan(tuple(count * 1280 for count in tokens), 160)
    assert plan.groups(limit, total) == tuple(Group(*group) for group in groups)
