"""Sound in which the network may have missed speech, prepared for another inference.

Silero's network detects less than it could in several cases. After ten seconds of some voices
without a pause its state suppresses speech until the next pause, so that another inference begins
from the initial state. It detects speech in noise only if the speech has about the level that it
was trained on, so that a whole block gets that level, without what lies below the range of voices.
And it misses most of the speech above tones and steady noise, or without the low frequencies that
telephones remove, or clipped: constant sound and wind are removed, and low frequencies are
regenerated.
And next to one voice it misses others far below it: the detected speech is removed. A crowd far
below is none of these.
"""

from collections.abc import Iterator

import numpy as np

from parakeet_worker.engine.base import Samples
from parakeet_worker.vad import enhancement
from parakeet_worker.vad.base import FRAME_SAMPLES, MIN_SPEECH_FRAMES
from parakeet_worker.vad.gain import HIGHEST_GAIN_DECIBELS, HIGHEST_PEAK
from parakeet_worker.vad.level import SPEECH_RANGE_DECIBELS, Decibels, Mask, measured, quantiles

MISSED_FRAMES = MIN_SPEECH_FRAMES
"""Frames of missed speech in a block; fewer contain no word."""

# Of -44, -34, -26 and -22 dB, the network detects most words in noise at the last two.
_LEVEL_DECIBELS = -26.0
# With the highest gain 20 dB below that level.
_FAINTEST_DECIBELS = -86.0
# Frames of an utterance, from its loudest ones.
_UTTERANCE_RANGE_DECIBELS = 15.0
# As of sustained levels: a click spans two frames.
_RANK = 3
# Constant sound further below speech hides none.
_HIDING_DECIBELS = 25.0
# The onset and the decay of detected speech.
_EDGE_FRAMES = 2


def renditions(
    block: Samples, context_samples: int, decibels: Decibels, silent: Mask
) -> Iterator[Samples]:
    """The block in up to two forms, if its `silent` frames may contain speech.

    `block` is unamplified and begins with its context, `decibels` are the levels of its frames.
    """
    if silent.sum() < MISSED_FRAMES or _loudest(decibels) < _FAINTEST_DECIBELS:
        return
    if enhancement.rumbles(block[context_samples:]):
        block = enhancement.without_rumble(block)
        decibels = measured(block[context_samples:]).decibels
    varies = _may_contain_speech(decibels, silent)
    if varies:
        # Attenuated, speech far below gusts of wind is not detected.
        yield _at_level(block, _loudest(decibels), lowest_gain=1.0)
    if varies or _loudest(decibels) - _median(decibels[silent]) < _HIDING_DECIBELS:
        block = enhancement.without_constant_sound(enhancement.without_wind(block))
        if _may_contain_speech(measured(block[context_samples:]).decibels, silent):
            block = enhancement.with_low_harmonics(block)
            decibels = measured(block[context_samples:]).decibels
            yield _at_level(block, _loudest(decibels), lowest_gain=0.0)


def without_detected(
    block: Samples, context_samples: int, decibels: Decibels, detected: Mask
) -> tuple[Samples, Mask] | None:
    """The rest of the block without its detected speech, at the level of speech; and its frames.

    None if these do not sound like speech. Arguments as of `renditions`.
    """
    spread = np.convolve(detected, np.ones(2 * _EDGE_FRAMES + 1))
    removed = spread[_EDGE_FRAMES:-_EDGE_FRAMES] > 0
    left = np.where(removed, -np.inf, decibels)
    if not detected.any() or not _may_contain_speech(left, ~removed):
        return None
    middles = FRAME_SAMPLES * (np.arange(len(removed)) + 0.5) + context_samples
    kept = np.interp(np.arange(len(block)), middles, ~removed).astype(np.float32)
    return _at_level(block * kept, _loudest(left), lowest_gain=0.0), ~removed


def _may_contain_speech(decibels: Decibels, silent: Mask) -> bool:
    return bool((silent & sounds_like_speech(decibels)).sum() >= _RANK)


def sounds_like_speech(decibels: Decibels) -> Mask:
    """The frames as loud as speech, if the level of these varies as that of speech does."""
    none = np.zeros(len(decibels), dtype=bool)
    loudest = _loudest(decibels)
    if loudest < _FAINTEST_DECIBELS:
        return none
    loud: Mask = decibels >= loudest - _UTTERANCE_RANGE_DECIBELS
    (low,) = quantiles(decibels[loud], 0.1)
    return loud if loudest - low >= SPEECH_RANGE_DECIBELS else none


def _loudest(decibels: Decibels) -> float:
    """Without clicks; of fewer than three frames, nothing is known."""
    return float(np.partition(decibels, -_RANK)[-_RANK]) if len(decibels) >= _RANK else -np.inf


def _median(decibels: Decibels) -> float:
    (median,) = quantiles(decibels, 0.5)
    return median


def _at_level(block: Samples, loudest: float, lowest_gain: float) -> Samples:
    """At the level of the network's training, with one gain: speech in noise needs it."""
    highest = min(10 ** (HIGHEST_GAIN_DECIBELS / 20), HIGHEST_PEAK / float(np.abs(block).max()))
    gain = 10 ** ((_LEVEL_DECIBELS - loudest) / 20)
    return block * np.float32(max(lowest_gain, min(gain, highest)))
