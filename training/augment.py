"""Augmentation of speech: rooms, microphones, telephone lines and noise."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.fft import irfft, next_fast_len, rfft

from training.clips import SAMPLE_RATE

Wave = NDArray[np.float32]

EQUALISER_HERTZ = np.array([0, 100, 250, 500, 1000, 2000, 4000, 8000])
LONGEST_REVERBERATION_SECONDS = 0.4
BED_SECONDS = 90
LOST_SECONDS = (0.02, 0.15)
LONGEST_SILENCE_SECONDS = 2.5
SPEECH_EDGE_SAMPLES = SAMPLE_RATE // 10


@dataclass(frozen=True, slots=True)
class Strength:
    """Probability and maximum strength of each impairment."""

    noise: float = 0.75
    lowest_snr_decibels: float = 5.0
    reverberation: float = 0.3
    phone_line: float = 0.33
    equaliser: float = 0.7
    equaliser_decibels: float = 8.0
    coarse_quantisation: float = 0.08


MILD = Strength(0.5, 15.0, 0.1, 0.15, 0.4, 4.0, 0.0)
FULL = Strength()
CLEAN = Strength(
    noise=0.0, reverberation=0.0, phone_line=0.0, equaliser=0.0, coarse_quantisation=0.0
)


@dataclass(frozen=True, slots=True, eq=False)
class NoiseBeds:
    """Long noise recordings at unit RMS, from which excerpts are cut."""

    steady: tuple[Wave, ...]
    """White, pink, brown, hum."""
    babble: tuple[Wave, ...]
    """Many simultaneous voices."""

    @classmethod
    def make(cls, voices: list[NDArray[np.int16]], randomness: np.random.Generator) -> "NoiseBeds":
        """Generate noise of every colour, and babble of the given voices."""
        count = BED_SECONDS * SAMPLE_RATE
        steady = [coloured_noise(count, slope, randomness) for slope in (0.0, 0.5, 1.0)]
        return cls(
            (*steady, hum(count, randomness)),
            tuple(babble(count, voices, randomness) for _ in range(2)),
        )

    def cut(self, count: int, babble_share: float, randomness: np.random.Generator) -> Wave:
        """Return an excerpt of `count` samples from a random bed."""
        beds = self.babble if randomness.random() < babble_share else self.steady
        bed = beds[int(randomness.integers(len(beds)))]
        start = int(randomness.integers(len(bed)))
        return np.take(bed, np.arange(start, start + count), mode="wrap")


def coloured_noise(count: int, slope: float, randomness: np.random.Generator) -> Wave:
    """Generate noise whose amplitude is proportional to frequency to the power of `-slope`."""
    spectrum = rfft(randomness.standard_normal(count).astype(np.float32))
    hertz = np.fft.rfftfreq(count, 1 / SAMPLE_RATE)
    return unit(irfft(spectrum * np.maximum(hertz, 30.0) ** -slope, count))


def hum(count: int, randomness: np.random.Generator) -> Wave:
    """Generate mains hum with its harmonics over faint pink noise."""
    time = np.arange(count) / SAMPLE_RATE
    tones = sum(np.sin(2 * np.pi * 50 * order * time) / order for order in (1, 2, 3, 5, 7))
    return unit(np.asarray(tones, np.float32) + coloured_noise(count, 0.5, randomness) * 0.3)


def babble(count: int, voices: list[NDArray[np.int16]], randomness: np.random.Generator) -> Wave:
    """Sum ten streams of speech."""
    mixed = np.zeros(count, np.float32)
    for _ in range(10):
        filled = 0
        while filled < count:
            clip = voices[int(randomness.integers(len(voices)))][: count - filled]
            mixed[filled : filled + len(clip)] += clip
            filled += len(clip) + int(randomness.integers(0, 8000))
    return unit(mixed)


def unit(wave: NDArray[np.floating]) -> Wave:
    """Scale the wave to an RMS of one."""
    return np.asarray(wave / (np.sqrt(np.mean(np.square(wave))) + 1e-9), np.float32)


def at_speed(wave: Wave, factor: float) -> Wave:
    """Resample to play faster by the factor: higher and shorter."""
    places = np.arange(0, len(wave) - 1, factor)
    return np.asarray(np.interp(places, np.arange(len(wave)), wave), np.float32)


def impaired(
    wave: Wave, speech: Wave, beds: NoiseBeds, strength: Strength, randomness: np.random.Generator
) -> Wave:
    """Apply a random room, line, noise and level to the wave.

    `speech` is the part of it that sets the level which noise is measured against.
    """
    level = float(np.sqrt(np.mean(np.square(speech)) + 1e-12))
    noisy = randomness.random() < strength.noise
    noise = np.zeros(0, np.float32)
    if noisy:
        snr_decibels = randomness.uniform(strength.lowest_snr_decibels, 40.0)
        babble_share = 0.25 if snr_decibels > 12 else 0.0
        noise = beds.cut(len(wave), babble_share, randomness) * np.float32(
            level * 10 ** (-snr_decibels / 20)
        )
    noise_in_room = noisy and randomness.random() < 0.5
    filtered_wave = filtered(wave + noise if noise_in_room else wave, strength, randomness)
    if noisy and not noise_in_room:
        filtered_wave = filtered_wave + noise
    return levelled(filtered_wave, strength, randomness)


def filtered(wave: Wave, strength: Strength, randomness: np.random.Generator) -> Wave:
    """Apply room, equaliser and line as one product of spectra."""
    tail = int(LONGEST_REVERBERATION_SECONDS * SAMPLE_RATE)
    size = next_fast_len(len(wave) + tail, real=True)
    hertz = np.linspace(0, SAMPLE_RATE / 2, size // 2 + 1)
    response = np.ones(len(hertz), np.complex64)
    if randomness.random() < strength.reverberation:
        response *= rfft(room(randomness), size)
    if randomness.random() < strength.equaliser:
        gains = randomness.uniform(-1, 1, len(EQUALISER_HERTZ)) * strength.equaliser_decibels
        response *= 10 ** (np.interp(hertz, EQUALISER_HERTZ, gains) / 20)
    if randomness.random() < strength.phone_line:
        response *= line(hertz, randomness)
    return np.asarray(irfft(rfft(wave, size) * response, size)[: len(wave)], np.float32)


def room(randomness: np.random.Generator) -> Wave:
    """Generate an impulse response: direct sound, then decaying noise."""
    count = int(LONGEST_REVERBERATION_SECONDS * SAMPLE_RATE)
    time = np.arange(count) / SAMPLE_RATE
    decay = np.exp(-6.9 * time / randomness.uniform(0.1, LONGEST_REVERBERATION_SECONDS))
    tail = randomness.standard_normal(count) * decay
    share = 10 ** (-randomness.uniform(3, 18) / 20)
    response = tail / np.sqrt(np.sum(tail**2)) * share
    response[0] = 1.0
    return np.asarray(response, np.float32)


def line(hertz: NDArray[np.float64], randomness: np.random.Generator) -> NDArray[np.float64]:
    """Return the gains of a telephone line, low above 4 kHz and below a few hundred hertz."""
    top = randomness.uniform(3300, 4100)
    bottom = randomness.uniform(20, 320)
    low_pass = 1 / (1 + (hertz / top) ** 24)
    high_pass = 1 / (1 + (bottom / np.maximum(hertz, 1)) ** 6)
    return np.sqrt(low_pass * high_pass)


def levelled(wave: Wave, strength: Strength, randomness: np.random.Generator) -> Wave:
    """Scale the wave to a random peak, sometimes through a coarse codec."""
    peak = 10 ** (randomness.uniform(-35, -3) / 20)
    wave = wave * np.float32(peak / (np.abs(wave).max(initial=0.0) + 1e-9))
    if randomness.random() < strength.coarse_quantisation:
        return mu_law(wave)
    return np.round(wave * 32767).astype(np.float32) / np.float32(32767)


def interrupted(wave: Wave, start: int, end: int, randomness: np.random.Generator) -> Wave:
    """Replace parts of the wave by digital silence: lost packets, or what surrounds the speech.

    `start` and `end` are the samples between which there is speech. Silence may follow the wave.
    """
    wave = wave.copy()
    if randomness.random() < 0.5:
        for _ in range(int(randomness.integers(1, 2 + len(wave) // SAMPLE_RATE))):
            count = int(randomness.uniform(*LOST_SECONDS) * SAMPLE_RATE)
            first = int(randomness.integers(max(1, len(wave) - count)))
            wave[first : first + count] = 0
        return wave
    if randomness.random() < 0.5:
        wave[: max(0, start - SPEECH_EDGE_SAMPLES)] = 0
    wave = wave[: end + int(randomness.uniform(SPEECH_EDGE_SAMPLES, SAMPLE_RATE))]
    silence = int(randomness.uniform(0, LONGEST_SILENCE_SECONDS) * SAMPLE_RATE)
    return np.concatenate((wave, np.zeros(silence, np.float32)))


def mu_law(wave: Wave) -> Wave:
    """Encode with G.711's eight bits and decode."""
    bent = np.sign(wave) * np.log1p(255 * np.abs(wave)) / np.log(256)
    coarse = np.round(bent * 127) / 127
    return np.asarray(np.sign(coarse) * (256 ** np.abs(coarse) - 1) / 255, np.float32)
