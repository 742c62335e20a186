"""The hidden Markov model: exact posteriors, and context that outvotes one unclear piece."""

from itertools import product

import numpy as np
import pytest

from parakeet_worker.speakers import sequence
from parakeet_worker.speakers.sequence import refined


def test_posteriors_are_those_of_all_paths():
    random = np.random.default_rng(1)
    similar = random.normal(size=(5, 3)).astype(np.float32)
    weights = np.full(5, 1 / sequence.CONCENTRATION, np.float32)
    stay = random.uniform(0.1, 0.9, 5).astype(np.float32)
    expected = np.zeros((5, 3))
    for path in product(range(3), repeat=5):
        weight = np.exp(sum(similar[i, s] for i, s in enumerate(path)))
        for i in range(1, 5):
            weight *= stay[i] * (path[i] == path[i - 1]) + (1 - stay[i]) / 3
        for i, s in enumerate(path):
            expected[i, s] += weight
    expected /= expected.sum(axis=1, keepdims=True)
    assert sequence.decoded(similar, weights, stay) == pytest.approx(expected, abs=1e-5)


def test_an_unclear_piece_has_the_speaker_of_its_run():
    means = np.eye(2, 4, dtype=np.float32)
    runs = [means[0]] * 3, [np.array([0.5, 0.55, 0, 0], np.float32)], [means[0]] * 3, [means[1]] * 6
    vectors = np.array([vector for run in runs for vector in run])
    weights = np.ones(13, np.float32)
    alone, _ = refined(vectors, weights, np.full(13, 0.0, np.float32), means)
    in_run, _ = refined(vectors, weights, np.full(13, 0.95, np.float32), means)
    assert alone[3].argmax() == 1
    assert in_run[3].argmax() == 0


def test_one_speaker_is_certain():
    vectors = np.eye(3, dtype=np.float32)
    posteriors, means = refined(
        vectors, np.ones(3, np.float32), np.zeros(3, np.float32), vectors[:1]
    )
    assert posteriors.tolist() == [[1.0]] * 3
    assert means.tolist() == vectors[:1].tolist()
