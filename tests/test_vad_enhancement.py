"""What makes speech easier to detect keeps voices, and removes or adds nothing else."""

import numpy as np
import pytest

from parakeet_worker.audio.decoding import SAMPLE_RATE
from parakeet_worker.engine.base import Samples
from parakeet_worker.vad.base import BLOCK_SAMPLES, FRAME_SAMPLES
from parakeet_worker.vad.enhancement import (
    rumbles,
    with_low_harmonics,
    without_constant_sound,
    without_rumble,
    without_wind,
)
from recordings import decode
from speech import named

HERTZ = np.fft.rfftfreq(BLOCK_SAMPLES, 1 / SAMPLE_RATE)


@pytest.fixture(scope="module")
def talk() -> Samples:
    """4.1 s of speech, 40 % of them silent."""
    samples = decode(named("minute").path)[:BLOCK_SAMPLES].copy()
    samples[: int(0.4 * BLOCK_SAMPLES)] = 0
    return samples


def sine(hertz: float, amplitude: float = 0.3) -> Samples:
    at = np.arange(BLOCK_SAMPLES) / SAMPLE_RATE
    return (amplitude * np.sin(2 * np.pi * hertz * at)).astype(np.float32)


def spectrum(samples: Samples) -> Samples:
    return np.abs(np.fft.rfft(samples))


def test_sound_rumbles_if_most_of_its_power_is_below_voices(talk):
    assert rumbles(sine(50))
    assert rumbles(sine(17) + talk)
    assert rumbles(np.full(BLOCK_SAMPLES, 0.1, dtype=np.float32))
    assert not rumbles(sine(300))
    assert not rumbles(talk)


def test_voices_keep_their_frequencies_without_rumble(talk):
    hum = sine(HERTZ[205])
    before, after = spectrum(talk), spectrum(without_rumble(talk + hum))
    voices = HERTZ > 90
    assert 49 < HERTZ[205] < 51
    assert np.abs(after - before)[voices].max() < 1e-3 * before.max()
    assert after[HERTZ < 54].max() < 1e-6 * spectrum(hum).max()


def test_gusts_of_wind_lose_their_low_frequencies_and_speech_keeps_its_own(talk):
    assert without_wind(talk) is talk
    wind = np.cumsum(np.random.default_rng(3).normal(0, 0.02, BLOCK_SAMPLES)).astype(np.float32)
    left = without_wind(talk + wind)
    assert spectrum(left)[HERTZ < 200].max() < 1e-3 * spectrum(wind).max()
    voices = HERTZ > 300
    changes = np.abs(spectrum(left) - spectrum(talk + wind))[voices]
    assert changes.max() < 1e-3 * spectrum(talk).max()


def test_seven_tenths_of_the_power_below_voices_are_wind():
    for share, removed in ((0.68, False), (0.72, True)):
        sound = sine(100, np.sqrt(share)) + sine(1000, np.sqrt(1 - share))
        left = without_wind(sound)
        assert (spectrum(left)[HERTZ < 200].max() < 1e-3 * spectrum(sound).max()) == removed
        assert spectrum(left)[HERTZ > 300] == pytest.approx(spectrum(sound)[HERTZ > 300], abs=0.1)


def test_sound_that_pauses_in_every_band_is_unchanged(talk):
    assert np.abs(without_constant_sound(talk) - talk).max() < 1e-6


@pytest.mark.parametrize("hertz", [50, 440, 3000, 7500])
def test_a_constant_tone_is_removed_and_speech_is_not(talk, hertz):
    left = without_constant_sound(talk + sine(hertz))
    assert spectrum(left)[np.abs(HERTZ - hertz) < 1].max() < 0.1 * spectrum(sine(hertz)).max()
    error = np.sum(np.square(left - talk)) / np.sum(np.square(sine(hertz)))
    assert error < 0.05
    assert np.corrcoef(left, talk)[0, 1] > 0.8


def test_constant_noise_is_lowered_by_5_decibels():
    noise = np.random.default_rng(3).normal(0, 0.1, BLOCK_SAMPLES).astype(np.float32)
    left = without_constant_sound(noise)
    assert 10 * np.log10(np.mean(np.square(left)) / np.mean(np.square(noise))) < -5


@pytest.mark.parametrize("frames", [1, 2, 5, 128])
def test_the_length_is_kept(frames):
    samples = np.random.default_rng(3).normal(0, 0.1, 64 + frames * FRAME_SAMPLES)
    for enhance in (without_constant_sound, with_low_harmonics, without_rumble, without_wind):
        enhanced = enhance(samples.astype(np.float32))
        assert enhanced.shape == samples.shape
        assert enhanced.dtype == np.float32
        assert not enhance(np.zeros(len(samples), dtype=np.float32)).any()


def test_a_missing_fundamental_is_regenerated_with_the_power_of_the_samples():
    voice = sine(600, 0.1) + sine(800, 0.1) + sine(1000, 0.1)
    after = spectrum(with_low_harmonics(voice))
    low = HERTZ < 500
    assert HERTZ[low][np.argmax(after[low])] == pytest.approx(200, abs=0.5)
    assert np.abs(after - spectrum(voice))[~low].max() < 1e-3 * after.max()
    assert np.sum(after[low] ** 2) == pytest.approx(np.sum(spectrum(voice) ** 2), rel=0.01)
