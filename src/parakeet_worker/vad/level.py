"""Speech levels over time, and gain for quiet speech and quiet voices.

Levels are in dB of full scale, per frame of 32 ms, without direct current. The sustained level at a
frame is the third highest of the frames before it or of those after it, whichever is lower: a click
spans one or two frames, and at a change of voices one of both sides contains one voice only.
"""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from parakeet_worker.audio.decoding import SAMPLE_RATE
from parakeet_worker.engine.base import Samples
from parakeet_worker.vad.base import FRAME_SAMPLES

HIGHEST_GAIN_DECIBELS = 40.0

# The network detects speech at or above this level as reliably as louder speech.
_DETECTED_DECIBELS = -44.0
# 1 s: shorter pauses of a loud speaker get no gain.
_DETECTION_FRAMES = 31
# A level that varies less is room noise, not speech.
_SPEECH_RANGE_DECIBELS = 5.0
# Below it the features depend on the level, because of the guard in their logarithm (2^-24).
_RECOGNIZED_DECIBELS = -40.0
_RECOGNIZED_FRAMES = 16
# The range of one voice; voices further below the loudest are raised to its lower end.
_VOICE_RANGE_DECIBELS = 10.0
_BETWEEN_VOICES_DECIBELS = 26.0
# Word onsets are quieter than the frames detected as speech.
_ONSET_FRAMES = 3
_RANK = 3
_HIGHEST_PEAK = 0.9
_SILENCE_POWER = 1e-10
# Digital silence gets no gain.
_SILENCE_DECIBELS = -95.0
# Speech has no direct current over seconds.
_DIRECT_CURRENT = 0.003
# The spectrum of a sustained vowel changes less within 64 ms.
_STATIONARY_DECIBELS = 4.0
_FADES_DECIBELS = 15.0
_BAND_FLOOR = 1e-9
_FAINT_DECIBELS = -60.0
_SPECTRUM_WINDOW = 1024
_SPECTRUM_STEP = 512
# Sized so that a chunk and its temporaries fit into a core's cache.
_CHUNK_FRAMES = 128
_CHUNK_SAMPLES = _CHUNK_FRAMES * FRAME_SAMPLES
_ROWS_PER_STEP = 64
_BAND_EDGES_HERTZ = np.geomspace(100, 4000, 17)
_MEAN = np.full(FRAME_SAMPLES, 1 / FRAME_SAMPLES, dtype=np.float32)
_WITHIN_FRAME = np.arange(FRAME_SAMPLES, dtype=np.float32)

Decibels = npt.NDArray[np.float64]
"""One number per frame."""

Mask = npt.NDArray[np.bool_]


def levels(samples: Samples) -> Decibels:
    """Level of each frame; the last frame is padded with silence."""
    return _measured(samples)[0]


def _measured(samples: Samples) -> tuple[Decibels, float]:
    """The level of each frame, and the mean of all samples."""
    powers, means = [np.zeros(0)], [np.zeros(0, dtype=np.float32)]
    for frames in _chunks(samples):
        mean = frames @ _MEAN
        power = np.linalg.vecdot(frames, frames) * np.float32(1 / FRAME_SAMPLES)
        direct = mean * mean
        if (2 * direct > power).any():
            # Of nearly equal numbers, the difference would be inexact.
            centred = frames - mean[:, None]
            power = np.linalg.vecdot(centred, centred) * np.float32(1 / FRAME_SAMPLES)
        else:
            power -= direct
        powers.append(power.astype(np.float64))
        means.append(mean)
    decibels = 10 * np.log10(np.maximum(np.concatenate(powers), _SILENCE_POWER))
    every = np.concatenate(means)
    return np.asarray(decibels), float(every.mean(dtype=np.float64)) if len(every) else 0.0


def _chunks(samples: Samples) -> Iterator[Samples]:
    """(frames, 512) arrays of at most 128 frames; the last frame is padded with silence."""
    for begin in range(0, len(samples), _CHUNK_SAMPLES):
        chunk = samples[begin : begin + _CHUNK_SAMPLES]
        missing = -len(chunk) % FRAME_SAMPLES
        whole = np.pad(chunk, (0, missing)) if missing else chunk
        yield whole.reshape(-1, FRAME_SAMPLES)


