"""How loud speech is from one half second to the next; quiet speech raised to where it is detected.

Levels are in dB of full scale, of frames of 32 ms without their direct current. The level that
holds at a frame is the third highest of the frames before it or of those after it, whichever is
less: a click is in one frame or two, and beside a change of voices one of both sides is of one
voice only.
"""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from parakeet_worker.audio.decoding import SAMPLE_RATE
from parakeet_worker.engine.base import Samples
from parakeet_worker.vad.base import FRAME_SAMPLES

HIGHEST_GAIN_DECIBELS = 40.0

# The network detects what is at least as loud as surely as what is louder.
_DETECTED_DECIBELS = -44.0
# A pause of a loud speaker that is as long (1 s) may be raised, a shorter one is not.
_DETECTION_FRAMES = 31
# What moves less is the noise of a room, and no speech.
_SPEECH_RANGE_DECIBELS = 5.0
# Below it the features depend on the level, by the guard of their logarithm (2^-24).
_HEARD_DECIBELS = -40.0
_HEARD_FRAMES = 16
# The level of one voice moves by as much; what is further below the loudest is raised up to there.
_VOICE_RANGE_DECIBELS = 10.0
_BETWEEN_VOICES_DECIBELS = 26.0
# The onset of a word is quieter than the frames that are known to be speech.
_ONSET_FRAMES = 3
_RANK = 3
_HIGHEST_PEAK = 0.9
_SILENCE_POWER = 1e-10
# Digital silence stays what it is.
_SILENCE_DECIBELS = -95.0
# Speech has none over seconds.
_DIRECT_CURRENT = 0.003
# A vowel that is held moves less from one 64 ms to the next.
_HELD_DECIBELS = 4.0
_FADES_DECIBELS = 15.0
_BAND_FLOOR = 1e-9
_FAINT_DECIBELS = -60.0
_HELD_WINDOW = 1024
_HELD_STEP = 512
# So much fits into a core's cache, with what is computed on the way.
_CHUNK_FRAMES = 128
_CHUNK_SAMPLES = _CHUNK_FRAMES * FRAME_SAMPLES
_ROWS_AT_ONCE = 64
_BAND_EDGES_HERTZ = np.geomspace(100, 4000, 17)

Decibels = npt.NDArray[np.float64]
"""One number per frame."""

Mask = npt.NDArray[np.bool_]


def levels(samples: Samples) -> Decibels:
    """Of each frame; the last one is filled with silence."""
    return _measured(samples)[0]


def _measured(samples: Samples) -> tuple[Decibels, float]:
    """The level of each frame, and the mean of all samples."""
    powers, means = [np.zeros(0)], [np.zeros(0, dtype=np.float32)]
    for frames in _chunks(samples):
        mean = np.add.reduce(frames, axis=1, keepdims=True) * np.float32(1 / FRAME_SAMPLES)
        # The variance, in a fifth of the time that `var` takes.
        centred = frames - mean
        powers.append(np.einsum("ij,ij->i", centred, centred).astype(np.float64) / FRAME_SAMPLES)
        means.append(mean[:, 0])
    found = 10 * np.log10(np.maximum(np.concatenate(powers), _SILENCE_POWER))
    every = np.concatenate(means)
    return np.asarray(found), float(every.mean(dtype=np.float64)) if len(every) else 0.0


def _chunks(samples: Samples) -> Iterator[Samples]:
    """(frames, 512) arrays that fit into a core's cache; the last frame is filled with silence."""
    for begin in range(0, len(samples), _CHUNK_SAMPLES):
        chunk = samples[begin : begin + _CHUNK_SAMPLES]
        missing = -len(chunk) % FRAME_SAMPLES
        whole = np.pad(chunk, (0, missing)) if missing else chunk
        yield whole.reshape(-1, FRAME_SAMPLES)


