"""Windows of 10 s, and the pieces of them in which one speaker speaks alone."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

SAMPLE_RATE = 16_000
WINDOW_SAMPLES = 10 * SAMPLE_RATE
FRAME_SAMPLES = 270
"""From one output frame to the next: 16.9 ms."""
FIRST_FRAME_SAMPLES = 991
"""Samples that one output frame sees; the first frame sees the window's first ones."""
WINDOW_FRAMES = 589
HOP_FRAMES = 296
"""From one window to the next: 5 s, in whole frames."""
MARGIN_FRAMES = (WINDOW_FRAMES - HOP_FRAMES) // 2
"""Of each end of a window, how much is context that an adjacent window has closer to its middle."""
STEPS = 12
"""Steps from one window to the next, in which an embedding of what is audible is computed."""
STEP_FRAMES = HOP_FRAMES / STEPS
STEPS_BEFORE = math.ceil(MARGIN_FRAMES / STEP_FRAMES)
"""In the first window, before its middle; as many are after that of the last one."""
LOCAL_SPEAKERS = 3
CLASSES = (
    (0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 0), (1, 0, 1), (0, 1, 1),
)  # fmt: skip
"""Of each output class, which local speakers are active: none, one, or two of three."""

EMBEDDING_SIZE = 192
FEATURE_SAMPLES = 160
"""From one frame of the embedding's features to the next: 10 ms."""
PITCH_FRAME_SAMPLES, PITCH_HOP_SAMPLES = 640, 320
"""Frames of 40 ms, one every 20 ms."""
PITCH_FRAMES = (WINDOW_SAMPLES - PITCH_FRAME_SAMPLES) // PITCH_HOP_SAMPLES + 1
"""Of one window."""

# Pieces are cut to these numbers of feature frames (10 ms), so that many share a batch.
_LENGTHS = (40, 60, 80, 100, 120, 150)
# Shorter runs are embedded together with what is around them.
_MIN_RUN = 15
# A pause that is shorter does not end a run of the same local speaker.
_MAX_PAUSE_FRAMES = 12


@dataclass(frozen=True, slots=True)
class Scale:
    """How a run is cut into pieces, in frames of the window."""

    longest: int
    hop: float


LONG = Scale(88, 75 * FEATURE_SAMPLES / FRAME_SAMPLES)
"""1.5 s, every 0.75 s: pieces that define the speakers of the recording."""
SHORT = Scale(36, 36)
"""0.6 s: pieces that have one speaker each, where a long one may contain a change of speakers."""


@dataclass(frozen=True, slots=True)
class Span:
    """A part of a window, in frames."""

    first: int
    after: int

    @property
    def centre(self) -> float:
        return (self.first + self.after) / 2

    @property
    def seconds(self) -> float:
        return (self.after - self.first) * FRAME_SAMPLES / SAMPLE_RATE


@dataclass(frozen=True, slots=True)
class Piece(Span):
    """A span in which one local speaker speaks alone."""

    local: int
    run: int
    """Pieces of one uninterrupted run have the same number."""


@dataclass(frozen=True, slots=True)
class Step(Span):
    """A span of 0.6 s, in which any number of speakers may be active."""

    number: int
    """Steps from the beginning of the window's middle; negative before it."""


@dataclass(frozen=True, slots=True, eq=False)
class Window:
    """Outputs of both networks, and the pitch, of 10 s."""

    active: npt.NDArray[np.bool_]
    """(589, 3): whether each local speaker is active."""
    pitch: npt.NDArray[np.float16]
    """(499,): semitones above 1 Hz; NaN in frames without a voice."""
    pieces: tuple[Piece, ...]
    """Long ones, ordered by their centres."""
    embeddings: npt.NDArray[np.float32]
    """(P, 192): of each piece, of length one."""
    steps: npt.NDArray[np.int64]
    """(S,): numbers of the steps with speech, in order."""
    step_embeddings: npt.NDArray[np.float16]
    """(S, 192)."""
    used: tuple[int, int] = (0, WINDOW_FRAMES)
    """First frame that is used, and the one after the last; the others are of adjacent windows."""


