"""Splits the rows of a batch into groups that fit the workspace."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from parakeet_worker.engine.native.search.workspace import Limits


@dataclass(frozen=True, slots=True)
class Group:
    """Rows that are decoded together; they are adjacent in the packed states."""

    first_token: int
    lengths: tuple[int, ...]
    slots: tuple[int, ...]

    @property
    def tokens(self) -> int:
        return sum(self.lengths)

    @property
    def offsets(self) -> list[int]:
        """First token of each row, relative to the group's."""
        return row_offsets(self.lengths)


def row_offsets(lengths: Sequence[int]) -> list[int]:
    """First token of each row, relative to the first row."""
    return [0, *np.cumsum(lengths[:-1], dtype=int).tolist()] if lengths else []


def split(lengths: Sequence[int], slots: Sequence[int], limits: Limits) -> Iterator[Group]:
    """Groups with as many rows as fit `limits`, but at least one."""
    first_row = first_token = tokens = 0
    for row, length in enumerate(lengths):
        if row > first_row and (row - first_row == limits.rows or tokens + length > limits.tokens):
            yield Group(first_token, tuple(lengths[first_row:row]), tuple(slots[first_row:row]))
            first_row, first_token, tokens = row, first_token + tokens, 0
        tokens += length
    if first_row < len(lengths):
        yield Group(first_token, tuple(lengths[first_row:]), tuple(slots[first_row:]))
