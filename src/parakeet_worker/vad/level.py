"""Speech levels over time.

Levels are in dB of full scale, per frame of 32 ms, without direct current. The sustained level at a
frame is the third highest of the frames before it or of those after it, whichever is lower: a click
spans one or two frames, and at a change of voices one of both sides contains one voice only.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from parakeet_worker.audio.decoding import SAMPLE_RATE
from parakeet_worker.engine.base import Samples
from parakeet_worker.vad.base import FRAME_SAMPLES

DETECTED_DECIBELS = -44.0
"""Without noise, the network detects speech at this level as reliably as louder speech."""

SPEECH_RANGE_DECIBELS = 5.0
"""A level that varies less is room noise, not speech."""

CHUNK_FRAMES = 128
"""Sized so that a chunk and its temporaries fit into a core's cache."""

_RANK = 3  # as in `_Highest`
_SILENCE_POWER = 1e-10
# The spectrum of a sustained vowel changes less within 64 ms.
_STATIONARY_DECIBELS = 4.0
_FADES_DECIBELS = 15.0
_BAND_FLOOR = 1e-9
_FAINT_DECIBELS = -60.0
_SPECTRUM_WINDOW = 1024
_SPECTRUM_STEP = 512
_CHUNK_SAMPLES = CHUNK_FRAMES * FRAME_SAMPLES
_BAND_EDGES_HERTZ = np.geomspace(100, 4000, 17)
_MEAN = np.full(FRAME_SAMPLES, 1 / FRAME_SAMPLES, dtype=np.float32)

Decibels = npt.NDArray[np.float64]
"""One number per frame."""

Mask = npt.NDArray[np.bool_]

Numbers = npt.NDArray[np.intp]

Places = tuple[Numbers, Numbers]
"""Numbers of blocks, and of frames in these."""

Values = TypeVar("Values", Decibels, Mask)

_Highest = tuple[Decibels, Decibels, Decibels]
"""The highest, second and third highest of each window."""


@dataclass(frozen=True, slots=True, eq=False)
class Levels:
    """Levels of consecutive frames; the last frame is padded with silence."""

    decibels: Decibels
    """Without direct current."""
    means: Samples
    """The direct current of each frame."""

    @property
    def mean(self) -> float:
        """The mean of all samples."""
        return float(self.means.mean(dtype=np.float64))


def measured(samples: Samples) -> Levels:
    """Levels of frames of 32 ms."""
    powers, means = [np.zeros(0, dtype=np.float32)], [np.zeros(0, dtype=np.float32)]
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
        powers.append(power)
        means.append(mean)
    power = np.concatenate(powers).astype(np.float64)
    return Levels(10 * np.log10(np.maximum(power, _SILENCE_POWER)), np.concatenate(means))


def _chunks(samples: Samples) -> Iterator[Samples]:
    """(frames, 512) arrays of at most 128 frames; the last frame is padded with silence."""
    for begin in range(0, len(samples), _CHUNK_SAMPLES):
        chunk = samples[begin : begin + _CHUNK_SAMPLES]
        missing = -len(chunk) % FRAME_SAMPLES
        whole = np.pad(chunk, (0, missing)) if missing else chunk
        yield whole.reshape(-1, FRAME_SAMPLES)


def sustained(decibels: Decibels, frames: int) -> Decibels:
    """Sustained level over `frames` before or after each frame.

    Near either end, the side with more frames decides.
    """
    unknown = np.full(frames - 1, -np.inf)
    padded = np.concatenate((unknown, decibels, unknown))
    _, _, windows = _highest_of_windows(padded, frames)
    count = len(decibels)
    before, after = windows[:count], windows[frames - 1 :]
    held = _by_side(before, after, np.minimum(before, after), np.arange(count), count, frames)
    return np.where(np.isfinite(held), held, decibels)