def sustained(decibels: Decibels, frames: int, first: int = 0) -> Decibels:
    """Sustained level over `frames` before or after each frame from `first` on.

    Near either end, the side with more frames decides.
    """
    unknown = np.full(frames - 1, -np.inf)
    windows = _third_highest(np.concatenate((unknown, decibels, unknown)), frames)
    before, after = windows[: len(decibels)], windows[frames - 1 :]
    places = np.arange(len(decibels))
    known_before = np.minimum(places + 1, frames)
    known_after = np.minimum(len(decibels) - places, frames)
    held = np.minimum(before, after)
    held = np.where(known_before > known_after, before, held)
    held = np.where(known_before < known_after, after, held)
    return np.asarray(np.where(np.isfinite(held), held, decibels)[first:])


def _third_highest(decibels: Decibels, frames: int) -> Decibels:
    windows = np.lib.stride_tricks.sliding_window_view(decibels, frames)
    return np.asarray(np.partition(windows, -_RANK, axis=1)[:, -_RANK])


class QuietSpeechGain:
    """Amplifies very quiet speech in the blocks of one recording, by up to 40 dB.

    Audio that is loud enough, or whose level varies too little for speech, is unchanged.
    """

    def __init__(self, context_samples: int) -> None:
        self._context_samples = context_samples
        self._before = np.zeros(0)
        self._last_gain = 0.0
        self._context: Samples | None = None

    def apply(self, samples: Samples) -> Samples:
        """Context (the unamplified end of the previous block) and whole frames, amplified."""
        frames = samples[self._context_samples :]
        decibels, direct = _measured(frames)
        known = np.concatenate((self._before, decibels))
        gains = _gains_to_detect(known, len(self._before))
        self._before = known[1 - _DETECTION_FRAMES :]
        if gains.any():
            gains = _headroom(frames, gains)
        last, self._last_gain = self._last_gain, float(gains[-1])
        context, self._context = self._context, None
        if abs(direct) > _DIRECT_CURRENT or last or gains.any():
            frames = _amplified(frames, np.concatenate(([last], gains)), direct)
            self._context = frames[len(frames) - self._context_samples :]
        elif context is None:
            return samples
        before = samples[: self._context_samples] if context is None else context
        return np.concatenate((before, frames))


def _gains_to_detect(known: Decibels, first: int) -> Decibels:
    held = np.maximum(sustained(known, _DETECTION_FRAMES, first), known[first:])
    wide = np.full(_DETECTION_FRAMES - 1, -np.inf)
    low = -_third_highest(np.concatenate((wide, -known, wide)), 2 * _DETECTION_FRAMES - 1)[first:]
    moves = held - low >= _SPEECH_RANGE_DECIBELS
    return np.where(moves, np.clip(_DETECTED_DECIBELS - held, 0.0, HIGHEST_GAIN_DECIBELS), 0.0)


def even_levels(samples: Samples, speaks: Mask) -> tuple[Samples, float]:
    """Raise quiet voices to the level of the loudest.

    Returns the samples and the maximum gain in dB. `speaks` marks the frames with speech. Speech
    at one level is unchanged, or amplified as a whole if all of it is very quiet.
    """
    decibels, direct = _measured(samples)
    known = np.zeros(len(decibels), dtype=bool)
    known[: len(speaks)] = speaks[: len(decibels)]
    gains = _gains_of_voices(decibels, known)
    if not gains.any():
        return samples, 0.0
    gains = _headroom(samples, gains)
    raised = _amplified(samples, np.concatenate((gains[:1], gains)), direct)
    return raised, round(float(gains.max()), 1)


def _gains_of_voices(decibels: Decibels, speaks: Mask) -> Decibels:
    """Gain of every frame; between two spans of speech, the lower of both gains."""
    if not speaks.any():
        return np.zeros(len(decibels))
    held = sustained(decibels[speaks], _RECOGNIZED_FRAMES)
    loudest = float(np.quantile(held, 0.95))
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
    around = np.convolve(speaks, np.ones(2 * _ONSET_FRAMES + 1))
    near = around[_ONSET_FRAMES : len(speaks) + _ONSET_FRAMES] > 0
    places = np.arange(len(gains))
    known = np.flatnonzero(speaks)
    before = np.clip(np.searchsorted(known, places, side="right") - 1, 0, None)
    after = np.clip(np.searchsorted(known, places, side="left"), None, len(known) - 1)
    left, right = known[before], known[after]
    nearest = np.where(np.abs(places - left) <= np.abs(right - places), left, right)
    lesser = np.minimum(gains[left], gains[right])
    return np.where(speaks, gains, np.where(near, gains[nearest], lesser))


