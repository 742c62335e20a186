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
    sustained_at,
    third_lowest_around,
)

HIGHEST_GAIN_DECIBELS = 40.0

HIGHEST_PEAK = 0.9
"""Of amplified samples."""

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
        self._block_frames = block_samples // FRAME_SAMPLES
        self._before = np.zeros(0)
        self._last_gain = 0.0
        self._context: Samples | None = None

    def apply(self, samples: Samples, levels: Levels) -> Samples:
        """Context and blocks, amplified.

        The context is the unamplified end of the previous block, `levels` are those of the blocks.
        A block that is shorter is the last one of the recording, and alone. If nothing changes,
        `samples` itself is returned.
        """
        count = max(1, len(levels.decibels) // self._block_frames)
        blocks = samples[self._context_samples :].reshape(count, -1)
        direct = levels.means.reshape(count, -1).mean(axis=1, dtype=np.float64)
        gains = self._gains(levels.decibels).reshape(count, -1)
        if gains.any():
            gains = _headroom(blocks, gains)
        last = np.concatenate(([self._last_gain], gains[:-1, -1]))
        changed = (np.abs(direct) > _DIRECT_CURRENT) | (last != 0) | gains.any(axis=1)
        raised = samples
        if changed.any() or self._context is not None:
            raised = samples.copy()
            _amplify(
                raised[self._context_samples :].reshape(count, -1),
                np.concatenate((last[:, None], gains), axis=1),
                direct,
            )
        if self._context is not None:
            raised[: self._context_samples] = self._context
        end = raised[len(raised) - self._context_samples :]
        self._context = end.copy() if changed[-1] else None
        self._last_gain = float(gains[-1, -1])
        return raised

    def _gains(self, decibels: Decibels) -> Decibels:
        """Gain of each frame. What follows a block does not count, since it may not be there."""
        size, gains, done = self._block_frames, list[Decibels](), 0
        while done < len(decibels):
            first = len(self._before)
            count = max(1, (len(decibels) - done) // size) if first else 1
            known = np.concatenate((self._before, decibels[done : done + count * size]))
            width = min(first + size, len(known))
            blocks = known[size * np.arange(count)[:, None] + np.arange(width)]
            gains.append(_gains_to_detect(blocks, first).ravel())
            self._before = known[1 - _DETECTION_FRAMES :]
            done += count * size
        return np.concatenate(gains)


def _gains_to_detect(blocks: Decibels, first: int) -> Decibels:
    """Gain of each frame from `first` on, of each block (a row)."""
    gains = np.zeros((len(blocks), blocks.shape[1] - first))
    quiet = quiet_frames(blocks, _DETECTION_FRAMES, first)
    rows, columns = quiet
    if len(rows):
        held = np.maximum(sustained_at(blocks, _DETECTION_FRAMES, quiet), blocks[quiet])
        low = third_lowest_around(blocks, _DETECTION_FRAMES, quiet)
        needed = np.clip(DETECTED_DECIBELS - held, 0.0, HIGHEST_GAIN_DECIBELS)
        moves = held - low >= SPEECH_RANGE_DECIBELS
        gains[rows, columns - first] = np.where(moves, needed, 0.0)
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
    raised = np.zeros(len(gains) * FRAME_SAMPLES, dtype=np.float32)
    raised[: len(samples)] = samples
    gains = _headroom(raised[None], gains[None])
    from_first = np.concatenate((gains[:, :1], gains), axis=1)
    _amplify(raised[None], from_first, np.array([levels.mean]))
    return raised[: len(samples)], round(float(gains.max()), 1)


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


def _headroom(blocks: Samples, gains: Decibels) -> Decibels:
    """Gains limited so that neither their frame nor an adjacent one clips.

    Blocks are rows of whole frames, with a gain for each.
    """
    raised = np.zeros((len(gains), gains.shape[1] + 2), dtype=bool)
    raised[:, 1:-1] = gains > 0
    rows, columns = np.nonzero(raised[:, :-2] | raised[:, 1:-1] | raised[:, 2:])
    frames = blocks.reshape(-1, FRAME_SAMPLES)
    highest = np.zeros(len(rows), dtype=np.float32)
    for first in range(0, len(rows), CHUNK_FRAMES):
        part = slice(first, first + CHUNK_FRAMES)
        some = frames[rows[part] * gains.shape[1] + columns[part]]
        highest[part] = np.abs(some, out=some).max(axis=1)
    peaks = np.full(raised.shape, 1e-9)
    peaks[rows, columns + 1] = np.maximum(highest, 1e-9)
    peaks = np.maximum(np.maximum(peaks[:, :-2], peaks[:, 2:]), peaks[:, 1:-1])
    headroom = np.maximum(20 * np.log10(HIGHEST_PEAK / peaks), 0.0)
    return np.asarray(np.minimum(gains, headroom))


def _amplify(blocks: Samples, gains: Decibels, direct: Decibels) -> None:
    """Apply gains at frame centres, interpolated between them, in place.

    Blocks are rows of whole frames. The first gain of each is that of the frame before it. The
    direct current of each is removed.
    """
    factors = (10 ** (gains / 20)).astype(np.float32)
    slopes = np.zeros_like(factors)
    slopes[:, :-1] = (factors[:, 1:] - factors[:, :-1]) * np.float32(1 / FRAME_SAMPLES)
    if (np.abs(direct) > _DIRECT_CURRENT).any():
        removed = np.where(np.abs(direct) > _DIRECT_CURRENT, direct, 0.0)
        blocks -= removed.astype(np.float32)[:, None]
    half = FRAME_SAMPLES // 2
    blocks[:, :half] *= _slope(factors[:, 0], slopes[:, 0])[:, half:]
    blocks[:, -half:] *= factors[:, -1:]
    # From centre to centre; most of them need no gain.
    spans = blocks[:, half:-half].reshape(len(blocks), -1, FRAME_SAMPLES)
    rows, columns = np.nonzero((factors[:, 1:-1] != 1) | (slopes[:, 1:-1] != 0))
    for first in range(0, len(rows), _ROWS_PER_STEP):
        row, column = rows[first : first + _ROWS_PER_STEP], columns[first : first + _ROWS_PER_STEP]
        spans[row, column] *= _slope(factors[row, column + 1], slopes[row, column + 1])


def _slope(begins: Samples, slopes: Samples) -> Samples:
    """(rows, 512) factors from one frame centre to the next."""
    factors = slopes[:, None] * _WITHIN_FRAME
    factors += begins[:, None]
    return factors
