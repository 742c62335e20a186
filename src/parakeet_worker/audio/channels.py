"""Channels of a recording: cleaned, mixed so that none cancels another, freed of cross-talk."""

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from parakeet_worker.engine.base import SAMPLE_RATE, Samples
from parakeet_worker.notices import Notice

MAX_CHANNELS = 64
"""Limit per recording: ffmpeg's resampler supports no more."""

# Full scale is 1; files of floats that were scaled like integers reach 32,768.
_LARGEST = 1e5
_MAX_POSITIONS = 1000

# A channel quieter than the loudest by more than 60 dB is not counted in the mix.
_SILENT_POWER = 1e-6
# A channel whose correlation with the loudest one is below the negative of this is inverted; above
# it, the inversion ends. The hysteresis avoids toggling.
_OPPOSITE = 0.2
_BLOCK_SAMPLES = 1 << 15

# Cross-talk is searched four times per second, in windows of 0.5 s at 4 kHz.
_HOP_SAMPLES = SAMPLE_RATE // 4
_DECIMATION = 4
_COARSE_HOP = _HOP_SAMPLES // _DECIMATION
_COARSE_WINDOW = 2 * _COARSE_HOP
_COARSE_LAG = SAMPLE_RATE // _DECIMATION // 20
_CROSSTALK_POWER = 10 ** (-20 / 10)
# Independent voices reach 0.4 at some delay.
_CROSSTALK_CORRELATION = 0.5
_WINDOWS_PER_STEP = 256

Matrix = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]
Indices = npt.NDArray[np.intp]


class Cleaner:
    """Replaces NaN, infinite and out-of-range samples by silence."""

    def __init__(self) -> None:
        self._at = 0
        self._count = 0
        self._positions: list[float] = []

    def clean(self, samples: Samples) -> Samples:
        """(N,) or (N, channels); returns the same array if all samples are valid."""
        at, self._at = self._at, self._at + len(samples)
        if _surely_valid(samples):
            return samples
        good = np.abs(samples) <= _LARGEST
        if good.all():
            return samples
        rows = ~(good if good.ndim == 1 else good.all(axis=1))
        self._count += int(rows.sum())
        room = _MAX_POSITIONS - len(self._positions)
        self._positions += [(at + int(row)) / SAMPLE_RATE for row in np.flatnonzero(rows)[:room]]
        return np.where(good, samples, np.float32(0))

    def notices(self) -> list[Notice]:
        """Notice of the replaced samples, if any."""
        if not self._count:
            return []
        message = f"{self._count} samples are no numbers or out of bounds; they became silence"
        end_seconds = self._positions[-1] + 1 / SAMPLE_RATE
        return [Notice("samples_invalid", message, self._positions[0], end_seconds, damage=True)]


def _surely_valid(samples: Samples) -> bool:
    """Whether no sample is invalid; false for some loud valid ones."""
    flat = samples.reshape(-1)
    # One pass without a copy. NaN fails the comparison too.
    with np.errstate(over="ignore", invalid="ignore"):
        return bool(flat @ flat <= _LARGEST**2)


class Mixer:
    """Channels to one: the mean of those that have sound, none of which cancels another.

    A channel that is another upside down is turned over. No layout is guessed: which of the
    channels is a loudspeaker for what, is not known, and none is left out.
    """

    def __init__(self) -> None:
        self.opposite: set[int] = set()
        """Channels, from 1, that were turned over."""
        self.silent: set[int] = set()
        """Channels, from 1, that had no sound."""
        self._held: Samples | None = None
        self._signs: list[float] = []

    def mix(self, samples: Samples) -> Samples:
        """(N, channels) to (N,): all whole blocks of what has come so far.

        Blocks lie on a grid, so that how the samples are divided changes nothing.
        """
        if self._held is None:
            self._held = self._begin(samples.shape[1])
        missing = _BLOCK_SAMPLES - len(self._held)
        first = np.concatenate((self._held, samples[:missing]))
        if len(samples) < missing:
            self._held = first
            return np.zeros(0, dtype=np.float32)
        samples = samples[missing:]
        whole = len(samples) - len(samples) % _BLOCK_SAMPLES
        self._held = samples[whole:].copy()
        return self._mixed([first, *samples[:whole].reshape(-1, *first.shape)])

    def rest(self) -> Samples:
        """The last block."""
        held, self._held = self._held, None
        return self._mixed([] if held is None else [held])

    def _begin(self, channels: int) -> Samples:
        self._signs = [1.0] * channels
        self.silent = set(range(1, channels + 1))
        return np.zeros((0, channels), dtype=np.float32)

    def _mixed(self, blocks: Sequence[Samples]) -> Samples:
        mixed = np.empty(sum(map(len, blocks)), dtype=np.float32)
        at = 0
        for block in blocks:
            self._mix_block(block, mixed[at : at + len(block)])
            at += len(block)
        return mixed

    def _mix_block(self, block: Samples, mixed: Samples) -> None:
        # Products of contiguous rows take a third of the time of those of columns.
        rows = np.ascontiguousarray(block.T)
        powers = [float(row @ row) for row in rows]
        loudest = powers.index(max(powers))
        if not powers[loudest]:
            mixed[:] = 0
            return
        self._compare(powers, (rows @ rows[loudest]).tolist(), loudest)
        # Once active, a channel keeps counting: no speaker gets louder when another is silent.
        counting = [number not in self.silent for number in range(1, len(rows) + 1)]
        weights = np.array(self._signs, dtype=np.float32) * counting / np.float32(sum(counting))
        np.matmul(weights.astype(np.float32), rows, out=mixed)

    def _compare(self, powers: Sequence[float], products: Sequence[float], loudest: int) -> None:
        """Update signs and activity, by powers and by the products with the loudest channel."""
        power, sign = powers[loudest], self._signs[loudest]
        for channel, (own, product) in enumerate(zip(powers, products, strict=True)):
            if own <= power * _SILENT_POWER:
                continue
            self.silent.discard(channel + 1)
            correlation = sign * product / math.sqrt(own * power)
            if abs(correlation) > _OPPOSITE:
                self._signs[channel] = math.copysign(1.0, correlation)
            if self._signs[channel] < 0:
                self.opposite.add(channel + 1)