def holding(found: Decibels, frames: int, first: int = 0) -> Decibels:
    """The level that holds for `frames` before or after each frame from `first` on.

    Where less is known on one side, near either end, the other side decides.
    """
    unknown = np.full(frames - 1, -np.inf)
    windows = _third_highest(np.concatenate((unknown, found, unknown)), frames)
    before, after = windows[: len(found)], windows[frames - 1 :]
    places = np.arange(len(found))
    known_before = np.minimum(places + 1, frames)
    known_after = np.minimum(len(found) - places, frames)
    held = np.minimum(before, after)
    held = np.where(known_before > known_after, before, held)
    held = np.where(known_before < known_after, after, held)
    return np.asarray(np.where(np.isfinite(held), held, found)[first:])


def _third_highest(found: Decibels, frames: int) -> Decibels:
    windows = np.lib.stride_tricks.sliding_window_view(found, frames)
    return np.asarray(np.partition(windows, -_RANK, axis=1)[:, -_RANK])


class Raised:
    """Blocks of one recording as a detector takes them: very quiet speech louder, by up to 40 dB.

    What is loud enough, or moves too little to be speech, is left as it is.
    """

    def __init__(self, context_samples: int) -> None:
        self._context_samples = context_samples
        self._before = np.zeros(0)
        self._last_gain = 0.0
        self._context: Samples | None = None

    def block(self, samples: Samples) -> Samples:
        """Whole frames, after the context: that is the end of the block before, as it was given."""
        frames = samples[self._context_samples :]
        found, direct = _measured(frames)
        known = np.concatenate((self._before, found))
        gains = _gains_to_detect(known, len(self._before))
        self._before = known[1 - _DETECTION_FRAMES :]
        if gains.any():
            gains = _headroom(frames, gains)
        last, self._last_gain = self._last_gain, float(gains[-1])
        context, self._context = self._context, None
        if abs(direct) > _DIRECT_CURRENT or last or gains.any():
            frames = _louder(frames, np.concatenate(([last], gains)), direct)
            self._context = frames[len(frames) - self._context_samples :]
        elif context is None:
            return samples
        before = samples[: self._context_samples] if context is None else context
        return np.concatenate((before, frames))


def _gains_to_detect(known: Decibels, first: int) -> Decibels:
    held = np.maximum(holding(known, _DETECTION_FRAMES, first), known[first:])
    wide = np.full(_DETECTION_FRAMES - 1, -np.inf)
    low = -_third_highest(np.concatenate((wide, -known, wide)), 2 * _DETECTION_FRAMES - 1)[first:]
    moves = held - low >= _SPEECH_RANGE_DECIBELS
    return np.where(moves, np.clip(_DETECTED_DECIBELS - held, 0.0, HIGHEST_GAIN_DECIBELS), 0.0)


def evened(samples: Samples, speaks: Mask) -> tuple[Samples, float]:
    """Speech with its quiet voices near its loudest, and by how many dB the quietest was raised.

    `speaks` says of each frame begun whether someone speaks in it. Speech at one level is left as
    it is, or raised as a whole where all of it is very quiet.
    """
    found, direct = _measured(samples)
    known = np.zeros(len(found), dtype=bool)
    known[: len(speaks)] = speaks[: len(found)]
    gains = _gains_of_voices(found, known)
    if not gains.any():
        return samples, 0.0
    gains = _headroom(samples, gains)
    raised = _louder(samples, np.concatenate((gains[:1], gains)), direct)
    return raised, round(float(gains.max()), 1)


def _gains_of_voices(found: Decibels, speaks: Mask) -> Decibels:
    """Of every frame; between two stretches of speech that of the one that is raised less."""
    if not speaks.any():
        return np.zeros(len(found))
    held = holding(found[speaks], _HEARD_FRAMES)
    loudest = float(np.quantile(held, 0.95))
    # The last frames of a loud voice hold for less than they are.
    held = np.maximum(held, found[speaks])
    whole = np.clip(_HEARD_DECIBELS - loudest, 0.0, HIGHEST_GAIN_DECIBELS)
    below = loudest - _VOICE_RANGE_DECIBELS - held
    gains = whole + np.clip(below, 0.0, _BETWEEN_VOICES_DECIBELS)
    spread = np.zeros(len(found))
    sounds = held > _SILENCE_DECIBELS
    spread[speaks] = np.where(sounds, np.minimum(gains, HIGHEST_GAIN_DECIBELS), 0.0)
    return _between_stretches(spread, speaks)


