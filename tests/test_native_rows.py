"""The layout of packed rows gives the position of every chunk; chunks do not overlap."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from parakeet_worker.engine.native.rows import (
    Group,
    Plan,
    layout_words,
    rows_of,
    view_layout,
    write_layout,
)

CPU = torch.device("cpu")


@given(samples=st.integers(0, 160 * 400))
def test_frames_and_tokens_are_those_of_the_subsampling(samples: int) -> None:
    """One frame per hop, and three halvings that round up to tokens."""
    plan = Plan((samples,), 160)
    frames = samples // 160
    (tokens,) = plan.tokens
    assert plan.frames == (frames,)
    for _ in range(3):
        frames = (frames - 1) // 2 + 1
    assert tokens == frames


def test_rows_are_stored_end_to_end() -> None:
    """Tokens and samples of each row start at the end of the previous row."""
    samples = (1600, 0, 159, 12_801, 320)
    rows = rows_of(Plan(samples, 160), [1.0, 0.5, 0.25, 2.0, 3.0], CPU)
    assert rows.offsets.tolist() == [0, 2, 2, 2, 12, 13]
    assert rows.row_of.tolist() == [0] * 2 + [3] * 10 + [4]
    assert rows.sample_offsets.tolist() == [0, 1600, 1600, 1759, 14_560]
    assert rows.samples.tolist() == list(samples)
    assert rows.frames.tolist() == [10, 0, 0, 80, 2]
    assert rows.scales.tolist() == [1.0, 0.5, 0.25, 2.0, 3.0]
    assert (rows.count, rows.tokens, rows.longest) == (5, 13, 10)


def test_additional_rows_are_empty_and_additional_tokens_belong_to_no_row() -> None:
    """A graph's bucket is larger than its batch."""
    words = np.full(layout_words(4, 8), 77, np.int32)
    write_layout(Plan((2560,), 160), [1.0], 4, 8, words)
    rows = view_layout(torch.from_numpy(words), 4, 8, 8, (Group(0, 8),))
    assert rows.offsets.tolist() == [0, 2, 2, 2, 2]
    assert rows.row_of.tolist() == [0, 0] + [-1] * 6
    for empty in (rows.frames, rows.samples, rows.scales, rows.sample_offsets):
        assert not empty[1:].any()


@given(count=st.integers(1, 40))
def test_every_section_is_aligned_to_16_bytes(count: int) -> None:
    """Kernels are compiled for such pointers only."""
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
    """Up to the limit; a longer row alone; the last group includes tokens without a row."""
    plan = Plan(tuple(count * 1280 for count in tokens), 160)
    assert plan.groups(limit, total) == tuple(Group(*group) for group in groups)
