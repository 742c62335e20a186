"""Quiet voices are brought near loud ones, and quiet speech is raised for the detector."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parakeet_worker.audio.decoding import SAMPLE_RATE
from parakeet_worker.engine.base import Samples
from parakeet_worker.vad import silero
from parakeet_worker.vad.backends import PerThreadVad
from parakeet_worker.vad.base import (
    BLOCK_SAMPLES,
    CONTEXT_SAMPLES,
    FRAME_SAMPLES,
    VadBackend,
    speech_spans,
)
from parakeet_worker.vad.gain import QuietSpeechGain, even_levels
from parakeet_worker.vad.level import Levels, Mask, measured
from parakeet_worker.vad.silero_detector import SileroDetector
from recordings import decode
from speech import all_samples, named
from test_vad_level import noise


def speaks(samples: Samples) -> Mask:
    return np.ones(-(-len(samples) // FRAME_SAMPLES), dtype=bool)


def level(samples: Samples) -> float:
    return float(10 * np.log10(np.mean(np.square(samples, dtype=np.float64))))


@settings(max_examples=20)
@given(st.integers(min_value=FRAME_SAMPLES // 2, max_value=6 * FRAME_SAMPLES + 100))
def test_speech_of_any_length_is_amplified(count):
    samples = noise(0.3, -70)[:count]
    raised, decibels = even_levels(samples, speaks(samples))
    assert raised.shape == samples.shape
    assert 20 < 20 * np.log10(np.max(raised / samples)) < decibels + 0.1


@settings(max_examples=20)
@given(st.integers(min_value=64 * FRAME_SAMPLES, max_value=70 * FRAME_SAMPLES))
def test_gains_apply_at_frame_centres_and_are_interpolated_between_them(count):
    samples = np.concatenate([noise(0.7, -20, 1), noise(0.7, -44, 2), noise(1, -20, 3)])[:count]
    raised, _ = even_levels(samples, speaks(samples))
    middles = np.arange(FRAME_SAMPLES // 2, count, FRAME_SAMPLES)
    known = np.arange(middles[-1])
    factors = np.interp(known, middles, raised[middles] / samples[middles])
    assert raised[known] == pytest.approx(samples[known] * factors, rel=1e-4)


def test_a_quiet_voice_is_brought_near_the_loud_one_from_its_beginning_to_its_end():
    voices = [noise(2, -20, 1), noise(2, -44, 2), noise(2, -20, 3)]
    samples = np.concatenate(voices)
    raised, decibels = even_levels(samples, speaks(samples))
    assert decibels == pytest.approx(14, abs=1)
    first, second, third = np.split(raised, np.cumsum([len(voice) for voice in voices])[:-1])
    for part in (second[: SAMPLE_RATE // 10], second, second[-SAMPLE_RATE // 10 :]):
        assert level(part) == pytest.approx(-30, abs=2)
    for part, voice in ((first, voices[0]), (third, voices[2])):
        assert level(part) == pytest.approx(level(voice), abs=0.5)
    assert np.abs(raised).max() < 1


def test_the_pause_before_a_quiet_voice_is_not_raised():
    room_noise = noise(2, -70, 5)
    samples = np.concatenate((noise(2, -20, 1), room_noise, noise(2, -40, 2)))
    talk = speaks(samples)
    first = (len(samples) - len(room_noise)) // 2 // FRAME_SAMPLES
    talk[first : first + len(room_noise) // FRAME_SAMPLES] = False
    raised, _ = even_levels(samples, talk)
    pause = slice(2 * SAMPLE_RATE + 4000, 4 * SAMPLE_RATE - 4000)
    assert np.array_equal(raised[pause], samples[pause])


@pytest.mark.parametrize("decibels", [-3.0, 6.0])
def test_one_voice_that_moves_by_some_decibels_is_left_as_it_is(decibels):
    samples = np.concatenate((noise(1, -25, 1), noise(1, -25 - decibels, 2), noise(1, -25, 3)))
    raised, gained = even_levels(samples, speaks(samples))
    assert raised is samples
    assert gained == 0.0


@pytest.mark.parametrize("spoils", ["a click", "direct current"])
def test_very_quiet_speech_is_raised_whatever_spoils_its_peak(spoils):
    samples = noise(4, -60)
    if spoils == "a click":
        samples[30_000:30_040] += 0.5
    else:
        samples += np.float32(0.1)
    raised, gained = even_levels(samples, speaks(samples))
    assert gained == pytest.approx(20, abs=1.5)
    assert level(raised[40_000:]) == pytest.approx(-40, abs=1.5)
    assert np.abs(raised).max() < 1


# before the detector


@pytest.fixture(scope="module")
def listener() -> PerThreadVad:
    return PerThreadVad(silero.load())


class NoGain(QuietSpeechGain):
    def apply(self, samples: Samples, levels: Levels) -> Samples:  # noqa: ARG002
        return samples


class Unamplified(SileroDetector):
    """Without gain, as the package's own detector."""

    def __init__(self, backend: VadBackend) -> None:
        super().__init__(backend)
        self._gain = NoGain(CONTEXT_SAMPLES, BLOCK_SAMPLES)