def _between_stretches(gains: Decibels, speaks: Mask) -> Decibels:
    """Gains of speech, begun a little earlier, with the lesser of both sides in between."""
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
    """Gains that clip neither their frame nor one next to it."""
    raised = np.pad(gains > 0, 1)
    near = raised[:-2] | raised[1:-1] | raised[2:]
    peaks = np.zeros(len(gains))
    for number, frames in enumerate(_chunks(samples)):
        part = slice(number * _CHUNK_FRAMES, (number + 1) * _CHUNK_FRAMES)
        some = frames[near[part]]
        if len(some):
            peaks[part][near[part]] = np.maximum(some.max(axis=1), -some.min(axis=1))
    beside = np.pad(np.maximum(peaks, 1e-9), 1)
    peaks = np.maximum(np.maximum(beside[:-2], beside[2:]), beside[1:-1])
    headroom = np.maximum(20 * np.log10(_HIGHEST_PEAK / peaks), 0.0)
    return np.asarray(np.minimum(gains, headroom))


def _louder(samples: Samples, gains: Decibels, direct: float) -> Samples:
    """The samples with each frame's gain in its middle and a slope from middle to middle.

    The first of the `gains` is that of the frame before the samples. Direct current is left out.
    """
    factors = 10 ** (gains / 20)
    slopes = np.diff(factors, append=factors[-1]) / FRAME_SAMPLES
    raised = samples - np.float32(direct) if abs(direct) > _DIRECT_CURRENT else samples.copy()
    half = FRAME_SAMPLES // 2
    raised[:half] *= _slope(factors[0], slopes[0])[half : half + len(samples)]
    count = max(0, len(samples) - half) // FRAME_SAMPLES
    rows = raised[half : half + count * FRAME_SAMPLES].reshape(-1, FRAME_SAMPLES)
    # From middle to middle; most samples of a recording need no gain.
    changed = np.flatnonzero((factors != 1) | (slopes != 0))
    changed = changed[(changed > 0) & (changed <= count)]
    for first in range(0, len(changed), _ROWS_AT_ONCE):
        part = changed[first : first + _ROWS_AT_ONCE]
        rows[part - 1] *= _slope(factors[part, None], slopes[part, None])
    end = raised[half + count * FRAME_SAMPLES :]
    if len(end):
        end *= _slope(factors[count + 1], slopes[count + 1])[: len(end)]
    return raised


def _slope(begins: Decibels, slopes: Decibels) -> Samples:
    """Factors from the middle of a frame up to that of the next."""
    return np.asarray(slopes * np.arange(FRAME_SAMPLES) + begins, dtype=np.float32)


def held_seconds(samples: Samples) -> float:
    """How long the sound at the beginning stays the same."""
    if len(samples) < 3 * _HELD_WINDOW:
        return 0.0
    envelopes, levels = _envelopes(samples)
    moves = np.sqrt(np.mean(np.square(envelopes[2:] - envelopes[:-2]), axis=1))
    fades = levels[1:-1] < np.maximum(levels[0] - _FADES_DECIBELS, _FAINT_DECIBELS)
    moving = (moves > _HELD_DECIBELS) | fades
    held = len(moves) if not moving.any() else int(np.argmax(moving))
    return held * _HELD_STEP / SAMPLE_RATE


def _envelopes(samples: Samples) -> tuple[Decibels, Decibels]:
    """(windows, bands) in dB without each window's mean, and these means."""
    windows = np.lib.stride_tricks.sliding_window_view(samples, _HELD_WINDOW)[::_HELD_STEP]
    power = np.abs(np.fft.rfft(windows * np.hanning(_HELD_WINDOW), axis=1)) ** 2
    edges = np.round(_BAND_EDGES_HERTZ * _HELD_WINDOW / SAMPLE_RATE).astype(int)
    bands = np.add.reduceat(power, edges, axis=1)[:, :-1] + _BAND_FLOOR
    decibels = 10 * np.log10(bands)
    means = decibels.mean(axis=1)
    return decibels - means[:, None], means
