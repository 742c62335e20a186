"""Where each chunk of a batch lies in packed tensors: end to end, without padding between.

A row is one chunk. Its tokens (encoder frames of 80 ms) begin at `offsets[row]`; its mel frames
begin at 8 times that and its frames between the convolutions at 4 and 2 times, since three
halvings that round up never need more room than that.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

FACTOR = 8
"""Mel frames per token: packed rows exist for this subsampling only."""
_ALIGNED = 4  # 32-bit words: sections begin at multiples of 16 bytes


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """The layout of a batch of R rows on one device; all tensors but `scales` are int32."""

    offsets: Tensor
    """(R + 1,) first token of each row, and the end of the last."""
    frames: Tensor
    """(R,) mel frames of each row."""
    sample_offsets: Tensor
    """(R,) first sample of each row."""
    samples: Tensor
    """(R,) samples of each row."""
    scales: Tensor
    """(R,) float32: what a sample is multiplied by to have full scale at 1.0."""
    row_of: Tensor
    """(N,) row of each token; -1 for tokens beyond the last row, which mean nothing."""
    longest: int
    """Tokens that no row exceeds: what grids are made for."""

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
    """The layout of a batch as plain numbers, before it is brought to a device."""

    samples: tuple[int, ...]
    hop_samples: int

    @property
    def frames(self) -> tuple[int, ...]:
        return tuple(count // self.hop_samples for count in self.samples)

    @property
    def tokens(self) -> tuple[int, ...]:
        """Of each row: mel frames halved three times, rounded up."""
        return tuple(-(-frames // FACTOR) for frames in self.frames)


def words(rows: int, tokens: int) -> int:
    """32-bit words that `write` needs for so many rows and tokens."""
    return sum(_section_sizes(rows, tokens))


def write(
    plan: Plan, scales: Sequence[float], rows: int, tokens: int, out: "np.ndarray[Any, Any]"
) -> None:
    """Write the layout into the int32 array `out`, for `view` to read.

    `rows` and `tokens` may exceed those of the plan: rows beyond it are empty, tokens beyond it
    belong to none.
    """
    sections = _split(out, rows, tokens)
    offsets, frames, sample_offsets, samples, scale, row_of = sections
    offsets.fill(sum(plan.tokens))
    offsets[0] = 0
    for section in (frames, sample_offsets, samples, scale):
        section.fill(0)
    count = len(plan.samples)
    offsets[1 : count + 1] = np.cumsum(plan.tokens)
    frames[:count] = plan.frames
    samples[:count] = plan.samples
    sample_offsets[1:count] = np.cumsum(plan.samples)[:-1] if count else ()
    scale[:count] = np.asarray(scales, np.float32).view(np.int32)
    row_of.fill(-1)
    row_of[: sum(plan.tokens)] = np.repeat(np.arange(count), plan.tokens)


def view(words: Tensor, rows: int, tokens: int, longest: int) -> Rows:
    """The layout that `write` wrote, as views of the int32 tensor `words` on any device."""
    offsets, frames, sample_offsets, samples, scales, row_of = _split(words, rows, tokens)
    return Rows(
        offsets, frames, sample_offsets, samples, scales.view(torch.float32), row_of, longest
    )


def rows_of(plan: Plan, scales: Sequence[float], device: torch.device) -> Rows:
    """The layout of a batch on `device`, without anything beyond it."""
    rows, tokens = len(plan.samples), sum(plan.tokens)
    out = np.empty(words(rows, tokens), np.int32)
    write(plan, scales, rows, tokens, out)
    return view(torch.from_numpy(out).to(device), rows, tokens, longest=max(plan.tokens, default=0))


def _section_sizes(rows: int, tokens: int) -> list[int]:
    lengths = (rows + 1, rows, rows, rows, rows, tokens)
    return [-(-length // _ALIGNED) * _ALIGNED for length in lengths]


def _split(whole: Any, rows: int, tokens: int) -> list[Any]:
    sections, first = [], 0
    lengths = (rows + 1, rows, rows, rows, rows, tokens)
    for length, size in zip(lengths, _section_sizes(rows, tokens), strict=True):
        sections.append(whole[first : first + length])
        first += size
    return sections