def cut(
    active: npt.NDArray[np.bool_], scale: Scale, used: tuple[int, int] = (0, WINDOW_FRAMES)
) -> tuple[Piece, ...]:
    """Pieces of a window's (589, 3) activity with a frame in `used`, ordered by their centres."""
    alone = active & (active.sum(axis=1, keepdims=True) == 1)
    pieces: list[Piece] = []
    run = 0
    for local in range(LOCAL_SPEAKERS):
        for first, after in _runs(alone[:, local], np.logical_or.reduce(active, axis=1)):
            pieces += [Piece(*span, local, run) for span in _spread(first, after, scale)]
            run += 1
    pieces = [piece for piece in pieces if piece.first < used[1] and piece.after > used[0]]
    return tuple(sorted(pieces, key=lambda piece: piece.centre))


def _runs(alone: npt.NDArray[np.bool_], speech: npt.NDArray[np.bool_]) -> Iterator[tuple[int, int]]:
    """Runs of one local speaker, joined over short pauses in which no other speaks."""
    edges = np.flatnonzero(np.diff(alone, prepend=False, append=False)).reshape(-1, 2).tolist()
    while edges:
        first, after = edges.pop(0)
        while edges and edges[0][0] - after <= _MAX_PAUSE_FRAMES:
            if speech[after : edges[0][0]].any():
                break
            after = edges.pop(0)[1]
        if (after - first) * FRAME_SAMPLES >= _MIN_RUN * FEATURE_SAMPLES:
            yield first, after


def _spread(first: int, after: int, scale: Scale) -> Iterator[tuple[int, int]]:
    """A run as pieces of equal length, which overlap."""
    length = min(scale.longest, after - first)
    more = math.ceil((after - first - length) / scale.hop)
    for index in range(more + 1):
        begin = first + round(index * (after - first - length) / max(more, 1))
        yield begin, begin + length


def slide(
    active: npt.NDArray[np.bool_], used: tuple[int, int] = (0, WINDOW_FRAMES)
) -> tuple[Step, ...]:
    """The steps of a window with speech and with their centres in `used`."""
    speech = np.logical_or.reduce(active, axis=1)
    steps = []
    for number in range(-STEPS_BEFORE, STEPS + STEPS_BEFORE):
        centre = step_centre(number)
        first = min(max(round(centre) - SHORT.longest // 2, 0), WINDOW_FRAMES - SHORT.longest)
        step = Step(first, first + SHORT.longest, number)
        if used[0] <= centre < used[1] and speech[step.first : step.after].any():
            steps.append(step)
    return tuple(steps)


def step_centre(number: int) -> float:
    """In frames of the window."""
    return MARGIN_FRAMES + (number + 0.5) * STEP_FRAMES


def pitch_span(piece: Piece) -> slice:
    """The frames of the pitch that lie within what the network saw of a piece."""
    first = -(-piece.first * FRAME_SAMPLES // PITCH_HOP_SAMPLES)
    last_samples = (piece.after - 1) * FRAME_SAMPLES + FIRST_FRAME_SAMPLES - PITCH_FRAME_SAMPLES
    return slice(first, last_samples // PITCH_HOP_SAMPLES + 1)


def feature_span(span: Span, count: int) -> tuple[int, int]:
    """First feature frame and number of feature frames around the centre of a span."""
    frames = (span.after - span.first) * FRAME_SAMPLES // FEATURE_SAMPLES
    length = max((each for each in _LENGTHS if each <= frames), default=_LENGTHS[0])
    centre = span.centre * FRAME_SAMPLES / FEATURE_SAMPLES
    return min(max(round(centre - length / 2), 0), count - length), length
