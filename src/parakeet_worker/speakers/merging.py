"""Which clusters of a recording are one speaker.

Two clusters are one speaker if they are as similar as clusters of one voice of these sizes, unless
their pitches differ by more than those of one voice: embeddings of similar voices may be as close
as those of one voice are.
Pitch as a second feature is that of G. Friedland, O. Vinyals, Y. Huang and C. Müller, "Prosodic and
other long-term features for speaker diarization", 2009.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from parakeet_worker.options import SpeakerCount
from parakeet_worker.speakers.clustering import Labels, Vectors, unit
from parakeet_worker.speakers.sequence import Posteriors, refined

MERGED_SIMILARITY = 0.82
"""Clusters whose means are more similar are one speaker, if both have many pieces."""
# One voice, whatever its pitch, which changes with emotion: of two people with different pitches,
# similarities of up to 0.81 were seen.
_ONE_VOICE_SIMILARITY = 0.88
# The variance of pieces of 1.5 s around the mean of their voice, relative to that mean's square. It
# is about 0.7 for independent pieces of all of a voice; adjacent pieces overlap, and small clusters
# consist of pieces with similar sounds. Chosen on the tuning set, as the similarity above.
_PIECE_NOISE = 4.5
# Difference of the medians of two pitches, in standard deviations. Of one voice it is up to 0.94.
_MAX_PITCH_DISTANCE = 1.0
_MIN_PITCH_FRAMES = 10
# Added to the variance, in semitones: no voice is so monotonous that less counts as a difference.
_MIN_DEVIATION = 0.5
# Of a normal distribution, the standard deviation per distance of the quartiles.
_DEVIATION_OF_QUARTILES = 1 / 1.35
# A speaker with fewer pieces of 1.5 s, and with a smaller share of the mean of all speakers, is a
# part of the others.
_MIN_SPEAKER_PIECES, _MIN_SPEAKER_SHARE = 6.0, 0.3


@dataclass(frozen=True, slots=True, eq=False)
class Evidence:
    """N pieces in the order of time."""

    vectors: Vectors
    """(N, 192) embeddings."""
    smooth: Vectors
    """The same, averaged over neighbours in a run."""
    weights: npt.NDArray[np.float32]
    """(N,): length in pieces of 1.5 s."""
    long: npt.NDArray[np.bool_]
    """(N,): whether the piece is long enough to define a speaker."""
    stay: npt.NDArray[np.float32]
    """(N,): the probability that the speaker is that of the piece before."""
    pitch: npt.NDArray[np.float32]
    """(F,): semitones of all voiced frames of the pieces."""
    pitch_pieces: Labels
    """(F,): the piece of each."""


def merged(evidence: Evidence, means: Vectors, count: SpeakerCount) -> tuple[Posteriors, Vectors]:
    """(N, K) posteriors and (K, 192) means of the speakers that initial means are clusters of."""
    while True:
        posteriors, means = refined(evidence.vectors, evidence.weights, evidence.stay, means)
        if len(means) <= max(1, count.min):
            return posteriors, means
        sizes = posteriors.T @ evidence.weights
        if sizes.min() < _least(sizes):
            means = np.delete(means, int(sizes.argmin()), axis=0)
            continue
        scores = _scores(evidence, posteriors, means)
        first, second = np.unravel_index(int(np.argmax(scores)), scores.shape)
        if scores[first, second] < 0.0:
            return posteriors, means
        both = sizes[first] * means[first] + sizes[second] * means[second]
        means = np.delete(means, second, axis=0)
        means[first] = unit(both)


def _least(sizes: npt.NDArray[np.float32]) -> float:
    return min(_MIN_SPEAKER_PIECES, _MIN_SPEAKER_SHARE * float(sizes.mean()))


def _scores(evidence: Evidence, posteriors: Posteriors, means: Vectors) -> npt.NDArray[np.float64]:
    """(K, K): not negative for two speakers that are one; minus infinity below the diagonal."""
    labels = posteriors.argmax(axis=1)
    sizes = (posteriors.T @ evidence.weights).astype(np.float64)
    scores = _similarities(evidence, labels, means) - MERGED_SIMILARITY * attenuation(sizes)
    apart = _of_different_pitch(evidence, labels, len(means))
    scores[apart] = (means @ means.T)[apart] - _ONE_VOICE_SIMILARITY
    scores[np.tril_indices(len(means))] = -np.inf
    return scores


def attenuation(sizes: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """(K, K): the expected cosine of the means of two clusters of one voice, of (K,) pieces.

    The mean of few pieces has more of their noise, so that clusters of one voice are less similar
    if one of them is small (C. Spearman, "The proof and measurement of association between two
    things", 1904).
    """
    reliability = 1.0 / np.sqrt(1.0 + _PIECE_NOISE / np.maximum(sizes, 1e-9))
    return np.outer(reliability, reliability)


def _similarities(evidence: Evidence, labels: Labels, means: Vectors) -> npt.NDArray[np.float64]:
    """(K, K): the cosines of the means of the smooth long pieces of each speaker."""
    long = evidence.long
    sums = np.zeros(means.shape)
    np.add.at(sums, labels[long], evidence.smooth[long])
    present = np.bincount(labels[long], minlength=len(means)) > 0
    averages = unit(np.where(present[:, None], sums, means).astype(np.float32))
    return (averages @ averages.T).astype(np.float64)


def _of_different_pitch(evidence: Evidence, labels: Labels, count: int) -> npt.NDArray[np.bool_]:
    """(K, K): whether the pitches of two speakers differ by more than those of one."""
    quartiles = np.full((3, count), np.nan)
    speakers = labels[evidence.pitch_pieces]
    for speaker in range(count):
        semitones = evidence.pitch[speakers == speaker]
        if len(semitones) >= _MIN_PITCH_FRAMES:
            quartiles[:, speaker] = np.percentile(semitones, (25, 50, 75))
    lower, median, upper = quartiles
    variance = (_DEVIATION_OF_QUARTILES * (upper - lower)) ** 2 + _MIN_DEVIATION**2
    deviation = np.sqrt((variance[:, None] + variance) / 2)
    different: npt.NDArray[np.bool_] = np.abs(median[:, None] - median) > (
        _MAX_PITCH_DISTANCE * deviation
    )
    return different
