"""The correct transducer action in any state, derived from the known time of every word.

A decoder's state is (frame, tokens emitted). Instead of summing over a lattice, training uses the
one correct action, a token and a duration, in many states on and near the correct path. Late and
early states are included, so that the decoder learns to recover.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from training.architecture import DURATIONS, FRAME_SECONDS
from training.pieces import Pieces
from training.utterances import SpokenWord

Ints = NDArray[np.int64]

LONGEST_STEP = DURATIONS[-1]
FRAMES_EARLY = 1
FRAMES_LATE = 2
FRAMES_LATEST = 3


@dataclass(frozen=True, slots=True, eq=False)
class Schedule:
    """Every token of an utterance with its frames, each array (tokens,)."""

    tokens: Ints
    frames: Ints
    """The frame at which a token is due."""
    leads_to: Ints
    """The frame its duration leads to: the next piece of the word, or the word's end."""


@dataclass(frozen=True, slots=True, eq=False)
class Nodes:
    """States and the correct action in each, every array (nodes,)."""

    frames: Ints
    emitted: Ints
    tokens: Ints
    """The correct token or the blank."""
    durations: Ints


def word_frames(word: SpokenWord, frames: int) -> tuple[int, int]:
    """A word's first frame and the frame after its last."""
    start = min(round(word.start / FRAME_SECONDS), frames - 1)
    return start, min(max(round(word.end / FRAME_SECONDS), start + 1), frames)


def schedule(words: tuple[SpokenWord, ...], frames: int, pieces: Pieces) -> Schedule:
    """Distribute a word's pieces over its frames; a full stop is due at the word's end."""
    tokens: list[int] = []
    places: list[int] = []
    leads: list[int] = []
    for index, word in enumerate(words):
        start, end = word_frames(word, frames)
        spoken = pieces.word_ids(word.written.rstrip("."))
        # Classification is best one frame after the start; half of the first frame precedes it.
        sure = min(start + 1, end - 1)
        spread = [sure + place * (end - sure) // len(spoken) for place in range(len(spoken))]
        tokens += spoken
        places += spread
        leads += [*spread[1:], end]
        if word.closes_sentence:
            last = index + 1 == len(words)
            tokens.append(pieces.full_stop)
            places.append(min(end, frames - 1))
            leads.append(frames if last else word_frames(words[index + 1], frames)[0])
    return Schedule(*(np.array(column, np.int64) for column in (tokens, places, leads)))


def nodes(planned: Schedule, frames: int, blank: int) -> Nodes:
    """Enumerate states from just before a token's predecessor to the end of the token.

    A blank that takes a word's duration lands at the word's end: from there, too, the word is
    still to be emitted.
    """
    count = len(planned.tokens)
    due = np.append(planned.frames, frames)
    until = np.clip(np.append(planned.leads_to, frames), due + FRAMES_LATE, due + FRAMES_LATEST)
    visited, emitted = [], []
    for index in range(count + 1):
        first = max(0, int(due[index - 1]) - FRAMES_EARLY) if index else 0
        last = min(frames, int(until[index]) + 1)
        visited.append(np.arange(first, max(last, min(first + 1, frames))))
        emitted.append(np.full(len(visited[-1]), index))
    return right_actions(planned, np.concatenate(visited), np.concatenate(emitted), frames, blank)


def right_actions(
    planned: Schedule, visited: Ints, emitted: Ints, frames: int, blank: int
) -> Nodes:
    """Return the action: wait until the next token is due, then emit it."""
    due = np.append(planned.frames, frames)[emitted]
    tokens = np.append(planned.tokens, blank)[emitted]
    leads_to = np.append(planned.leads_to, frames)[emitted]
    waiting = visited < due
    steps = np.where(waiting, due - visited, np.maximum(leads_to - visited, 0))
    return Nodes(
        visited,
        emitted,
        np.where(waiting, blank, tokens),
        np.minimum(steps, LONGEST_STEP),
    )


def frame_labels(words: tuple[SpokenWord, ...], frames: int, classes: dict[str, int]) -> Ints:
    """Return (frames,) the word class of each frame; 0 is no word."""
    labels = np.zeros(frames, np.int64)
    for word in words:
        start, end = word_frames(word, frames)
        labels[start:end] = classes[word.word]
    return labels
