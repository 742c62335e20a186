"""The pitch of a voice is that of its period, whatever its harmonics, its level and its noise."""

import numpy as np
import pytest
import torch

from parakeet_worker.speakers.pitch import Pitch
from parakeet_worker.speakers.windows import (
    FRAME_SAMPLES,
    PITCH_FRAMES,
    WINDOW_SAMPLES,
    Piece,
    pitch_span,
)

RATE = 16_000
SAMPLES = np.arange(WINDOW_SAMPLES)


def semitones(samples):
    return Pitch()(torch.from_numpy(np.atleast_2d(samples).astype(np.float32))).numpy()


def harmonics(hertz, numbers, samples=SAMPLES):
    """A sum of harmonics, the higher the weaker."""
    return sum(np.sin(2 * np.pi * hertz * n * samples / RATE) / n for n in numbers)


@pytest.mark.parametrize("hertz", [65, 90, 110, 150, 220, 300, 390])
@pytest.mark.parametrize("numbers", [range(1, 12), (1,), (2, 3, 4, 5), (1, 3, 5)])
def test_a_periodic_sound_has_the_pitch_of_its_period(hertz, numbers):
    (measured,) = semitones(harmonics(hertz, numbers))
    assert measured == pytest.approx(12 * np.log2(hertz), abs=0.45)  # a sample of the period


@pytest.mark.parametrize("gain", [1e-5, 1e-2, 1.0])
def test_neither_level_nor_noise_changes_the_pitch(gain):
    noise = np.random.default_rng(0).standard_normal(WINDOW_SAMPLES)
    voice = harmonics(140, range(1, 12))
    noisy = voice + 0.3 * voice.std() * noise
    (measured,) = semitones(gain * noisy)
    assert np.nanmedian(measured) == pytest.approx(12 * np.log2(140), abs=0.2)
    assert np.isnan(measured).mean() < 0.05


@pytest.mark.parametrize(
    "samples",
    [
        np.zeros(WINDOW_SAMPLES),
        np.full(WINDOW_SAMPLES, 1e-30),
        np.random.default_rng(1).standard_normal(WINDOW_SAMPLES),
    ],
)
def test_silence_and_noise_have_no_pitch(samples):
    (measured,) = semitones(samples)
    assert len(measured) == PITCH_FRAMES
    assert np.isnan(measured).mean() > 0.99


def test_each_window_and_each_frame_has_its_own_pitch():
    higher = np.where(SAMPLES < WINDOW_SAMPLES // 2, harmonics(100, (1, 2)), harmonics(200, (1, 2)))
    both = semitones(np.stack([higher, harmonics(150, (1, 2, 3))]))
    assert both[0, :240] == pytest.approx(12 * np.log2(100), abs=0.2)
    assert both[0, 260:] == pytest.approx(12 * np.log2(200), abs=0.2)
    assert both[1] == pytest.approx(12 * np.log2(150), abs=0.2)


def test_a_piece_has_the_frames_within_it():
    first, after = 100, 188
    outside = harmonics(100, (1, 2))
    begin, end = first * FRAME_SAMPLES, (after - 1) * FRAME_SAMPLES + 991
    inside = np.where((begin <= SAMPLES) & (end > SAMPLES), harmonics(200, (1, 2)), outside)
    span = pitch_span(Piece(first, after, 0, 0))
    (measured,) = semitones(inside)
    assert measured[span] == pytest.approx(12 * np.log2(200), abs=0.2)
    assert span.stop - span.start == pytest.approx((end - begin - 640) / 320, abs=1)
    assert pitch_span(Piece(580, 589, 0, 0)).stop < PITCH_FRAMES