def sustained_at(blocks: Decibels, frames: int, places: Places) -> Decibels:
    """The same for some frames of blocks (rows), each by itself."""
    rows, columns = places
    before = _third_highest(blocks, (rows, columns - frames + 1), frames)
    after = _third_highest(blocks, places, frames)
    both = np.minimum(before, after)
    held = _by_side(before, after, both, columns, blocks.shape[1], frames)
    return np.where(np.isfinite(held), held, blocks[places])


def _by_side(
    before: Values, after: Values, both: Values, frame: Numbers, count: int, frames: int
) -> Values:
    """The value of the side that decides at each of some frames, of `count`."""
    near = min(frames - 1, count // 2)
    return np.where(frame < near, after, np.where(frame >= count - near, before, both))


def _third_highest(blocks: Decibels, starts: Places, frames: int) -> Decibels:
    """Of the frames from each of `starts` on; those outside the block count as the lowest."""
    rows, columns = starts
    unknown = np.full((len(blocks), frames - 1), -np.inf)
    padded = np.concatenate((unknown, blocks, unknown), axis=1)
    first = rows * padded.shape[1] + columns + frames - 1
    windows = padded.ravel()[first[:, None] + np.arange(frames)]
    windows.partition(-_RANK, axis=1)
    highest: Decibels = windows[:, -_RANK]
    return highest


def _highest_of_windows(decibels: Decibels, frames: int) -> _Highest:
    """The three highest of each window, from those of its halves."""
    if frames == 1:
        lowest = np.full(len(decibels), -np.inf)
        return decibels, lowest, lowest
    half = _highest_of_windows(decibels, frames // 2)
    both = _merged(half, half, frames // 2)
    if frames % 2 == 0:
        return both
    return _merged(both, _highest_of_windows(decibels, 1), frames - 1)


def _merged(first: _Highest, second: _Highest, offset: int) -> _Highest:
    """The three highest of each window of `first` and the one of `second` so far behind it."""
    count = len(second[0]) - offset
    highest, middle, lowest = (values[:count] for values in first)
    other_highest, other_middle, other_lowest = (values[offset:] for values in second)
    lesser, greater = np.minimum(highest, other_highest), np.maximum(middle, other_middle)
    third = np.maximum(np.minimum(lesser, greater), np.maximum(lowest, other_lowest))
    return np.maximum(highest, other_highest), np.maximum(lesser, greater), third


def third_lowest_around(blocks: Decibels, frames: int, places: Places) -> Decibels:
    """Of the frames from `frames - 1` before to `frames - 1` after each of `places`."""
    rows, columns = places
    return -_third_highest(-blocks, (rows, columns - frames + 1), 2 * frames - 1)


def quiet_frames(blocks: Decibels, frames: int, first: int = 0) -> Places:
    """The frames from `first` on whose own and sustained levels are below -44 dB.

    The third highest level of a window is high if three are, which is quicker to count.
    """
    high = blocks >= DETECTED_DECIBELS
    count = blocks.shape[1]
    columns = np.arange(first, count)
    sums = np.zeros((len(blocks), count + 1), dtype=np.intp)
    np.cumsum(high, axis=1, out=sums[:, 1:])
    at, after_it = sums[:, first:count], sums[:, first + 1 :]
    before = after_it - sums[:, np.maximum(columns + 1 - frames, 0)] >= _RANK
    after = sums[:, np.minimum(columns + frames, count)] - at >= _RANK
    held = _by_side(before, after, before & after, columns, count, frames)
    rows, columns = np.nonzero(~(held | high[:, first:]))
    return rows, columns + first


def quantiles(decibels: Decibels, *shares: float) -> list[float]:
    """Quantiles as of `np.quantile`, which takes ten times as long for so few values."""
    ordered = np.sort(decibels)
    quantiles = []
    for share in shares:
        place = share * (len(ordered) - 1)
        low = int(place)
        lower, upper = float(ordered[low]), float(ordered[min(low + 1, len(ordered) - 1)])
        quantiles.append(lower + (upper - lower) * (place - low))
    return quantiles


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
