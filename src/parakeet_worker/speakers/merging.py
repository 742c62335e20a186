"""Which clusters of a recording are one speaker.

Two clusters are one speaker if they are as similar as clusters of one voice of these sizes, unless
the segmentation network distinguishes them: in most windows in which both are active, they are
different local speakers.
An embedding is computed from one piece; the segmentation network compares the voices of 10 s.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from parakeet_worker.options import SpeakerCount
from parakeet_worker.speakers.clustering import Labels, Vectors, unit
from parakeet_worker.speakers.sequence import Posteriors, refined
from parakeet_worker.speakers.windows import LOCAL_SPEAKERS

MERGED_SIMILARITY = 0.81
"""Clusters whose means are more similar are one speaker, if both have many pieces."""
_MERGED_DISTINGUISHED_SIMILARITY = 0.92
# The variance of pieces of 1.5 s around the mean of their voice, relative to that mean's square. It
# is about 0.7 for independent pieces of all of a voice; adjacent pieces overlap, and small clusters
# consist of pieces with similar sounds. Chosen on the tuning set, as the similarity above.
_PIECE_NOISE = 3.5
# In how many windows two speakers have to be active, and in which share of them as different local
# speakers, to be distinguished.
_MIN_WINDOWS, _APART_SHARE = 3, 0.5
# A speaker with less of a window, in pieces of 1.5 s, is not active in it.
_MIN_WINDOW_PIECES = 0.4
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
    local: Labels
    """(N,): the local speaker, numbered through all windows."""


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
    apart = _distinguished(evidence, labels, len(means))
    scores[apart] = (means @ means.T)[apart] - _MERGED_DISTINGUISHED_SIMILARITY
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


def _distinguished(evidence: Evidence, labels: Labels, count: int) -> npt.NDArray[np.bool_]:
    """(K, K): whether the segmentation network distinguishes two speakers."""
    windows = int(evidence.local.max()) // LOCAL_SPEAKERS + 1
    pieces = np.zeros((windows * LOCAL_SPEAKERS, count))
    np.add.at(pieces, (evidence.local, labels), evidence.weights)
    by_window = pieces.reshape(windows, LOCAL_SPEAKERS, count)
    totals = by_window.sum(axis=1, keepdims=True)
    active = totals >= _MIN_WINDOW_PIECES
    shares = np.where(active, by_window / np.maximum(totals, 1e-9), 0.0).reshape(pieces.shape)
    together = active[:, 0].T.astype(np.float64) @ active[:, 0]
    same = shares.T @ shares
    apart = (together >= _MIN_WINDOWS) & (same < (1.0 - _APART_SHARE) * together)
    return np.asarray(apart, dtype=bool)
