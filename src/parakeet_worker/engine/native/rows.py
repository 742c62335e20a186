"""Layout of a batch in packed tensors: chunks end to end, without padding.

A row is one chunk. Its tokens (encoder frames of 80 ms) start at `offsets[row]`; its mel frames
start at 8 times that offset, and its frames between the convolutions at 4 and 2 times, since three
halvings that round up never need more space.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

FACTOR = 8
"""Mel frames per token; packed rows support this subsampling only."""

_ALIGNMENT_WORDS = 4  # sections start at multiples of 16 bytes, as kernels require
_NO_LIMIT = 1 << 30

Words = TypeVar("Words", npt.NDArray[np.int32], Tensor)


@dataclass(frozen=True, slots=True)
class Group:
    """Adjacent whole rows that the subsampling computes together."""

    first: int
    """First token."""
    tokens: int


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """The layout of a batch of R rows on one device; all tensors but `scales` are int32."""

    offsets: Tensor
    """(R + 1,) first token of each row, and the end of the last row."""
    frames: Tensor
    """(R,) mel frames of each row."""
    sample_offsets: Tensor
    """(R,) first sample of each row."""
    samples: Tensor
    """(R,) samples of each row."""
    scales: Tensor
    """(R,) float32 factor per row that maps samples to a full scale of 1.0."""
    row_of: Tensor
    """(N,) row of each token; -1 for tokens beyond the last row, whose values are undefined."""
    longest: int
    """Upper bound of tokens per row, which launch grids are computed from."""
    groups: tuple[Group, ...]
    """All tokens, in parts that fit the subsampling's memory."""

    @property
    def count(self) -> int:
        """R."""
        return len(self.frames)

    @property
    def tokens(self) -> int:
        """N."""
        return len(self.row_of)


@dataclass(frozen=True, slots=True)
class Plan:
    """The layout of a batch as plain numbers, on the host."""

    samples: tuple[int, ...]
    """Samples of each row."""
    hop_samples: int

    @property
    def frames(self) -> tuple[int, ...]:
        """Mel frames of each row."""
        return tuple(count // self.hop_samples for count in self.samples)

    @property
    def tokens(self) -> tuple[int, ...]:
        """Tokens of each row: mel frames halved three times, rounded up."""
        return tuple(-(-frames // FACTOR) for frames in self.frames)

    def groups(self, limit_tokens: int, total_tokens: int) -> tuple[Group, ...]:
        """Rows in groups of at most `limit_tokens`; a longer row forms a group of its own.

        The last group extends to `total_tokens`, with tokens that belong to no row.
        """
        groups: list[Group] = []
        first = end = 0
        for tokens in self.tokens:
            if tokens and end > first and end + tokens - first > limit_tokens:
                groups.append(Group(first, end - first))
                first = end
            end += tokens
        return (*groups, Group(first, total_tokens - first))


def layout_words(rows: int, tokens: int) -> int:
    """Size of the int32 array that `write_layout` fills, for a number of rows and tokens."""
    return sum(_aligned(length) for length in _lengths(rows, tokens))


def write_layout(
    plan: Plan, scales: Sequence[float], rows: int, tokens: int, out: npt.NDArray[np.int32]
) -> None:
    """Write the layout into the int32 array `out`, which `view_layout` reads.

    `rows` and `tokens` may exceed those of `plan`: additional rows are empty, additional tokens
    belong to no row.
    """
    offsets, frames, sample_offsets, samples, scale, row_of = _sections(out, rows, tokens)
    count, used = len(plan.samples), sum(plan.tokens)
    for section, fill in ((offsets, used), (frames, 0), (samples, 0), (scale, 0), (row_of, -1)):
        section.fill(fill)
    offsets[0] = 0
    offsets[1 : count + 1] = np.cumsum(plan.tokens)
    frames[:count] = plan.frames
    samples[:count] = plan.samples
    sample_offsets.fill(0)
    sample_offsets[1:count] = np.cumsum(plan.samples[:-1])
    scale[:count] = np.asarray(scales, np.float32).view(np.int32)
    row_of[:used] = np.repeat(np.arange(count, dtype=np.int32), plan.tokens)


def view_layout(
    words: Tensor, rows: int, tokens: int, longest: int, groups: tuple[Group, ...]
) -> Rows:
    """Views of the int32 tensor `words`, on any device, which `write_layout` has written."""
    offsets, frames, sample_offsets, samples, scales, row_of = _sections(words, rows, tokens)
    return Rows(
        offsets=offsets,
        frames=frames,
        sample_offsets=sample_offsets,
        samples=samples,
        scales=scales.view(torch.float32),
        row_of=row_of,
        longest=longest,
        groups=groups,
    )


def rows_of(
    plan: Plan, scales: Sequence[float], device: torch.device, group_tokens: int = _NO_LIMIT
) -> Rows:
    """The layout of a batch on `device`, without additional rows or tokens."""
    rows, tokens = len(plan.samples), sum(plan.tokens)
    words = np.empty(layout_words(rows, tokens), np.int32)
    write_layout(plan, scales, rows, tokens, words)
    on_device = torch.from_numpy(words).to(device)
    longest = max(plan.tokens, default=0)
    return view_layout(on_device, rows, tokens, longest, plan.groups(group_tokens, tokens))


def _lengths(rows: int, tokens: int) -> tuple[int, ...]:
    """Lengths of offsets, frames, sample offsets, samples, scales and row indices."""
    return (rows + 1, rows, rows, rows, rows, tokens)


def _aligned(length: int) -> int:
    return -(-length // _ALIGNMENT_WORDS) * _ALIGNMENT_WORDS


def _sections(words: Words, rows: int, tokens: int) -> list[Words]:
    sections: list[Words] = []
    first = 0
    for length in _lengths(rows, tokens):
        section: Any = words[first : first + length]
        sections.append(section)
        first += _aligned(length)
    return sections
