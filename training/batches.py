"""Padded batches from shards, with masks and warped spectra, prepared in a background thread."""

import queue
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from training import oracle
from training.architecture import MELS
from training.corpus import Example, read_shard
from training.pieces import Pieces
from training.utterances import SpokenWord
from training.words import word_types

SUBSAMPLING = 8
SHARDS_MIXED = 2
MOST_NODES = 3600
SHARE_MISREMEMBERED = 0.04
SHARE_WITH_HISTORY = 0.6
SHARE_UNBROKEN_HISTORY = 0.7
LONGEST_HISTORY_WORDS = 90
LATEST_CONTINUATION_SECONDS = 0.4
"""An utterance continues the sentence of its history only if it starts this early."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Examples padded to one length, and the correct action in many states."""

    mels: Tensor
    """(B, mels, T) float32."""
    lengths: Tensor
    """(B,) frames of 10 ms."""
    labels: Tensor
    """(B, T') word class per encoder frame, -100 where padded."""
    tokens: Tensor
    """(B, U) input of the prediction network, padded with 0."""
    rows: Tensor
    """(nodes,) index of the example; the next four fields are its state and action."""
    frames: Tensor
    emitted: Tensor
    right_tokens: Tensor
    right_durations: Tensor


def encoder_frames(mel_frames: int) -> int:
    """Return the number of 80 ms frames after three halvings."""
    for _ in range(3):
        mel_frames = (mel_frames - 1) // 2 + 1
    return mel_frames


def warped(mels: NDArray[np.float32], factor: float) -> NDArray[np.float32]:
    """Warp the mel axis of (T, mels), as by a longer or shorter vocal tract."""
    places = np.clip(np.arange(MELS) * factor, 0, MELS - 1)
    below = np.minimum(places.astype(np.int64), MELS - 2)
    share = (places - below).astype(np.float32)
    return np.asarray(mels[:, below] * (1 - share) + mels[:, below + 1] * share)


