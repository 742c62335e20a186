"""Makes speech more similar to that of the network's training.

For detection only: the engine gets the recording itself.
"""

import numpy as np

from parakeet_worker.audio.decoding import SAMPLE_RATE
from parakeet_worker.engine.base import Samples

# Gain by frequency. Hum, rumble and direct current: the lowest voices begin at 80 Hz.
_ABOVE_RUMBLE = {54.0: 0.0, 90.0: 1.0}
_ABOVE_WIND = {200.0: 0.0, 300.0: 1.0}
_LOW_HARMONICS = {60.0: 0.0, 90.0: 1.0, 300.0: 1.0, 500.0: 0.0}
_RUMBLE_SHARE = 0.5
_WIND_SHARE = 0.7
_RUMBLE_WINDOW = 64  # of 4 ms: their means contain what is below 125 Hz
_RUMBLE_MEAN = np.full(_RUMBLE_WINDOW, 1 / _RUMBLE_WINDOW, dtype=np.float32)
_WINDOW = 512
_HOP = 256
_WEIGHTS = np.sqrt(np.hanning(_WINDOW + 1)[:-1]).astype(np.float32)
# Speech sounds in a bin for less than 70 % of a block. The mean power of noise is about three
# times this quantile.
_NOISE_QUANTILE = 0.3
_NOISE_FACTOR = np.float32(3.0)
_LOWEST_GAIN = np.float32(0.05)
_TINY = 1e-20


def rumbles(samples: Samples) -> bool:
    """Whether most of the power lies below the range of voices."""
    low = samples.reshape(-1, _RUMBLE_WINDOW) @ _RUMBLE_MEAN
    return float(low @ low) * _RUMBLE_WINDOW > _RUMBLE_SHARE * float(samples @ samples)


def without_rumble(samples: Samples) -> Samples:
    """Without frequencies below 54 Hz; up to 90 Hz they fade."""
    return _filtered(samples, _ABOVE_RUMBLE)


def without_wind(samples: Samples) -> Samples:
    """Without frequencies below 200 Hz, if most of the power lies below 300 Hz, as that of gusts.

    `with_low_harmonics` regenerates those of voices.
    """
    high = _filtered(samples, _ABOVE_WIND)
    power, high_power = float(samples @ samples), float(high @ high)
    return high if high_power < (1 - _WIND_SHARE) * power else samples


def without_constant_sound(samples: Samples) -> Samples:
    """Without the tones and the noise that sound throughout.

    Spectral subtraction (S. F. Boll 1979) of noise estimated by a quantile of each bin's power
    over time (V. Stahl, A. Fischer and R. Bippus 2000).
    """
    padded = np.pad(samples, (_HOP, _WINDOW))
    windows = np.lib.stride_tricks.sliding_window_view(padded, _WINDOW)[::_HOP]
    spectra = np.fft.rfft(windows * _WEIGHTS, axis=1)
    power = np.square(spectra.real) + np.square(spectra.imag)
    rank = int(_NOISE_QUANTILE * len(power))
    noise = _NOISE_FACTOR * np.partition(power, rank, axis=0)[rank]
    left = 1 - noise / np.maximum(power, np.float32(_TINY))
    spectra *= np.sqrt(np.maximum(left, np.square(_LOWEST_GAIN)))
    halves = np.fft.irfft(spectra, axis=1) * _WEIGHTS
    # Each hop is the second half of one window and the first half of the next.
    hops = halves[:-1, _HOP:] + halves[1:, :_HOP]
    return hops.ravel()[: len(samples)].astype(np.float32, copy=False)


def with_low_harmonics(samples: Samples) -> Samples:
    """With the fundamental of voices and its first harmonics, if these have less than a third.

    Rectification regenerates them from higher harmonics (as J. Makhoul and M. Berouti 1979 do with
    the highest ones). Telephones remove them.
    """
    low, regenerated = (
        _filtered(each, _LOW_HARMONICS) for each in (samples, np.maximum(samples, 0))
    )
    power, low_power = float(samples @ samples), float(low @ low)
    added = max(power - 3 * low_power, 0.0) / max(float(regenerated @ regenerated), _TINY)
    return samples + np.float32(np.sqrt(added)) * regenerated


def _filtered(samples: Samples, gains: dict[float, float]) -> Samples:
    """With these gains by frequency, and linear ones between them."""
    spectrum = np.fft.rfft(samples)
    hertz = np.fft.rfftfreq(len(samples), 1 / SAMPLE_RATE)
    spectrum *= np.interp(hertz, [*gains], [*gains.values()])
    return np.fft.irfft(spectrum, len(samples)).astype(np.float32)
