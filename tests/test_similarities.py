"""Similarities of a voice to speakers at any time, from those at regular times."""

import numpy as np
import pytest

from parakeet_worker.recognition.similarities import SpeakerSimilarities

NAN = float("nan")


def similarities(*rows, first=10.0, step=0.25):
    return SpeakerSimilarities(np.array(rows, dtype=np.float32), first, step)


def at(track, *seconds):
    return track.at(np.array(seconds, dtype=np.float64)).tolist()


def test_what_is_closer_in_time_counts_more():
    track = similarities([0.0, 1.0], [0.4, 0.6], [0.8, 0.2])
    assert at(track, 10.25) == [pytest.approx([0.4, 0.6])]
    # 1/8 s from the first and second, 3/8 s from the third: weights of 3/4, 3/4 and 1/4.
    (between,) = at(track, 10.125)
    assert between == pytest.approx(
        [(0.75 * 0.4 + 0.25 * 0.8) / 1.75, 1.75**-1 * (0.75 * 1.6 + 0.05)]
    )


def test_times_without_a_voice_count_nothing():
    track = similarities([0.2, 0.3], [NAN, NAN], [0.6, 0.5])
    assert at(track, 10.0, 10.5) == [pytest.approx([0.2, 0.3]), pytest.approx([0.6, 0.5])]
    assert at(track, 10.25) == [pytest.approx([0.4, 0.4])]


@pytest.mark.parametrize("seconds", [-100.0, 9.4, 11.1, 1e6])
def test_there_is_no_voice_far_from_all(seconds):
    track = similarities([0.2, 0.3], [0.2, 0.3], [0.6, 0.5])
    assert np.isnan(at(track, seconds)).all()


def test_times_near_both_ends_have_the_voice_there():
    track = similarities([0.2, 0.3], [0.6, 0.5])
    assert at(track, 9.6, 10.6) == [pytest.approx([0.2, 0.3]), pytest.approx([0.6, 0.5])]


def test_without_speakers_or_times_there_is_nothing():
    assert similarities([], []).at(np.array([10.0])).shape == (1, 0)
    assert similarities([0.1, 0.2]).at(np.zeros(0)).shape == (0, 2)
