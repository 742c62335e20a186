"""Speakers of a recording to known speakers, by how similar their voices are."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import linear_sum_assignment

from parakeet_worker.recognition.similarities import probabilities
from parakeet_worker.speakers.clustering import Vectors

SAME_PERSON_SIMILARITY = 0.65
"""A speaker whose centroid is less similar to a reference is not that person."""


@dataclass(frozen=True, slots=True, eq=False)
class Voice:
    """The voice of a known person."""

    name: str
    embedding: Vectors
    """(192,), of length one."""


@dataclass(frozen=True, slots=True)
class Identity:
    """A known person among the speakers of a recording."""

    name: str
    similarity: float
    """Cosine of centroid and reference."""
    confidence: float
    """Probability of this person against all other voices and an unknown one."""


def identified(centroids: Vectors, voices: Sequence[Voice]) -> tuple[Identity | None, ...]:
    """For each of (K, 192) centroids the known person, or None; each person at most once.

    The assignment has the greatest sum of similarities above the threshold (H. Kuhn, "The
    Hungarian method for the assignment problem", 1955). An unknown voice counts as one of exactly
    the threshold's similarity, so that the confidence is that of a logistic regression on the
    similarity, less what other known voices take.
    """
    people: list[Identity | None] = [None] * len(centroids)
    if not len(centroids) or not voices:
        return tuple(people)
    similar = centroids @ np.stack([voice.embedding for voice in voices]).T
    above = np.maximum(similar - SAME_PERSON_SIMILARITY, 0.0)
    shares = probabilities(similar, SAME_PERSON_SIMILARITY)
    for row, column in zip(*linear_sum_assignment(above, maximize=True), strict=True):
        if above[row, column] > 0:
            similarity, confidence = float(similar[row, column]), float(shares[row, column])
            people[row] = Identity(voices[column].name, similarity, confidence)
    return tuple(people)
