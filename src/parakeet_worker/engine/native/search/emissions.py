"""Results of a search: the tokens that each row emitted, as arrays."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from parakeet_worker.engine.native.decoder import Emission

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True, eq=False)
class Emissions:
    """Tokens that one row emitted, in order: arrays of equal length."""

    tokens: Array
    """Int32 token ids."""
    frames: Array
    """Int32 frames of the row at which they were emitted."""
    durations: Array
    """Int32 durations in frames."""
    logprobs: Array
    """Float32 log-probabilities."""

    @classmethod
    def of(cls, record: Array) -> "Emissions":
        """Views of (n, 4) int32 lines written by `search_step`."""
        tokens, frames, durations, logprob_bits = record.T
        return cls(tokens, frames, durations, logprob_bits.view(np.float32))

    @classmethod
    def from_objects(cls, emissions: Sequence[Emission]) -> "Emissions":
        """Convert the result of `GreedyDecoder` for one row."""
        return cls(
            np.array([emission.token for emission in emissions], np.int32),
            np.array([emission.frame for emission in emissions], np.int32),
            np.array([emission.duration for emission in emissions], np.int32),
            np.array([emission.logprob for emission in emissions], np.float32),
        )

    def __len__(self) -> int:
        return len(self.tokens)


@dataclass(frozen=True, slots=True, eq=False)
class SearchResult:
    """Emissions of a batch of rows."""

    rows: tuple[Emissions, ...]
    finite: Array
    """(R,) bool: false for rows with non-finite states or scores; their emissions are empty."""

    @classmethod
    def of(cls, rows: Sequence[Emissions | None]) -> "SearchResult":
        """None marks a row that is not finite."""
        emissions = tuple(row or _EMPTY for row in rows)
        return cls(emissions, np.array([row is not None for row in rows], bool))


_EMPTY = Emissions.from_objects(())
