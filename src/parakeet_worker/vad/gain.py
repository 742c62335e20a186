"""Gain for quiet speech and quiet voices."""

import numpy as np

from parakeet_worker.engine.base import Samples
from parakeet_worker.vad.base import FRAME_SAMPLES
from parakeet_worker.vad.level import (
    CHUNK_FRAMES,
    DETECTED_DECIBELS,
    SPEECH_RANGE_DECIBELS,
    Decibels,
    Levels,
    Mask,
    measured,
    quantiles,
    quiet_frames,
    sustained,
    third_lowest_around,
)

HIGHEST_GAIN_DECIBELS = 40.0

# 1 s: shorter pauses of a loud speaker get no gain.
_DETECTION_FRAMES = 31
# Below it the features depend on the level, because of the guard in their logarithm (2^-24).
_RECOGNIZED_DECIBELS = -40.0
_RECOGNIZED_FRAMES = 16
# The range of one voice; voices further below the loudest are raised to its lower end.
_VOICE_RANGE_DECIBELS = 10.0
_BETWEEN_VOICES_DECIBELS = 26.0
# Word onsets are quieter than the frames detected as speech.
_ONSET_FRAMES = 3
_HIGHEST_PEAK = 0.9
# Digital silence gets no gain.
_SILENCE_DECIBELS = -95.0
# Speech has no direct current over seconds.
_DIRECT_CURRENT = 0.003
_ROWS_PER_STEP = 64
_WITHIN_FRAME = np.arange(FRAME_SAMPLES, dtype=np.float32)