def spoken(detector: SileroDetector, samples: Samples) -> Mask:
    probabilities = np.concatenate((detector.feed(samples), detector.finish()))
    decibels_of_frames = np.zeros(len(probabilities), dtype=bool)
    for first, after in speech_spans(probabilities):
        decibels_of_frames[first:after] = True
    return decibels_of_frames


@pytest.fixture(scope="module")
def talk() -> Samples:
    return decode(named("minute").path)[: 5 * BLOCK_SAMPLES]


@pytest.mark.parametrize("recorded", all_samples(), ids=lambda recorded: recorded.file)
def test_the_samples_are_loud_enough_and_left_as_they_are(listener, recorded):
    samples = decode(recorded.path)[: 30 * SAMPLE_RATE]
    expected = spoken(Unamplified(listener), samples)
    decibels_of_frames = spoken(SileroDetector(listener), samples)
    assert np.count_nonzero(decibels_of_frames != expected) <= 3, "frames at the edges of speech"


@pytest.mark.parametrize("spoils", ["nothing", "clicks", "direct current"])
@pytest.mark.parametrize("decibels", [-26, -36])
def test_quiet_speech_is_detected_whatever_spoils_its_peak(listener, talk, decibels, spoils):
    expected = spoken(Unamplified(listener), talk)
    quiet = talk * np.float32(10 ** (decibels / 20))
    if spoils == "clicks":
        for begin in range(20_000, len(quiet), 50_000):
            quiet[begin : begin + 40] += 0.3
    elif spoils == "direct current":
        quiet += np.float32(0.1)
    decibels_of_frames = spoken(SileroDetector(listener), quiet)
    assert np.mean(decibels_of_frames[expected]) > 0.95


@pytest.mark.parametrize("decibels", [-36, -40])
def test_a_quiet_voice_right_after_a_loud_one_is_detected_immediately(listener, talk, decibels):
    expected = spoken(Unamplified(listener), talk)[: 7 * SAMPLE_RATE // FRAME_SAMPLES]
    quiet = talk * np.float32(10 ** (decibels / 20))
    both = np.concatenate((talk, quiet))
    decibels_of_frames = spoken(SileroDetector(listener), both)[len(talk) // FRAME_SAMPLES :]
    assert np.mean(decibels_of_frames[: len(expected)][expected]) > 0.95


def test_room_noise_is_unchanged():
    gain = QuietSpeechGain(0, BLOCK_SAMPLES)
    for blocks in np.split(noise(13, -60)[: 3 * BLOCK_SAMPLES], [BLOCK_SAMPLES]):
        assert gain.apply(blocks, measured(blocks)) is blocks


def test_only_the_blocks_with_quiet_speech_change_whatever_the_division_of_the_input(talk):
    quiet = talk[: 2 * BLOCK_SAMPLES] * np.float32(0.02)
    context = np.zeros(CONTEXT_SAMPLES, dtype=np.float32)
    samples = np.concatenate((context, noise(13, -30)[: 3 * BLOCK_SAMPLES], quiet))
    expected = whole_gain(samples)
    loud_end = CONTEXT_SAMPLES + 3 * BLOCK_SAMPLES
    assert np.array_equal(expected[:loud_end], samples[:loud_end])
    assert level(expected[-BLOCK_SAMPLES:]) > level(samples[-BLOCK_SAMPLES:]) + 10
    gain = QuietSpeechGain(CONTEXT_SAMPLES, BLOCK_SAMPLES)
    for begin in range(0, 5 * BLOCK_SAMPLES, BLOCK_SAMPLES):
        part = slice(begin, begin + CONTEXT_SAMPLES + BLOCK_SAMPLES)
        raised = gain.apply(samples[part], measured(samples[part][CONTEXT_SAMPLES:]))
        assert np.array_equal(raised, expected[part])


def whole_gain(samples: Samples) -> Samples:
    levels = measured(samples[CONTEXT_SAMPLES:])
    return QuietSpeechGain(CONTEXT_SAMPLES, BLOCK_SAMPLES).apply(samples, levels)
