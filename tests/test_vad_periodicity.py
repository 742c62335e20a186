"""One voice is periodic, at any level and pitch; noise and many voices at a time are not."""

import numpy as np
import pytest

from parakeet_worker.vad.periodicity import is_one_voice, periodicity
from speech import crowd

RATE, FRAME = 16_000, 512
FRAMES = 100
CLOCK = np.arange(FRAMES * FRAME) / RATE
EVERY = np.ones(FRAMES, dtype=bool)


def harmonics(hertz):
    return sum(np.sin(2 * np.pi * hertz * n * CLOCK) / n for n in range(1, 10))


@pytest.mark.parametrize("hertz", [62, 90, 140, 250, 390])
@pytest.mark.parametrize("gain", [1e-6, 0.1])
def test_a_periodic_sound_is_periodic(hertz, gain):
    inner = periodicity((gain * harmonics(hertz)).astype(np.float32), EVERY)[1:-1]
    assert inner == pytest.approx(1.0, abs=0.08)


def test_noise_and_silence_are_not():
    noise = np.random.default_rng(0).standard_normal(FRAMES * FRAME).astype(np.float32)
    assert periodicity(noise, EVERY).max() < 0.6
    assert not periodicity(np.zeros_like(noise), EVERY).any()
    assert not is_one_voice(noise, EVERY)


def test_only_the_chosen_frames_are_measured():
    samples = np.random.default_rng(0).standard_normal(FRAMES * FRAME)
    samples[20 * FRAME : 40 * FRAME] = harmonics(120)[: 20 * FRAME]
    inside = np.zeros(FRAMES, dtype=bool)
    inside[22:38] = True
    assert len(periodicity(samples, inside)) == 16
    assert is_one_voice(samples, inside)
    assert not is_one_voice(samples, ~inside)


@pytest.mark.parametrize(("voices", "one"), [(1, True), (2, True), (12, False), (24, False)])
def test_a_crowd_is_no_single_voice(voices, one):
    samples = crowd(voices, 300 * FRAME)
    levels = np.square(samples).reshape(-1, FRAME).mean(axis=1)
    assert is_one_voice(samples, levels > np.median(levels)) is one