class CrossTalk:
    """Mutes a channel where it contains only another channel's signal, 20 dB quieter."""

    def __init__(self) -> None:
        self.seconds = 0.0
        """Muted seconds, summed over channels."""

    def removed(self, samples: Samples) -> Samples:
        """(N, channels); returns the same array without cross-talk."""
        hops = len(samples) // _HOP_SAMPLES
        if samples.shape[1] < 2 or hops < 2:
            return samples
        coarse = _coarse(samples[: hops * _HOP_SAMPLES])
        powers = np.einsum("hsc,hsc->hc", coarse, coarse, dtype=np.float64)
        powers = np.maximum(powers[:-1] + powers[1:], 0.0)  # of windows of two hops
        loudest = powers.argmax(axis=1)
        quiet = (powers > 0) & (powers < powers.max(axis=1, keepdims=True) * _CROSSTALK_POWER)
        places = np.argwhere(quiet)
        crosstalk = np.zeros(quiet.shape, dtype=np.bool_)
        for first in range(0, len(places), _WINDOWS_PER_STEP):
            window, channel = places[first : first + _WINDOWS_PER_STEP].T
            pairs = (_windows(coarse, window, each) for each in (channel, loudest[window]))
            crosstalk[window, channel] = _similarity(*pairs) > _CROSSTALK_CORRELATION
        if not crosstalk.any():
            return samples
        kept = ~_in_both(crosstalk)
        self.seconds += float((~kept).sum()) * _HOP_SAMPLES / SAMPLE_RATE
        return samples * _faded(kept, len(samples))


def _coarse(samples: Samples) -> Samples:
    """(hops, samples per hop, channels) at a quarter of the rate, which contains the voice band."""
    shape = (-1, _COARSE_HOP, _DECIMATION, samples.shape[1])
    mean: Samples = samples.reshape(shape).mean(axis=2)
    return mean


def _windows(coarse: Samples, first: Indices, channel: Indices) -> Samples:
    """Windows of two hops, each of one channel."""
    return np.concatenate((coarse[first, :, channel], coarse[first + 1, :, channel]), axis=1)


def _similarity(quiet: Samples, loud: Samples) -> Matrix:
    """Per row, the maximum correlation at delays of up to 50 ms."""
    size = 2 * _COARSE_WINDOW
    spectrum = np.fft.rfft(quiet, size) * np.conj(np.fft.rfft(loud, size))
    products = np.fft.irfft(spectrum, size)
    near = np.concatenate((products[:, : _COARSE_LAG + 1], products[:, -_COARSE_LAG:]), axis=1)
    scale = np.linalg.norm(quiet, axis=1) * np.linalg.norm(loud, axis=1)
    similarity: Matrix = np.abs(near).max(axis=1) / np.maximum(scale, np.finfo(np.float64).tiny)
    return similarity


def _in_both(crosstalk: Mask) -> Mask:
    """Convert windows of two hops to hops: true if both windows of the hop are."""
    edge = np.ones((1, crosstalk.shape[1]), dtype=np.bool_)
    both: Mask = np.concatenate((crosstalk, edge)) & np.concatenate((edge, crosstalk))
    return both


def _faded(kept: Mask, length: int) -> Samples:
    """1 for kept samples, 0 for muted ones, with linear fades of one hop."""
    middles = (np.arange(len(kept)) + 0.5) * _HOP_SAMPLES
    at = np.arange(length)
    columns = [np.interp(at, middles, column.astype(np.float64)) for column in kept.T]
    return np.stack(columns, axis=1).astype(np.float32)