def masked(mels: NDArray[np.float32], randomness: np.random.Generator) -> NDArray[np.float32]:
    """Mask up to two bands and some short times of (T, mels) with the mean."""
    for _ in range(int(randomness.integers(0, 3))):
        width = int(randomness.integers(1, 14))
        start = int(randomness.integers(0, MELS - width))
        mels[:, start : start + width] = 0
    for _ in range(int(randomness.integers(0, 2 + len(mels) // 300))):
        width = int(randomness.integers(1, 12))
        start = int(randomness.integers(0, max(1, len(mels) - width)))
        mels[start : start + width] = 0
    return mels


def altered(example: Example, randomness: np.random.Generator) -> NDArray[np.float32]:
    """Augment an example's features for this pass.

    Recorded humans are warped more often and further, because there are few of them.
    """
    mels = example.mels.astype(np.float32)
    share, widest = (0.8, 0.24) if example.origin == "human" else (0.5, 0.15)
    if randomness.random() < share:
        mels = warped(mels, float(np.exp(randomness.uniform(-widest, widest))))
    return masked(mels, randomness)


def history(
    examples: list[Example], share: float, randomness: np.random.Generator
) -> tuple[SpokenWord, ...]:
    """Draw words that the prediction network reads before an utterance; none in `1 - share`.

    They do not occur in the audio. With them, its states after up to 90 words are trained with
    the audio of a short utterance, and must not depend on words long past.
    """
    spoken = [example.words for example in examples if example.words]
    if not spoken or randomness.random() >= share:
        return ()
    count = int(randomness.integers(1, LONGEST_HISTORY_WORDS + 1))
    words: list[SpokenWord] = []
    while len(words) < count:
        words += spoken[int(randomness.integers(len(spoken)))]
    words = words[:count]
    if randomness.random() < SHARE_UNBROKEN_HISTORY:
        return tuple(
            replace(word, opens_sentence=index == 0, closes_sentence=False)
            for index, word in enumerate(words)
        )
    return tuple(words)


def connected(
    before: tuple[SpokenWord, ...], words: tuple[SpokenWord, ...]
) -> tuple[tuple[SpokenWord, ...], tuple[SpokenWord, ...]]:
    """Continue the history's last sentence with the utterance, or end it."""
    if not before or before[-1].closes_sentence:
        return before, words
    if words and words[0].start < LATEST_CONTINUATION_SECONDS:
        return before, (replace(words[0], opens_sentence=False), *words[1:])
    return (*before[:-1], replace(before[-1], closes_sentence=True)), words


class Collator:
    """Builds a `Batch` from examples."""

    def __init__(self, pieces: Pieces, history_share: float = SHARE_WITH_HISTORY) -> None:
        self._pieces = pieces
        self._history_share = history_share
        self._classes = {word: index + 1 for index, word in enumerate(word_types())}

    def batch(self, examples: list[Example], randomness: np.random.Generator) -> Batch:
        """Pad the examples, and draw the states to train on."""
        lengths = [len(example.mels) for example in examples]
        mels = np.zeros((len(examples), max(lengths), MELS), np.float32)
        labels = np.full((len(examples), encoder_frames(max(lengths))), -100)
        entered, states = [], []
        for row, example in enumerate(examples):
            mels[row, : lengths[row]] = altered(example, randomness)
            frames = encoder_frames(lengths[row])
            labels[row, :frames] = oracle.frame_labels(example.words, frames, self._classes)
            before, words = connected(
                history(examples, self._history_share, randomness), example.words
            )
            planned = oracle.schedule(words, frames, self._pieces)
            past = oracle.schedule(before, frames, self._pieces).tokens
            entered.append(np.concatenate((past, planned.tokens)))
            own = oracle.nodes(planned, frames, len(self._pieces))
            states.append(replace(own, emitted=own.emitted + len(past)))
        tokens = np.zeros((len(examples), max(map(len, entered))), np.int64)
        for row, one in enumerate(entered):
            tokens[row, : len(one)] = misremembered(one, len(self._pieces), randomness)
        return Batch(
            torch.from_numpy(mels).transpose(1, 2),
            torch.tensor(lengths),
            torch.from_numpy(labels),
            torch.from_numpy(tokens),
            *drawn(states, randomness),
        )


def misremembered(
    tokens: oracle.Ints, vocabulary: int, randomness: np.random.Generator
) -> oracle.Ints:
    """Replace some tokens at random, so that one wrong word does not affect the next ones."""
    wrong = randomness.random(len(tokens)) < SHARE_MISREMEMBERED
    return np.where(wrong, randomness.integers(1, vocabulary, len(tokens)), tokens)


def drawn(states: list[oracle.Nodes], randomness: np.random.Generator) -> tuple[Tensor, ...]:
    """Sampled states of a batch, each column (nodes,)."""
    columns = (
        np.repeat(np.arange(len(states)), [len(one.frames) for one in states]),
        np.concatenate([one.frames for one in states]),
        np.concatenate([one.emitted for one in states]),
        np.concatenate([one.tokens for one in states]),
        np.concatenate([one.durations for one in states]),
    )
    count = len(columns[0])
    chosen = randomness.permutation(count)[:MOST_NODES]
    return tuple(torch.from_numpy(column[chosen]) for column in columns)


def grouped(
    examples: list[Example], mel_frames: int, randomness: np.random.Generator
) -> list[list[Example]]:
    """Group examples of similar length, `mel_frames` per group with padding, in random order."""
    ordered = sorted(examples, key=lambda one: len(one.mels) * randomness.uniform(0.9, 1.1))
    groups: list[list[Example]] = [[]]
    longest = 0
    for example in ordered:
        longest = max(longest, len(example.mels))
        if longest * (len(groups[-1]) + 1) > mel_frames and groups[-1]:
            groups.append([])
            longest = len(example.mels)
        groups[-1].append(example)
    return [groups[int(index)] for index in randomness.permutation(len(groups))]


def endless(shards: Path, pieces: Pieces, mel_frames: int, seed: int) -> Iterator[Batch]:
    """Yield batches indefinitely, from all shards that exist at that time."""
    randomness = np.random.default_rng(seed)
    collator = Collator(pieces)
    while True:
        paths = sorted(shards.glob("*.shard"))
        order = [paths[int(index)] for index in randomness.permutation(len(paths))]
        for first in range(0, len(order), SHARDS_MIXED):
            examples = [
                one for path in order[first : first + SHARDS_MIXED] for one in read_shard(path)
            ]
            for group in grouped(examples, mel_frames, randomness):
                yield collator.batch(group, randomness)


def ahead(batches: Iterator[Batch], depth: int = 6) -> Iterator[Batch]:
    """Yield the same batches, prepared in a thread."""
    ready: queue.Queue[Batch] = queue.Queue(depth)

    def fill() -> None:
        for batch in batches:
            ready.put(batch)

    threading.Thread(target=fill, daemon=True).start()
    while True:
        yield ready.get()
