"""Clusters of one speaker are merged, unless the segmentation network distinguishes them."""

import numpy as np
import pytest

from parakeet_worker.options import SpeakerCount
from parakeet_worker.speakers.clustering import unit
from parakeet_worker.speakers.merging import Evidence, attenuation, merged


def pieces_of(similarity, windows, apart, seed=0):
    """Two speakers in turn, two pieces of each per window, their voices as similar as that.

    In `apart` of the windows they are different local speakers. Returns the evidence and both
    voices.
    """
    chance = np.random.default_rng(seed)
    voices = np.zeros((2, 192), dtype=np.float32)
    voices[0, 0] = 1.0
    voices[1, :2] = similarity, np.sqrt(1 - similarity**2)
    who = np.tile([0, 0, 1, 1], windows)
    window = np.repeat(np.arange(windows), 4)
    vectors = unit(voices[who] + 0.05 * chance.standard_normal((len(who), 192)).astype(np.float32))
    evidence = Evidence(
        vectors,
        vectors,
        np.ones(len(who), dtype=np.float32),
        np.ones(len(who), dtype=bool),
        np.full(len(who), 0.5, dtype=np.float32),
        3 * window + np.where(window < apart, who, 0),
    )
    return evidence, voices


@pytest.mark.parametrize(
    ("similarity", "apart", "speakers"),
    [
        (0.3, 0, 2),  # of different voices nothing else has to be known
        (0.8, 0, 1),
        (0.8, 12, 2),
        (0.8, 4, 1),  # in most windows, one local speaker
        (0.95, 12, 1),  # no two people are so similar: the network has divided one
    ],
)
def test_similar_voices_are_one_speaker_unless_they_are_distinguished(similarity, apart, speakers):
    evidence, voices = pieces_of(similarity, 12, apart)
    posteriors, means = merged(evidence, voices, SpeakerCount())
    assert len(means) == posteriors.shape[1] == speakers
    assert posteriors.sum(axis=1) == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize(("windows", "speakers"), [(6, 1), (60, 2)])
def test_the_larger_clusters_are_the_more_similar_those_of_one_voice_have_to_be(windows, speakers):
    evidence, voices = pieces_of(0.74, windows, 0)
    assert len(merged(evidence, voices, SpeakerCount())[1]) == speakers


def test_means_of_few_pieces_of_one_voice_are_less_similar():
    chance = np.random.default_rng(0)
    sizes = np.array([3, 12, 300])
    voice = np.zeros(192)
    voice[0] = 1.0
    noise = np.sqrt(3.5 / 192 / sizes[:, None]) * chance.standard_normal((1000, 3, 192))
    means = unit((voice + noise).astype(np.float32))
    # Independent pairs: the diagonal is of two clusters of equal size.
    cosines = np.einsum("nid,njd->ij", means[:500], means[500:]) / 500
    assert attenuation(sizes.astype(np.float64)) == pytest.approx(cosines, abs=0.02)


def test_two_windows_do_not_distinguish_voices():
    evidence, voices = pieces_of(0.8, 2, 2)
    assert len(merged(evidence, voices, SpeakerCount())[1]) == 1


def test_no_fewer_speakers_are_left_than_required():
    evidence, voices = pieces_of(0.95, 12, 0)
    assert len(merged(evidence, voices, SpeakerCount(2, 2))[1]) == 2
