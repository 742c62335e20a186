"""Voice activity detection by level relative to the recent noise floor, without a network."""

import numpy as np
import numpy.typing as npt

from parakeet_worker.engine.base import Samples
from parakeet_worker.vad.base import FRAME_SAMPLES, FRAME_SECONDS, Detector, Probabilities

# Digital silence, in dB of full scale.
_SILENCE_DB = -100.0
_SILENCE_POWER = 10 ** (_SILENCE_DB / 10)
# Drift of floor (up) and peak (down): speech returns to the floor several times a second, and a new
# noise becomes the floor within seconds.
_DRIFT_DB = 3.0 * FRAME_SECONDS
# A recording may start in the middle of a word: the initial floor is this far below it.
_FIRST_RANGE_DB = 24.0
# Minimum range, so that noise alone does not span the scale.
_LEAST_RANGE_DB = 12.0

Levels = npt.NDArray[np.float64]


class EnergyDetector(Detector):
    """Position of a frame's level between the running floor (0) and the running peak (1), in dB.

    0.5 is halfway, and at least 6 dB above the floor. A constant sound becomes the floor within
    seconds.
    """

    trusts_silence = False

    def __init__(self) -> None:
        super().__init__()
        self._floor: float | None = None
        self._peak = _SILENCE_DB

    def _detect(self, blocks: Samples) -> Probabilities:
        levels = _levels(blocks)
        if self._floor is None:
            self._floor = max(float(levels[0]) - _FIRST_RANGE_DB, _SILENCE_DB)
        floors = -_decaying_peaks(-levels, -self._floor)
        peaks = _decaying_peaks(levels, self._peak)
        self._floor, self._peak = float(floors[-1]), float(peaks[-1])
        ranges = np.maximum(peaks - floors, _LEAST_RANGE_DB)
        return np.clip((levels - floors) / ranges, 0.0, 1.0).astype(np.float32)


def _levels(samples: Samples) -> Levels:
    """Power of each frame in dB of full scale, without direct current."""
    power: Levels = samples.reshape(-1, FRAME_SAMPLES).var(axis=1, dtype=np.float64)
    return 10 * np.log10(np.maximum(power, _SILENCE_POWER))


def _decaying_peaks(levels: Levels, before: float) -> Levels:
    """Running maximum in which earlier levels decay at the drift rate."""
    drift = _DRIFT_DB * np.arange(len(levels) + 1)
    highest: Levels = np.maximum.accumulate(np.concatenate(([before], levels)) + drift)
    return highest[1:] - drift[1:]
