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
from parakeet_worker.speakers.windows import PITCH_HOP_SAMPLES, SAMPLE_RATE

# Clusters that are more similar are one speaker: this share of the expected cosine of one voice. No
# more than the second number is required of the largest: a voice changes in a long recording.
_MERGED_SIMILARITY, _ENOUGH_SIMILARITY = 0.88, 0.76
# One voice, whatever its pitch, which changes with emotion: of two people with different pitches,
# similarities of up to 0.81 were seen.
_ONE_VOICE_SIMILARITY = 0.88
# The variance of pieces of 1.5 s around the mean of their voice, relative to that mean's square. It
# is about 0.7 for independent pieces of all of a voice; adjacent pieces overlap, and small clusters
# consist of pieces with similar sounds. Chosen on the tuning set, as the similarity above.
_PIECE_NOISE = 6.0
# Difference of the medians of two pitches, in standard deviations. Of one voice it is up to 0.94.
_MAX_PITCH_DISTANCE = 1.0
_MIN_PITCH_FRAMES = 10
# Added to the variance, in semitones: no voice is so monotonous that less counts as a difference.
_MIN_DEVIATION = 0.5
# Of a normal distribution, the standard deviation per distance of the quartiles.
_DEVIATION_OF_QUARTILES = 1 / 1.35
# Clusters with a smaller share of the mean of all are a part of the others, if they have few pieces
# of 1.5 s, or fewer voiced frames than this share of the usual: pauses between people.
_SMALL_SHARE, _SMALL_PIECES = 0.3, 6.0
_PAUSE_SHARE = 0.65
# But not a voice unlike all others: less similar than this, in expected cosines of one voice.
# Of noise, and of many voices together, fewer frames are voiced.
_UNLIKE_SIMILARITY = 0.55
_MIN_UNLIKE_PIECES = 1.5
_MIN_VOICED_SHARE = 0.5
_PIECE_PITCH_FRAMES = 1.5 * SAMPLE_RATE / PITCH_HOP_SAMPLES


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
    """(N, K) posteriors and (K, 192) means of the speakers that initial means are clusters of.

    No more than `count.max`; no fewer than `count.min`, if there are as many initial means.
    """
    while True:
        posteriors, means = refined(evidence.vectors, evidence.weights, evidence.stay, means)
        if len(means) <= max(1, count.min):
            return posteriors, means
        clusters = _clusters(evidence, posteriors, means)
        part = _part_of_others(evidence, clusters)
        if part is not None:
            means = np.delete(means, part, axis=0)
            continue
        scores = _scores(evidence, clusters)
        first, second = np.unravel_index(int(np.argmax(scores)), scores.shape)
        if scores[first, second] < 0.0 and len(means) <= count.max:
            return posteriors, means
        both = clusters.sizes[first] * means[first] + clusters.sizes[second] * means[second]
        means = np.delete(means, second, axis=0)
        means[first] = unit(both)


@dataclass(frozen=True, slots=True, eq=False)
class _Clusters:
    """K clusters of the pieces."""

    labels: Labels
    """(N,): the cluster of each piece."""
    sizes: npt.NDArray[np.float64]
    """(K,): in pieces of 1.5 s."""
    means: Vectors
    similar: npt.NDArray[np.float64]
    """(K, K): cosines."""
    expected: npt.NDArray[np.float64]
    """(K, K): cosines of two clusters of one voice."""


def _clusters(evidence: Evidence, posteriors: Posteriors, means: Vectors) -> _Clusters:
    labels = posteriors.argmax(axis=1)
    sizes = (posteriors.T @ evidence.weights).astype(np.float64)
    similar = _similarities(evidence, labels, means)
    return _Clusters(labels, sizes, means, similar, attenuation(sizes))


def _part_of_others(evidence: Evidence, clusters: _Clusters) -> int | None:
    """The smallest cluster that is a part of the others, or None."""
    sizes = clusters.sizes
    voiced = np.bincount(clusters.labels[evidence.pitch_pieces], minlength=len(sizes))
    alike = clusters.similar >= _UNLIKE_SIMILARITY * clusters.expected
    np.fill_diagonal(alike, val=False)
    unlike = (
        ~alike.any(axis=1)
        & (sizes >= _MIN_UNLIKE_PIECES)
        & (voiced >= _MIN_VOICED_SHARE * _PIECE_PITCH_FRAMES * sizes)
    )
    pauses = voiced * sizes.sum() < _PAUSE_SHARE * voiced.sum() * sizes
    few = sizes < _SMALL_SHARE * float(sizes.mean())
    parts = np.flatnonzero(few & ((sizes < _SMALL_PIECES) | pauses) & ~unlike)
    return int(parts[sizes[parts].argmin()]) if len(parts) else None


def _scores(evidence: Evidence, clusters: _Clusters) -> npt.NDArray[np.float64]:
    """(K, K): not negative for two speakers that are one; minus infinity below the diagonal."""
    means = clusters.means
    required = np.minimum(_MERGED_SIMILARITY * clusters.expected, _ENOUGH_SIMILARITY)
    scores = clusters.similar - required
    apart = _of_different_pitch(evidence, clusters.labels, len(means))
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
