"""Clusters of one speaker are merged, unless their pitches are different."""

from dataclasses import replace

import numpy as np
import pytest

from parakeet_worker.options import SpeakerCount
from parakeet_worker.speakers.clustering import unit
from parakeet_worker.speakers.merging import Evidence, attenuation, merged
from parakeet_worker.speakers.windows import PITCH_HOP_SAMPLES, SAMPLE_RATE

PIECE_FRAMES = int(1.5 * SAMPLE_RATE / PITCH_HOP_SAMPLES)


def evidence_of(similarity, pieces, semitones=0.0, deviation=2.0, frames=20):
    """Two speakers in turn, with voices as similar as that and pitches so far apart.

    Returns the evidence and both voices.
    """
    chance = np.random.default_rng(0)
    voices = np.zeros((2, 192), dtype=np.float32)
    voices[0, 0] = 1.0
    voices[1, :2] = similarity, np.sqrt(1 - similarity**2)
    who = np.tile([0, 0, 1, 1], pieces // 4)
    vectors = unit(voices[who] + 0.05 * chance.standard_normal((len(who), 192)).astype(np.float32))
    of_frames = np.repeat(np.arange(len(who)), frames)
    pitch = 84.0 + semitones * who[of_frames] + deviation * chance.standard_normal(len(of_frames))
    evidence = Evidence(
        vectors,
        vectors,
        np.ones(len(who), dtype=np.float32),
        np.ones(len(who), dtype=bool),
        np.full(len(who), 0.5, dtype=np.float32),
        pitch.astype(np.float32),
        of_frames,
    )
    return evidence, voices


@pytest.mark.parametrize(
    ("similarity", "semitones", "deviation", "speakers"),
    [
        (0.3, 0.0, 2.0, 2),  # of different voices nothing else has to be known
        (0.8, 0.0, 2.0, 1),
        (0.8, 1.0, 2.0, 1),
        (0.8, 3.0, 2.0, 2),
        (0.8, -3.0, 2.0, 2),
        (0.8, 3.0, 4.0, 1),  # within the range of lively voices
        (0.8, 0.4, 0.0, 1),  # monotonous voices need an audible difference
        (0.8, 1.0, 0.0, 2),
        (0.9, 6.0, 2.0, 1),  # one lively voice: two people are less similar
    ],
)
def test_similar_voices_are_one_speaker_unless_their_pitch_differs(
    similarity, semitones, deviation, speakers
):
    evidence, voices = evidence_of(similarity, 48, semitones, deviation)
    posteriors, means = merged(evidence, voices, SpeakerCount())
    assert len(means) == posteriors.shape[1] == speakers
    assert posteriors.sum(axis=1) == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize("frames", [0, 1])
def test_of_few_voiced_frames_no_pitch_is_known(frames):
    evidence, voices = evidence_of(0.8, 16, 6.0, frames=frames)
    assert len(merged(evidence, voices, SpeakerCount())[1]) == 1


def test_pitches_are_compared_by_their_medians():
    evidence, voices = evidence_of(0.8, 48)
    frame = np.arange(len(evidence.pitch))
    second = np.tile([0, 0, 1, 1], 12)[evidence.pitch_pieces] == 1
    # 40 % of the second voice have the pitch of the first one.
    pitch = np.where(second & (frame % 5 > 1), 86.0, 80.0).astype(np.float32)
    assert len(merged(replace(evidence, pitch=pitch), voices, SpeakerCount())[1]) == 2


@pytest.mark.parametrize(
    ("similarity", "pieces", "speakers"), [(0.72, 24, 1), (0.72, 240, 2), (0.82, 240, 1)]
)
def test_the_larger_clusters_are_the_more_similar_those_of_one_voice_have_to_be(
    similarity, pieces, speakers
):
    evidence, voices = evidence_of(similarity, pieces)
    assert len(merged(evidence, voices, SpeakerCount())[1]) == speakers


def test_means_of_few_pieces_of_one_voice_are_less_similar():
    chance = np.random.default_rng(0)
    sizes = np.array([3, 12, 300])
    voice = np.zeros(192)
    voice[0] = 1.0
    noise = np.sqrt(6.0 / 192 / sizes[:, None]) * chance.standard_normal((1000, 3, 192))
    means = unit((voice + noise).astype(np.float32))
    # Independent pairs: the diagonal is of two clusters of equal size.
    cosines = np.einsum("nid,njd->ij", means[:500], means[500:]) / 500
    assert attenuation(sizes.astype(np.float64)) == pytest.approx(cosines, abs=0.02)


def test_no_fewer_speakers_are_left_than_required():
    evidence, voices = evidence_of(0.95, 48)
    assert len(merged(evidence, voices, SpeakerCount(2, 2))[1]) == 2


@pytest.mark.parametrize("allowed", [1, 2])
def test_no_more_speakers_are_left_than_allowed(allowed):
    evidence, voices = evidence_of(0.1, 48)
    assert len(merged(evidence, voices, SpeakerCount(1, allowed))[1]) == allowed


def test_a_short_turn_of_a_voice_unlike_the_others_is_none_too_many():
    evidence, voices = next_to_a_long_speaker(0.1, 3, 0.6)
    posteriors, means = merged(evidence, voices, SpeakerCount(1, 1))
    assert posteriors.shape == (63, 1)
    assert means[0] @ voices[0] > 0.95


def next_to_a_long_speaker(similarity, pieces, voiced_share):
    """One voice with 60 pieces, of which 0.6 are voiced, and another one with a few at the end."""
    evidence, voices = evidence_of(similarity, 120)
    who = np.tile([0, 0, 1, 1], 30)
    kept = np.sort(np.concatenate((np.flatnonzero(who == 0), np.flatnonzero(who == 1)[:pieces])))
    frames = (PIECE_FRAMES * np.where(who[kept] == 1, voiced_share, 0.6)).astype(int)
    pitch_pieces = np.repeat(np.arange(len(kept)), frames)
    return replace(
        evidence,
        vectors=evidence.vectors[kept],
        smooth=evidence.smooth[kept],
        weights=evidence.weights[kept],
        long=evidence.long[kept],
        stay=evidence.stay[kept],
        pitch=np.full(len(pitch_pieces), 84.0, dtype=np.float32),
        pitch_pieces=pitch_pieces,
    ), voices


@pytest.mark.parametrize(
    ("similarity", "pieces", "voiced_share", "speakers"),
    [
        (0.1, 3, 0.6, 2),  # a short turn of a voice unlike the other
        (0.1, 1, 0.6, 1),
        (0.1, 3, 0.4, 1),  # noise, or a crowd
        (0.45, 3, 0.6, 1),  # less than 6 pieces may be a part of a voice
        (0.45, 8, 0.6, 2),
        (0.45, 8, 0.3, 1),  # pauses between people
        (0.1, 8, 0.3, 1),
        (0.45, 30, 0.3, 2),  # a voice that whispers
    ],
)
def test_small_clusters_are_speakers_if_they_are_voices_unlike_the_others(
    similarity, pieces, voiced_share, speakers
):
    evidence, voices = next_to_a_long_speaker(similarity, pieces, voiced_share)
    assert len(merged(evidence, voices, SpeakerCount())[1]) == speakers


@pytest.mark.parametrize(("similarity", "speakers"), [(0.74, 2), (0.78, 1)])
def test_of_the_largest_clusters_no_more_is_required(similarity, speakers):
    evidence, voices = evidence_of(similarity, 2000)
    assert len(merged(evidence, voices, SpeakerCount())[1]) == speakers