def _headroom(samples: Samples, gains: Decibels) -> Decibels:
    """Gains limited so that neither their frame nor an adjacent one clips."""
    raised = np.pad(gains > 0, 1)
    near = raised[:-2] | raised[1:-1] | raised[2:]
    peaks = np.zeros(len(gains))
    for number, frames in enumerate(_chunks(samples)):
        part = slice(number * _CHUNK_FRAMES, (number + 1) * _CHUNK_FRAMES)
        if near[part].any():
            peaks[part] = np.maximum(frames.max(axis=1), -frames.min(axis=1))
    adjacent = np.pad(np.maximum(peaks, 1e-9), 1)
    peaks = np.maximum(np.maximum(adjacent[:-2], adjacent[2:]), adjacent[1:-1])
    headroom = np.maximum(20 * np.log10(_HIGHEST_PEAK / peaks), 0.0)
    return np.asarray(np.minimum(gains, headroom))


def _amplified(samples: Samples, gains: Decibels, direct: float) -> Samples:
    """Samples with gains that apply at frame centres and are interpolated between them.

    The first gain is that of the frame before the samples. Direct current is removed.
    """
    factors = (10 ** (gains / 20)).astype(np.float32)
    slopes = np.diff(factors, append=factors[-1]) * np.float32(1 / FRAME_SAMPLES)
    raised = samples - np.float32(direct) if abs(direct) > _DIRECT_CURRENT else samples.copy()
    half = FRAME_SAMPLES // 2
    raised[:half] *= _slope(factors[:1], slopes[:1])[0, half : half + len(samples)]
    count = max(0, len(samples) - half) // FRAME_SAMPLES
    rows = raised[half : half + count * FRAME_SAMPLES].reshape(-1, FRAME_SAMPLES)
    # Rows run from centre to centre; many of them need no gain.
    changed = (factors != 1) | (slopes != 0)
    for first in range(0, count, _ROWS_PER_STEP):
        part = slice(first + 1, min(first + _ROWS_PER_STEP, count) + 1)
        if changed[part].any():
            rows[first : first + _ROWS_PER_STEP] *= _slope(factors[part], slopes[part])
    end = raised[half + count * FRAME_SAMPLES :]
    if len(end):
        end *= _slope(factors[count + 1 :], slopes[count + 1 :])[0, : len(end)]
    return raised


def _slope(begins: Samples, slopes: Samples) -> Samples:
    """(rows, 512) factors from one frame centre to the next."""
    factors = slopes[:, None] * _WITHIN_FRAME
    factors += begins[:, None]
    return factors


def sounds_like_speech(samples: Samples) -> Mask:
    """The frames as loud as speech, if the level of these varies as that of speech does."""
    decibels = levels(samples)
    loud = decibels >= _DETECTED_DECIBELS
    if not loud.any():
        return loud
    low, high = np.quantile(decibels[loud], (0.1, 0.9))
    return loud if high - low >= _SPEECH_RANGE_DECIBELS else np.zeros_like(loud)


def stationary_seconds(samples: Samples) -> float:
    """For how long the spectrum stays constant from the start."""
    if len(samples) < 3 * _SPECTRUM_WINDOW:
        return 0.0
    envelopes, levels = _envelopes(samples)
    moves = np.sqrt(np.mean(np.square(envelopes[2:] - envelopes[:-2]), axis=1))
    fades = levels[1:-1] < np.maximum(levels[0] - _FADES_DECIBELS, _FAINT_DECIBELS)
    moving = (moves > _STATIONARY_DECIBELS) | fades
    held = len(moves) if not moving.any() else int(np.argmax(moving))
    return held * _SPECTRUM_STEP / SAMPLE_RATE


def _envelopes(samples: Samples) -> tuple[Decibels, Decibels]:
    """Band levels in dB, (windows, bands), minus each window's mean; and these means."""
    windows = np.lib.stride_tricks.sliding_window_view(samples, _SPECTRUM_WINDOW)[::_SPECTRUM_STEP]
    power = np.abs(np.fft.rfft(windows * np.hanning(_SPECTRUM_WINDOW), axis=1)) ** 2
    edges = np.round(_BAND_EDGES_HERTZ * _SPECTRUM_WINDOW / SAMPLE_RATE).astype(int)
    bands = np.add.reduceat(power, edges, axis=1)[:, :-1] + _BAND_FLOOR
    decibels = 10 * np.log10(bands)
    means = decibels.mean(axis=1)
    return decibels - means[:, None], means
