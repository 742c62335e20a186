"""Which clusters of a recording are one speaker.

Two clusters are one speaker if their embeddings are alike, unless the segmentation network
distinguishes them: in most windows in which both are active, they are different local speakers.
An embedding is computed from one piece; the segmentation network compares the voices of 10 s.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from parakeet_worker.options import SpeakerCount
from parakeet_worker.speakers.clustering import SAME_SPEAKER_SIMILARITY, Labels, Vectors, unit
from parakeet_worker.speakers.sequence import Posteriors, refined
from parakeet_worker.speakers.windows import LOCAL_SPEAKERS

MERGED_SIMILARITY = 0.68
"""Speakers whose refined means are more similar are one."""
_MERGED_DISTINGUISHED_SIMILARITY = 0.92
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
    similar = (means @ means.T).astype(np.float64)
    linkage = _linkage(evidence, labels, means)
    scores = np.maximum(similar - MERGED_SIMILARITY, linkage - SAME_SPEAKER_SIMILARITY)
    apart = _distinguished(evidence, labels, len(means))
    scores[apart] = similar[apart] - _MERGED_DISTINGUISHED_SIMILARITY
    scores[np.tril_indices(len(means))] = -np.inf
    return scores


def _linkage(evidence: Evidence, labels: Labels, means: Vectors) -> npt.NDArray[np.float64]:
    """(K, K): the mean similarity of the long pieces of two speakers."""
    long = evidence.long
    sums = np.zeros(means.shape)
    np.add.at(sums, labels[long], evidence.smooth[long])
    counts = np.bincount(labels[long], minlength=len(means))[:, None]
    averages = np.where(counts, sums / np.maximum(counts, 1), means)
    return np.asarray(averages @ averages.T)


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
