"""How similar the voice is to each speaker, over the time of a recording."""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

UNKNOWN_SIMILARITY = 0.3
"""Of a speaker and a voice of 0.6 to 1.5 s for which an unknown speaker is as probable."""

_REACH_SECONDS = 0.5
# Of the log-odds of a speaker, per unit of similarity.
_SLOPE = 20.0


def probabilities(
    similar: npt.NDArray[np.floating], unknown: float = UNKNOWN_SIMILARITY
) -> npt.NDArray[np.floating]:
    """(N, K) of each speaker against the others and an unknown one, from their similarities.

    An unknown voice counts as one of the similarity `unknown`: with one speaker, a logistic
    function of the similarity.
    """
    odds = np.exp(_SLOPE * (similar - unknown))
    shares: npt.NDArray[np.floating] = odds / (1.0 + odds.sum(axis=1, keepdims=True))
    return shares


@dataclass(frozen=True, slots=True, eq=False)
class SpeakerSimilarities:
    """Similarities of one channel at regular times."""

    values: npt.NDArray[np.float32]
    """(N, K): cosines; NaN in pauses."""
    first_seconds: float
    """Time of the first row."""
    step_seconds: float
    speakers: tuple[str, ...] = ()
    """(K,): names as in the turns."""
    confidences: tuple[float, ...] = ()
    """(K,): of the names."""
    channel: int | None = None

    def at(self, seconds: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
        """(M, K) similarities at M times, of all that was computed within half a second.

        Weights fall linearly with the distance. NaN where there is nothing.
        """
        reach = math.ceil(_REACH_SECONDS / self.step_seconds)
        places = (seconds - self.first_seconds) / self.step_seconds
        near = np.floor(places).astype(np.int64)[:, None] + np.arange(1 - reach, reach + 1)
        weights = 1.0 - np.abs(near - places[:, None]) * (self.step_seconds / _REACH_SECONDS)
        values = self.values[np.clip(near, 0, len(self.values) - 1)]
        known = (near >= 0) & (near < len(self.values)) & ~np.isnan(values).any(axis=2)
        weights = np.where(known, np.maximum(weights, 0.0), 0.0).astype(np.float32)
        sums = np.einsum("mn,mnk->mk", weights, np.where(known[:, :, None], values, 0.0))
        totals = weights.sum(axis=1, keepdims=True)
        present = totals > 0.0
        means: npt.NDArray[np.float32] = np.where(
            present, sums / np.where(present, totals, 1), np.nan
        )
        return means
