"""Sound in which the network may have missed speech, prepared for a second inference.

Silero's network detects less than it could in two cases. After ten seconds of some voices without a
pause its state suppresses speech until the next pause, so the second inference begins from the
initial state. And it detects speech in noise, or above hum, only if the speech has about the level
that it was trained on: the second inference gets a whole block at that level, without what lies
below the range of voices.
"""

from dataclasses import dataclass

import numpy as np

from parakeet_worker.audio.decoding import SAMPLE_RATE
from parakeet_worker.engine.base import Samples
from parakeet_worker.vad.gain import HIGHEST_GAIN_DECIBELS, HIGHEST_PEAK
from parakeet_worker.vad.level import SPEECH_RANGE_DECIBELS, Decibels, Mask, measured, quantiles

MISSED_FRAMES = 5
"""Missed speech has at least 0.16 s in a block; 0.13 s contain no word."""

# Of -44, -34, -26 and -22 dB, the network detects most words in noise at the last two.
_LEVEL_DECIBELS = -26.0
# With the highest gain 20 dB below that level.
_FAINTEST_DECIBELS = -86.0
# Frames of an utterance, from its loudest ones.
_UTTERANCE_RANGE_DECIBELS = 15.0
# As of sustained levels: a click spans two frames.
_RANK = 3
# Hum, rumble and direct current; the lowest voices begin at 80 Hz.
_VOICE_HERTZ = 90.0
_RUMBLE_HERTZ = 54.0
_RUMBLE_SHARE = 0.5
_RUMBLE_WINDOW = 64  # of 4 ms: their means contain what is below 125 Hz


@dataclass(frozen=True, slots=True, eq=False)
class Candidate:
    """A block that may contain missed speech."""

    block: Samples
    """With its context, amplified."""
    frames: Mask
    """The frames in question."""


def candidate(
    block: Samples, context_samples: int, decibels: Decibels, silent: Mask
) -> Candidate | None:
    """The block, if its `silent` frames contain sound whose level varies as that of speech does.

    `block` is unamplified and begins with its context, `decibels` are the levels of its frames.
    """
    if silent.sum() < MISSED_FRAMES:
        return None
    if _rumbles(block[context_samples:]):
        block = _without_rumble(block)
        decibels = measured(block[context_samples:]).decibels
    frames = silent & sounds_like_speech(decibels)
    if frames.sum() < MISSED_FRAMES:
        return None
    return Candidate(_amplified(block, _loudest(decibels)), frames)


def sounds_like_speech(decibels: Decibels) -> Mask:
    """The frames as loud as speech, if the level of these varies as that of speech does."""
    none = np.zeros(len(decibels), dtype=bool)
    if len(decibels) < _RANK:
        return none
    loudest = _loudest(decibels)
    if loudest < _FAINTEST_DECIBELS:
        return none
    loud: Mask = decibels >= loudest - _UTTERANCE_RANGE_DECIBELS
    (low,) = quantiles(decibels[loud], 0.1)
    return loud if loudest - low >= SPEECH_RANGE_DECIBELS else none


def _loudest(decibels: Decibels) -> float:
    return float(np.partition(decibels, -_RANK)[-_RANK])


def _amplified(block: Samples, loudest: float) -> Samples:
    """At the level of the network's training, with one gain: speech in noise needs it."""
    gain = np.clip(_LEVEL_DECIBELS - loudest, 0.0, HIGHEST_GAIN_DECIBELS)
    headroom = HIGHEST_PEAK / max(float(np.abs(block).max()), 1e-9)
    return block * np.float32(max(1.0, min(10 ** (gain / 20), headroom)))


def _rumbles(samples: Samples) -> bool:
    """Whether most of the power lies below the range of voices."""
    low = samples.reshape(-1, _RUMBLE_WINDOW).mean(axis=1)
    return float(low @ low) * _RUMBLE_WINDOW > _RUMBLE_SHARE * float(samples @ samples)


def _without_rumble(samples: Samples) -> Samples:
    """Without frequencies below 54 Hz; up to 90 Hz they fade."""
    spectrum = np.fft.rfft(samples)
    hertz = np.fft.rfftfreq(len(samples), 1 / SAMPLE_RATE)
    spectrum *= np.clip((hertz - _RUMBLE_HERTZ) / (_VOICE_HERTZ - _RUMBLE_HERTZ), 0.0, 1.0)
    return np.fft.irfft(spectrum, len(samples)).astype(np.float32)