class QuietSpeechGain:
    """Amplifies very quiet speech in the blocks of one recording, by up to 40 dB.

    Audio that is loud enough, or whose level varies too little for speech, is unchanged.
    """

    def __init__(self, context_samples: int, block_samples: int) -> None:
        self._context_samples = context_samples
        self._block_samples = block_samples
        self._before = np.zeros(0)
        self._last_gain = 0.0
        self._context: Samples | None = None

    def apply(self, samples: Samples, levels: Levels) -> tuple[Samples, list[bool]]:
        """Context and blocks, amplified, and which of the blocks changed.

        The context is the unamplified end of the previous block, `levels` are those of the blocks.
        The last block of a recording may be shorter. If nothing changes, `samples` are returned.
        """
        raised, block_frames = samples, self._block_samples // FRAME_SAMPLES
        if self._context is not None:
            raised = samples.copy()
            raised[: self._context_samples] = self._context
        changed = []
        for number in range(-(-len(levels.decibels) // block_frames)):
            begin = self._context_samples + number * self._block_samples
            part = slice(begin, begin + self._block_samples)
            block_levels = levels.part(number * block_frames, block_frames)
            gains = self._gains(samples[part], block_levels)
            changed.append(gains is not None)
            if gains is not None:
                raised = samples.copy() if raised is samples else raised
                _amplify(raised[part], gains, block_levels.direct)
        end = raised[len(raised) - self._context_samples :]
        self._context = end.copy() if changed[-1] else None
        return raised, changed

    def _gains(self, block: Samples, levels: Levels) -> Decibels | None:
        """Gain of the frame before the block and of each of its own; None if it is unchanged."""
        known = np.concatenate((self._before, levels.decibels))
        gains = _gains_to_detect(known, len(self._before))
        self._before = known[1 - _DETECTION_FRAMES :]
        if gains.any():
            gains = _headroom(block, gains)
        last, self._last_gain = self._last_gain, float(gains[-1])
        if abs(levels.direct) > _DIRECT_CURRENT or last or gains.any():
            return np.concatenate(([last], gains))
        return None


def _gains_to_detect(known: Decibels, first: int) -> Decibels:
    """Gain of each frame from `first` on."""
    gains = np.zeros(len(known) - first)
    quiet = quiet_frames(known, _DETECTION_FRAMES, first)
    if len(quiet):
        held = np.maximum(sustained(known, _DETECTION_FRAMES, quiet), known[quiet])
        low = third_lowest_around(known, _DETECTION_FRAMES, quiet)
        needed = np.clip(DETECTED_DECIBELS - held, 0.0, HIGHEST_GAIN_DECIBELS)
        gains[quiet - first] = np.where(held - low >= SPEECH_RANGE_DECIBELS, needed, 0.0)
    return gains


def even_levels(samples: Samples, speaks: Mask) -> tuple[Samples, float]:
    """Raise quiet voices to the level of the loudest.

    Returns the samples and the maximum gain in dB. `speaks` marks the frames with speech. Speech
    at one level is unchanged, or amplified as a whole if all of it is very quiet.
    """
    levels = measured(samples)
    known = np.zeros(len(levels.decibels), dtype=bool)
    known[: len(speaks)] = speaks[: len(known)]
    gains = _gains_of_voices(levels.decibels, known)
    if not gains.any():
        return samples, 0.0
    gains = _headroom(samples, gains)
    raised = samples.copy()
    _amplify(raised, np.concatenate((gains[:1], gains)), levels.direct)
    return raised, round(float(gains.max()), 1)


def _gains_of_voices(decibels: Decibels, speaks: Mask) -> Decibels:
    """Gain of every frame; between two spans of speech, the lower of both gains."""
    if not speaks.any():
        return np.zeros(len(decibels))
    held = sustained(decibels[speaks], _RECOGNIZED_FRAMES)
    (loudest,) = quantiles(held, 0.95)
    # The sustained level of a loud voice's last frames is below their own.
    held = np.maximum(held, decibels[speaks])
    whole = np.clip(_RECOGNIZED_DECIBELS - loudest, 0.0, HIGHEST_GAIN_DECIBELS)
    below = loudest - _VOICE_RANGE_DECIBELS - held
    gains = whole + np.clip(below, 0.0, _BETWEEN_VOICES_DECIBELS)
    spread = np.zeros(len(decibels))
    sounds = held > _SILENCE_DECIBELS
    spread[speaks] = np.where(sounds, np.minimum(gains, HIGHEST_GAIN_DECIBELS), 0.0)
    return _filled_pauses(spread, speaks)


def _filled_pauses(gains: Decibels, speaks: Mask) -> Decibels:
    """Extend gains to word onsets, and fill pauses with the lower gain of both sides."""
    places, known = np.arange(len(gains)), np.flatnonzero(speaks)
    left = np.maximum.accumulate(np.where(speaks, places, known[0]))
    right = np.minimum.accumulate(np.where(speaks, places, known[-1])[::-1])[::-1]
    to_left, to_right = np.abs(places - left), np.abs(right - places)
    nearest = np.where(to_left <= to_right, left, right)
    near = np.minimum(to_left, to_right) <= _ONSET_FRAMES
    return np.where(near, gains[nearest], np.minimum(gains[left], gains[right]))


def _headroom(samples: Samples, gains: Decibels) -> Decibels:
    """Gains limited so that neither their frame nor an adjacent one clips."""
    raised = np.zeros(len(gains) + 2, dtype=bool)
    raised[1:-1] = gains > 0
    near = np.flatnonzero(raised[:-2] | raised[1:-1] | raised[2:])
    peaks = np.zeros(len(gains) + 2)
    rows = _rows(samples)
    for first in range(0, len(near), CHUNK_FRAMES):
        some = near[first : first + CHUNK_FRAMES]
        whole = rows[some[some < len(rows)]]
        peaks[1 + some[: len(whole)]] = np.abs(whole, out=whole).max(axis=1)
    if len(gains) > len(rows):
        peaks[-2] = np.abs(samples[rows.size :]).max()
    peaks = np.maximum(peaks, 1e-9)
    peaks = np.maximum(np.maximum(peaks[:-2], peaks[2:]), peaks[1:-1])
    headroom = np.maximum(20 * np.log10(_HIGHEST_PEAK / peaks), 0.0)
    return np.asarray(np.minimum(gains, headroom))


def _rows(samples: Samples) -> Samples:
    """The whole frames, (frames, 512), without a copy."""
    count = len(samples) // FRAME_SAMPLES
    return samples[: count * FRAME_SAMPLES].reshape(-1, FRAME_SAMPLES)


def _amplify(samples: Samples, gains: Decibels, direct: float) -> None:
    """Apply gains at frame centres, interpolated between them, in place.

    The first gain is that of the frame before the samples. Direct current is removed.
    """
    factors = (10 ** (gains / 20)).astype(np.float32)
    slopes = np.zeros_like(factors)
    slopes[:-1] = (factors[1:] - factors[:-1]) * np.float32(1 / FRAME_SAMPLES)
    if abs(direct) > _DIRECT_CURRENT:
        samples -= np.float32(direct)
    half = FRAME_SAMPLES // 2
    samples[:half] *= _slope(factors[:1], slopes[:1])[0, half : half + len(samples)]
    # Rows run from centre to centre; many of them need no gain.
    rows = _rows(samples[half:])
    changed = np.flatnonzero((factors != 1) | (slopes != 0)) - 1
    changed = changed[(changed >= 0) & (changed < len(rows))]
    for first in range(0, len(changed), _ROWS_PER_STEP):
        some = changed[first : first + _ROWS_PER_STEP]
        rows[some] *= _slope(factors[some + 1], slopes[some + 1])
    end = samples[half + rows.size :]
    if len(end):
        last = len(rows) + 1
        end *= _slope(factors[last:], slopes[last:])[0, : len(end)]


def _slope(begins: Samples, slopes: Samples) -> Samples:
    """(rows, 512) factors from one frame centre to the next."""
    factors = slopes[:, None] * _WITHIN_FRAME
    factors += begins[:, None]
    return factors
