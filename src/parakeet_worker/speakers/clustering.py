"""Embeddings of one recording to speakers.

Average linkage by cosine (P. Sneath and R. Sokal, "Numerical Taxonomy", 1973) gives a tree, the
nearest-neighbour chain (F. Murtagh, "A survey of recent advances in hierarchical clustering
algorithms", 1983) builds it in quadratic time. Embeddings are unit vectors, so the mean similarity
of two clusters is the product of their mean vectors: no matrix of distances is ever held.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from parakeet_worker.options import SpeakerCount

Vectors = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]

_SAME_SPEAKER_SIMILARITY = 0.45
"""Clusters whose mean similarity is lower are different speakers."""

_CLUSTER_SIMILARITY = 0.6
"""Clusters that are less similar are kept until there is more evidence (`merging`)."""

MAX_LEAVES = 2000
"""Embeddings in one tree; more are first reduced in blocks to centroids."""

_BLOCK_SIMILARITY = 0.75
_MIN_SPEAKER_SECONDS = 1.5


@dataclass(frozen=True, slots=True, eq=False)
class Tree:
    """Merges of clusters, the most similar first."""

    leaves: int
    merges: tuple[tuple[float, int, int], ...]
    """Similarity and one leaf of each of both clusters."""

    def cut(self, clusters: int) -> Labels:
        """Labels of the leaves after merging down to `clusters`."""
        parent = np.arange(self.leaves)

        def root(leaf: int) -> int:
            while parent[leaf] != leaf:
                parent[leaf] = parent[parent[leaf]]
                leaf = int(parent[leaf])
            return leaf

        for _, first, second in self.merges[: max(0, self.leaves - clusters)]:
            parent[root(second)] = root(first)
        roots = [root(leaf) for leaf in range(self.leaves)]
        return np.unique(roots, return_inverse=True)[1].astype(np.int64)

    def clusters_above(self, similarity: float) -> int:
        """How many clusters are left when all merges at least as similar are made."""
        return self.leaves - sum(each >= similarity for each, _, _ in self.merges)


def tree(vectors: Vectors, weights: npt.NDArray[np.float32]) -> Tree:
    """Average linkage of (N, D) unit vectors, weighted; memory is of order N D."""
    count = len(vectors)
    means, sizes = vectors.astype(np.float64), weights.astype(np.float64)
    alive = np.ones(count, dtype=bool)
    merges: list[tuple[float, int, int]] = []
    chain: list[int] = []
    while len(merges) < count - 1:
        if not chain:
            chain.append(int(np.argmax(alive)))
        while True:
            top = chain[-1]
            similar = np.where(alive, means @ means[top], -np.inf)
            similar[top] = -np.inf
            nearest = int(np.argmax(similar))
            if len(chain) > 1 and similar[chain[-2]] >= similar[nearest]:
                nearest = chain[-2]
                break
            chain.append(nearest)
        merges.append((float(similar[nearest]), nearest, top))
        del chain[-2:]
        total = sizes[nearest] + sizes[top]
        means[nearest] = (means[nearest] * sizes[nearest] + means[top] * sizes[top]) / total
        sizes[nearest], alive[top] = total, False
    return Tree(count, tuple(sorted(merges, key=lambda merge: -merge[0])))


def unit(vectors: Vectors) -> Vectors:
    """The vectors with length one."""
    length = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return np.asarray(vectors / np.maximum(length, 1e-12), dtype=np.float32)


def centroids(
    vectors: Vectors,
    seconds: npt.NDArray[np.float32],
    allowed: SpeakerCount,
    *,
    max_leaves: int = MAX_LEAVES,
) -> Vectors:
    """(K, D) unit centroids of clusters of (N, D) embeddings of `seconds` each.

    Clusters are of one speaker; a speaker may have several, unless there are more speakers than
    allowed. Deterministic. More than `max_leaves` embeddings are first reduced in blocks of that
    number.
    """
    if not len(vectors):
        return np.zeros((0, vectors.shape[-1]), dtype=np.float32)
    leaves, weights = _reduced(vectors, seconds, max_leaves)
    merged = tree(leaves, weights)
    natural = merged.clusters_above(_SAME_SPEAKER_SIMILARITY)
    clusters = min(max(natural, allowed.min), len(leaves))
    while True:
        labels = merged.cut(clusters)
        means, totals = _means(leaves, weights, labels)
        large = totals >= _MIN_SPEAKER_SECONDS
        enough = max(1, min(allowed.min, len(leaves)))
        if large.sum() >= enough or clusters == len(leaves):
            break
        clusters += 1
    if large.sum() > allowed.max or large.sum() < enough:
        clusters = min(allowed.max, len(leaves)) if large.sum() > allowed.max else enough
        means, _ = _means(leaves, weights, merged.cut(clusters))
        return means
    finer = merged.cut(max(clusters, merged.clusters_above(_CLUSTER_SIMILARITY)))
    means, _ = _means(leaves, weights, finer)
    return means[large[_containing(finer, labels)]]


def _containing(finer: Labels, labels: Labels) -> Labels:
    """For each of the finer clusters, the label of the cluster that contains it."""
    return labels[np.unique(finer, return_index=True)[1]]


def _means(
    vectors: Vectors, weights: npt.NDArray[np.float32], labels: Labels
) -> tuple[Vectors, npt.NDArray[np.float32]]:
    count = int(labels.max()) + 1
    totals = np.bincount(labels, weights, minlength=count)
    sums = np.zeros((count, vectors.shape[1]))
    np.add.at(sums, labels, vectors * weights[:, None])
    return unit(sums.astype(np.float32)), totals.astype(np.float32)


def _reduced(
    vectors: Vectors, weights: npt.NDArray[np.float32], limit: int
) -> tuple[Vectors, npt.NDArray[np.float32]]:
    """At most `limit` centroids, each of embeddings that lie close together."""
    while len(vectors) > limit:
        parts = []
        for begin in range(0, len(vectors), limit):
            part = slice(begin, begin + limit)
            block, of_block = vectors[part], weights[part]
            merged = tree(block, of_block)
            clusters = min(merged.clusters_above(_BLOCK_SIMILARITY), max(1, len(block) // 4))
            parts.append(_means(block, of_block, merged.cut(clusters)))
        vectors = np.concatenate([means for means, _ in parts])
        weights = np.concatenate([totals for _, totals in parts])
    return vectors, weights
