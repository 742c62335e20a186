"""How periodic a sound is: one voice is, many at a time are not.

Unlike `speakers.pitch`, of a few frames, and in processes without torch.
"""

import numpy as np
import numpy.typing as npt

from parakeet_worker.audio.decoding import SAMPLE_RATE
from parakeet_worker.engine.base import Samples
from parakeet_worker.vad.base import FRAME_SAMPLES
from parakeet_worker.vad.level import Mask

_ONE_VOICE = 0.76
"""The upper quartile of the periodicity of a voice is higher; of twelve it is 0.5 to 0.69."""

_WINDOW = 1024  # four periods of the lowest voice
_FFT_SAMPLES = 2048
_SHORTEST_LAG, _LONGEST_LAG = SAMPLE_RATE // 400, SAMPLE_RATE // 60
_WEIGHTS = np.hanning(_WINDOW + 1)[:-1]
_TINY = 1e-20


def _autocorrelation(windows: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    power = np.square(np.abs(np.fft.rfft(windows, _FFT_SAMPLES)))
    return np.fft.irfft(power, _FFT_SAMPLES)[..., : _LONGEST_LAG + 1]


_OWN = _autocorrelation(_WEIGHTS)


def periodicity(samples: Samples, frames: Mask) -> npt.NDArray[np.float64]:
    """The highest correlation with itself a period of 60 to 400 Hz later, for each of some frames.

    `samples` are whole frames. The windows of 64 ms are weighted, and the correlation is divided by
    that of the weights (P. Boersma, "Accurate short-term analysis of the fundamental frequency and
    the harmonics-to-noise ratio of a sampled sound", 1993).
    """
    before = (_WINDOW - FRAME_SAMPLES) // 2
    padded = np.pad(samples, (before, _WINDOW - before))
    begins = np.flatnonzero(frames) * FRAME_SAMPLES
    products = _autocorrelation(padded[begins[:, None] + np.arange(_WINDOW)] * _WEIGHTS)
    powers = np.maximum(products[:, :1], _TINY)
    correlations = products / powers * (_OWN[0] / _OWN)
    highest: npt.NDArray[np.float64] = correlations[:, _SHORTEST_LAG:].max(axis=1)
    return highest


def is_one_voice(samples: Samples, frames: Mask) -> bool:
    """Whether the frames are those of a voice, and not of a crowd; at least one is required."""
    return float(np.quantile(periodicity(samples, frames), 0.75)) > _ONE_VOICE
