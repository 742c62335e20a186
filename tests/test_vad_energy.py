"""The detector without a network, on sounds whose level is known."""

import numpy as np
import pytest

from parakeet_worker.engine.base import Samples
from parakeet_worker.vad.base import (
    FRAME_SECONDS,
    SPEECH_BEGINS,
    SPEECH_ENDS,
    Probabilities,
    speech_spans,
)
from parakeet_worker.vad.energy import EnergyDetector
from recordings import decode, noise, silence, tone
from speech import named

RATE = 16_000


def probabilities_of(recording: Samples) -> Probabilities:
    detector = EnergyDetector()
    return np.concatenate((detector.feed(recording), detector.finish()))


def seconds(recording: Samples) -> list[tuple[float, float]]:
    return [
        (first * FRAME_SECONDS, after * FRAME_SECONDS)
        for first, after in speech_spans(probabilities_of(recording))
    ]


@pytest.mark.parametrize("room", [0.0, 0.0001, 0.003])
@pytest.mark.parametrize("begin", [0.0, 0.4, 3.0])
def test_a_sound_is_found_where_it_is_from_the_first_sample_on(begin, room):
    pieces = [silence(begin), tone(300, 1.5), silence(0.8), tone(500, 0.7), silence(2)]
    recording = np.concatenate(pieces)
    recording = recording + noise(len(recording) / RATE, room)
    expected = [(begin, begin + 1.5), (begin + 2.3, begin + 3.0)]
    result = seconds(recording)
    # The time before the first sound may count as speech: there is no floor yet.
    assert np.allclose(result[-1], expected[-1], atol=0.05)
    assert result[0][0] <= expected[0][0]
    assert result[-2][1] == pytest.approx(expected[0][1], abs=0.05)


def test_the_volume_changes_nothing():
    speech = decode(named("minute").path)
    speech = speech + noise(len(speech) / RATE, 0.001)
    assert probabilities_of(speech * 0.1) == pytest.approx(probabilities_of(speech), abs=1e-3)


def test_a_direct_current_changes_nothing():
    speech = decode(named("minute").path)[: 60 * RATE]  # whole frames: the last is not filled up
    speech = speech + noise(60, 0.001)
    assert probabilities_of(speech + np.float32(0.2)) == pytest.approx(
        probabilities_of(speech), abs=1e-2
    )


def test_a_new_noise_counts_as_speech_for_seconds_only():
    result = probabilities_of(noise(60, 0.05))
    known = round(7 / FRAME_SECONDS)
    assert np.all(result[: round(3 / FRAME_SECONDS)] >= SPEECH_BEGINS)
    assert np.all(result[known:] < SPEECH_ENDS)


def test_a_noise_that_grows_becomes_the_floor():
    result = probabilities_of(np.concatenate((noise(20, 0.001), noise(30, 0.03))))
    assert result[round(20.1 / FRAME_SECONDS)] >= SPEECH_BEGINS
    assert np.all(result[round(34 / FRAME_SECONDS) :] < SPEECH_ENDS)


def test_a_quiet_voice_after_a_loud_one_is_detected_within_seconds():
    loud, quiet = (
        np.tile(np.concatenate((tone(300, 0.8, level=level), silence(0.4))), 15)
        for level in (0.5, 0.005)
    )
    recording = np.concatenate((loud, quiet)) + noise(36, 0.0005)
    sounds = [begin for begin, _ in seconds(recording)]
    assert len([begin for begin in sounds if begin < 18]) == 15
    assert len([begin for begin in sounds if begin > 26]) == 8
