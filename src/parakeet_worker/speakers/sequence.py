"""Refinement of speakers by a hidden Markov model over pieces.

As in VBx (F. Landini, J. Profant, M. Diez and L. Burget, "Bayesian HMM clustering of x-vector
sequences in speaker diarization", 2022) states are speakers, posteriors come from the
forward-backward algorithm, and speakers are estimated again from them. Emissions are von
Mises-Fisher densities of unit embeddings instead of Gaussians after PLDA, which is not part of the
weights.
"""

import numpy as np
import numpy.typing as npt

from parakeet_worker.speakers.clustering import Vectors, unit

Posteriors = npt.NDArray[np.float32]

CONCENTRATION = 50.0
"""Of the emission densities: how fast the likelihood falls with the cosine."""

_ITERATIONS = 8
_CONVERGED = 1e-3


def refined(
    vectors: Vectors,
    weights: npt.NDArray[np.float32],
    stay: npt.NDArray[np.float32],
    means: Vectors,
) -> tuple[Posteriors, Vectors]:
    """(N, K) posteriors of the speakers of (N, D) pieces, and the means that they give.

    `weights` scale each piece's evidence; `stay[i]` is the probability that piece i has the
    speaker of the piece before.
    """
    posteriors = np.zeros((len(vectors), len(means)), dtype=np.float32)
    if len(means) < 2:
        posteriors[:] = 1.0
        return posteriors, means
    for _ in range(_ITERATIONS):
        before, posteriors = posteriors, decoded(vectors @ means.T, weights, stay)
        sums = posteriors.T @ (vectors * weights[:, None])
        if not np.linalg.norm(sums, axis=1).all():
            break
        means = unit(sums)
        if np.abs(posteriors - before).max() < _CONVERGED:
            break
    return posteriors, means


def decoded(
    similar: npt.NDArray[np.float32],
    weights: npt.NDArray[np.float32],
    stay: npt.NDArray[np.float32],
) -> Posteriors:
    """(N, K) posteriors of pieces with these similarities to K speakers, by forward-backward.

    A change is equally probable to every speaker.
    """
    scaled = CONCENTRATION * weights[:, None] * similar
    emission = np.exp(scaled - scaled.max(axis=1, keepdims=True)).astype(np.float64)
    count, speakers = emission.shape
    change = (1.0 - stay) / speakers
    forward = np.empty_like(emission)
    state = np.full(speakers, 1.0 / speakers)
    for index in range(count):
        state = (stay[index] * state + change[index]) * emission[index]
        state /= state.sum()
        forward[index] = state
    backward = np.ones(speakers)
    for index in range(count - 2, -1, -1):
        ahead = backward * emission[index + 1]
        backward = stay[index + 1] * ahead + change[index + 1] * ahead.sum()
        backward /= backward.sum()
        forward[index] *= backward
    return np.asarray(forward / forward.sum(axis=1, keepdims=True), dtype=np.float32)
