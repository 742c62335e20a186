"""Clustering: the tree against all pairs, numbers of speakers, and bounded memory."""

import numpy as np
import pytest

from observed import arguments_of
from parakeet_worker.options import SpeakerCount
from parakeet_worker.speakers.clustering import centroids, tree, unit


def voices(count, each, *, spread=0.6, size=192, seed=1):
    """Unit vectors around `count` random directions, and the direction of each."""
    random = np.random.default_rng(seed)
    centres = unit(random.normal(size=(count, size)).astype(np.float32))
    labels = np.repeat(np.arange(count), each)
    noise = unit(random.normal(size=(len(labels), size)).astype(np.float32))
    return unit(centres[labels] + spread * noise), labels


def weighted(vectors):
    return np.ones(len(vectors), dtype=np.float32)


def average_linkage(vectors):
    """Similarities of the merges, by searching all pairs at each merge."""
    clusters = [[index] for index in range(len(vectors))]
    similar = vectors @ vectors.T
    merges = []
    while len(clusters) > 1:
        value, first, second = max(
            (similar[np.ix_(a, b)].mean(), i, j)
            for i, a in enumerate(clusters)
            for j, b in enumerate(clusters[:i])
        )
        merges.append(value)
        clusters[second] += clusters.pop(first)
    return sorted(merges, reverse=True)


def test_the_tree_has_the_merges_of_average_linkage():
    vectors, _ = voices(3, 8, spread=1.2)
    merges = [similarity for similarity, _, _ in tree(vectors, weighted(vectors)).merges]
    assert merges == pytest.approx(average_linkage(vectors), abs=1e-5)


@pytest.mark.parametrize("count", [1, 2, 5, 20])
def test_distinct_voices_are_counted(count):
    vectors, labels = voices(count, 12)
    means = centroids(vectors, weighted(vectors), SpeakerCount())
    assert len(means) == count
    nearest = np.argmax(vectors @ means.T, axis=1)
    assert len({(label, index) for label, index in zip(labels, nearest, strict=True)}) == count


@pytest.mark.parametrize(
    ("allowed", "expected"),
    [
        (SpeakerCount(2, 2), 2),
        (SpeakerCount(6, 6), 6),
        (SpeakerCount(1, 3), 3),
        (SpeakerCount(5), 5),
    ],
)
def test_the_number_of_speakers_is_within_the_limits(allowed, expected):
    vectors, _ = voices(4, 12)
    assert len(centroids(vectors, weighted(vectors), allowed)) == expected


def test_fewer_embeddings_than_speakers_give_one_speaker_each():
    vectors, _ = voices(1, 2)
    assert len(centroids(vectors, weighted(vectors), SpeakerCount(5, 5))) == 2
    assert len(centroids(vectors[:0], weighted(vectors[:0]), SpeakerCount(5, 5))) == 0


def test_a_voice_of_one_second_is_no_speaker_next_to_longer_ones():
    vectors, labels = voices(3, 10)
    vectors = np.concatenate((vectors[labels < 2], vectors[labels == 2][:1]))
    assert len(centroids(vectors, weighted(vectors), SpeakerCount())) == 2


def test_many_embeddings_are_reduced_in_blocks():
    vectors, labels = voices(3, 400, spread=0.5)
    order = np.random.default_rng(2).permutation(len(labels))
    with arguments_of(tree) as trees:
        means = centroids(vectors[order], weighted(vectors), SpeakerCount(), max_leaves=100)
    assert len(trees) > 12
    assert max(len(each["vectors"]) for each in trees) <= 100
    assert len(means) == 3
    assert len(np.unique(np.argmax(vectors @ means.T, axis=1))) == 3


@pytest.mark.parametrize(("similarity", "expected"), [(0.57, 2), (0.63, 1)])
def test_clusters_that_are_not_quite_alike_are_left_to_the_merging(similarity, expected):
    halves = np.zeros((2, 3), dtype=np.float32)
    halves[0, 0] = 1.0
    halves[1, :2] = similarity, np.sqrt(1 - similarity**2)
    vectors = np.repeat(halves, 4, axis=0)
    assert len(centroids(vectors, weighted(vectors), SpeakerCount())) == expected
