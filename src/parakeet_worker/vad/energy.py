"""Voice activity without a network: what stands out from the noise of the last seconds."""

import numpy as np
import numpy.typing as npt

from parakeet_worker.engine.base import Samples
from parakeet_worker.vad.base import FRAME_SAMPLES, FRAME_SECONDS, Detector, Probabilities

# Digital silence, in dB of full scale.
_SILENCE_DB = -100.0
_SILENCE_POWER = 10 ** (_SILENCE_DB / 10)
# How fast the floor rises and the peak falls while nothing touches them: speech dips to its
# floor several times a second, and a noise that is new is known as such after some seconds.
_DRIFT_DB = 3.0 * FRAME_SECONDS
# A recording may begin in the middle of a word, and is believed to until it dips.
_FIRST_RANGE_DB = 24.0
# Noise alone does not fill the scale.
_LEAST_RANGE_DB = 12.0

Levels = npt.NDArray[np.float64]


class EnergyDetector(Detector):
    """Where the level of a frame stands between the running floor and the running peak, in dB.

    0.5 is halfway, and at least 6 dB above the floor. A sound that stays the same for several
    seconds becomes the floor.
    """

    is_sure = False

    def __init__(self) -> None:
        super().__init__()
        self._floor: float | None = None
        self._peak = _SILENCE_DB

    def _hear(self, blocks: Samples) -> Probabilities:
        levels = _levels(blocks)
        if self._floor is None:
            self._floor = max(float(levels[0]) - _FIRST_RANGE_DB, _SILENCE_DB)
        floors = -_sinking_peaks(-levels, -self._floor)
        peaks = _sinking_peaks(levels, self._peak)
        self._floor, self._peak = float(floors[-1]), float(peaks[-1])
        ranges = np.maximum(peaks - floors, _LEAST_RANGE_DB)
        return np.clip((levels - floors) / ranges, 0.0, 1.0).astype(np.float32)


def _levels(samples: Samples) -> Levels:
    """Each frame's power in dB of full scale, without its direct current."""
    power: Levels = samples.reshape(-1, FRAME_SAMPLES).var(axis=1, dtype=np.float64)
    return 10 * np.log10(np.maximum(power, _SILENCE_POWER))


def _sinking_peaks(levels: Levels, before: float) -> Levels:
    """The highest level up to each frame, where every level sinks as it ages."""
    drift = _DRIFT_DB * np.arange(len(levels) + 1)
    highest: Levels = np.maximum.accumulate(np.concatenate(([before], levels)) + drift)
    return highest[1:] - drift[1:]
