"""One recording: samples in, who was active when out."""

from collections import deque
from collections.abc import Sequence
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass, replace
from itertools import pairwise
from threading import Event, Lock
from typing import Protocol

import numpy as np
import numpy.typing as npt

from parakeet_worker.engine.base import Samples
from parakeet_worker.options import SpeakerCount
from parakeet_worker.recognition.similarities import SpeakerSimilarities, probabilities
from parakeet_worker.speakers.clustering import centroids, unit
from parakeet_worker.speakers.merging import Evidence, merged
from parakeet_worker.speakers.sequence import decoded
from parakeet_worker.speakers.windows import (
    EMBEDDING_SIZE,
    FRAME_SAMPLES,
    HOP_FRAMES,
    MARGIN_FRAMES,
    SAMPLE_RATE,
    SHORT,
    STEP_FRAMES,
    STEPS,
    STEPS_BEFORE,
    WINDOW_FRAMES,
    WINDOW_SAMPLES,
    Piece,
    Window,
    cut,
    pitch_span,
    step_centre,
)

FRAME_SECONDS = FRAME_SAMPLES / SAMPLE_RATE

_HOP_SAMPLES = HOP_FRAMES * FRAME_SAMPLES
_MAX_WINDOWS_AHEAD = 32
# The network's first frame is centred 31 ms into the window.
_FIRST_CENTRE_SECONDS = 495 / SAMPLE_RATE
# Shorter pieces contain little of a voice: they are labelled, but define no speaker.
_MIN_TRAINING_SECONDS = 0.8
# The similarity of a short piece to a speaker is a mean of that of the steps and of the long piece
# there. Both these and the lower probabilities below were chosen on the tuning set.
_STEP_SHARE = 0.75
_SHORT_WEIGHT_SECONDS = 0.75


@dataclass(frozen=True, slots=True)
class _Stay:
    """The probability that a piece has the speaker of the piece before."""

    in_run: float
    local: float
    """In another run of the same local speaker, or in the next window."""
    other: float


_LONG_STAY, _SHORT_STAY = _Stay(0.95, 0.7, 0.3), _Stay(0.6, 0.5, 0.3)


class WindowQueue(Protocol):
    """Computes windows of many recordings."""

    def submit(self, samples: Samples, used: tuple[int, int]) -> "Future[Window]":
        """Queue 160,000 samples, of which the frames `used` are needed."""
        ...


@dataclass(frozen=True, slots=True)
class Turn:
    """A span in which one speaker is active."""

    start_seconds: float
    end_seconds: float
    speaker: int
    confidence: float
    """Mean over the frames."""


@dataclass(frozen=True, slots=True, eq=False)
class Activity:
    """Which speakers are active in each frame of a recording."""

    active: npt.NDArray[np.bool_]
    """(T, K): the decision."""
    confidence: npt.NDArray[np.float32]
    """(T,): probability of the speaker against the others and an unknown one; zero in pauses."""
    centroids: npt.NDArray[np.float32]
    """(K, 192), each of length one."""
    similarities: SpeakerSimilarities
    """Without names; the steps of all windows."""
    start_seconds: float = 0.0

    @property
    def speakers(self) -> int:
        return int(self.active.shape[1])

    def turns(self) -> list[Turn]:
        """Spans of all speakers, in the order in which they start."""
        turns = []
        offset = self.start_seconds + _FIRST_CENTRE_SECONDS - FRAME_SECONDS / 2
        for speaker in range(self.speakers):
            edges = np.flatnonzero(np.diff(self.active[:, speaker], prepend=False, append=False))
            for first, after in edges.reshape(-1, 2).tolist():
                start = max(first * FRAME_SECONDS + offset, self.start_seconds)
                sure = float(self.confidence[first:after].mean())
                end = after * FRAME_SECONDS + offset
                turns.append(Turn(round(start, 3), round(end, 3), speaker, round(sure, 4)))
        return sorted(turns, key=lambda turn: (turn.start_seconds, turn.speaker))


class Diarization:
    """Holds samples of at most 33 windows; blocks while too many windows are queued."""

    def __init__(self, networks: WindowQueue, started: Event | None = None) -> None:
        """Windows are queued once `started` is set, or when too many wait for it."""
        self._networks = networks
        self._started = started
        self._held: Samples = np.zeros(0, dtype=np.float32)
        self._waiting: list[tuple[Samples, tuple[int, int]]] = []
        self._queued: deque[Future[Window]] = deque()
        self._windows: list[Window] = []
        self._samples = 0
        self._closing = Lock()
        self._closed = False

    def feed(self, samples: Samples) -> None:
        """The next samples of the recording; raises what the networks raise."""
        self._samples += len(samples)
        self._held = np.concatenate((self._held, samples))
        # The last window is used to its end: it is submitted when the recording has ended.
        while len(self._held) > WINDOW_SAMPLES:
            self._submit(self._held[:WINDOW_SAMPLES], MARGIN_FRAMES + HOP_FRAMES)
            self._held = self._held[_HOP_SAMPLES:]

    def _submit(self, samples: Samples, after: int) -> None:
        cleaned = np.nan_to_num(samples, posinf=0.0, neginf=0.0)
        first = MARGIN_FRAMES if self._submitted else 0
        self._waiting.append((cleaned, (first, after)))
        started = self._started is None or self._started.is_set()
        if started or len(self._waiting) > _MAX_WINDOWS_AHEAD:
            self._queue()

    def _queue(self) -> None:
        waiting, self._waiting = self._waiting, []
        for samples, used in waiting:
            with self._closing:
                if self._closed:
                    raise CancelledError
                self._queued.append(self._networks.submit(samples, used))
            while len(self._queued) > _MAX_WINDOWS_AHEAD or (
                self._queued and self._queued[0].done()
            ):
                self._wait()

    def _wait(self) -> None:
        """For the first queued window, which `close` cancels while it is waited for."""
        self._windows.append(self._queued[0].result())
        self._queued.popleft()

    def finish(self, count: SpeakerCount, start_seconds: float = 0.0) -> Activity:
        """Cluster all windows; `start_seconds` is the time of the first sample."""
        if self._started is not None:
            self._started.wait()
        frames = -(-self._samples // FRAME_SAMPLES)
        if frames:
            padded = np.pad(self._held, (0, WINDOW_SAMPLES - len(self._held)))
            self._submit(padded, min(frames - self._submitted * HOP_FRAMES, WINDOW_FRAMES))
        while self._queued:
            self._wait()
        return activity(self._windows, count, frames, start_seconds)

    @property
    def _submitted(self) -> int:
        return len(self._windows) + len(self._queued) + len(self._waiting)

    def close(self) -> None:
        """Cancel windows that are queued, and queue no more; callable from any thread."""
        with self._closing:
            self._closed = True
            for window in self._queued.copy():
                window.cancel()


@dataclass(frozen=True, slots=True)
class _Located:
    """A piece on the recording's frames."""

    piece: Piece
    window: int

    @property
    def centre(self) -> float:
        return self.window * HOP_FRAMES + self.piece.centre

    @property
    def local(self) -> tuple[int, int]:
        return self.window, self.piece.local


def activity(
    windows: Sequence[Window], count: SpeakerCount, frames: int, start_seconds: float = 0.0
) -> Activity:
    """Pieces of all windows to speakers of the recording, numbered by their first frame."""
    coarse, means = _speakers(windows, count)
    similarities = _similarities(windows, means)
    short = _located([cut(window.active, SHORT, window.used) for window in windows])
    fine = _labels(short, _similar(short, coarse, similarities))
    active, confidence = _painted(windows, fine, coarse, (frames, len(means)))
    present = np.flatnonzero(active.any(axis=0))
    order = present[np.argsort(np.argmax(active[:, present], axis=0), kind="stable")]
    similarities = replace(
        similarities,
        values=similarities.values[:, order],
        first_seconds=start_seconds + similarities.first_seconds,
    )
    return Activity(active[:, order], confidence, means[order], similarities, start_seconds)


def _located(windows: Sequence[Sequence[Piece]]) -> list[_Located]:
    return [_Located(piece, row) for row, pieces in enumerate(windows) for piece in pieces]


def _seconds(pieces: Sequence[_Located]) -> npt.NDArray[np.float32]:
    return np.array([each.piece.seconds for each in pieces], dtype=np.float32)


@dataclass(frozen=True, slots=True, eq=False)
class _Labelled:
    """Pieces of one scale with the speaker of each and its probability."""

    pieces: Sequence[_Located]
    similar: npt.NDArray[np.float32]
    """(N, K): cosines."""
    chosen: npt.NDArray[np.int64]
    shares: npt.NDArray[np.float32]


def _speakers(
    windows: Sequence[Window], count: SpeakerCount
) -> tuple[_Labelled, npt.NDArray[np.float32]]:
    """A recording's long pieces with their speakers, and the (K, 192) means of these."""
    pieces = _located([window.pieces for window in windows])
    vectors = np.concatenate([_NO_VECTORS, *(window.embeddings for window in windows)])
    seconds = _seconds(pieces)
    pitch, pitch_pieces = _pitch(windows, pieces)
    evidence = Evidence(
        vectors,
        _smooth(pieces, vectors),
        (np.minimum(seconds, 1.5) / 1.5).astype(np.float32),
        _long(seconds, count),
        _stay(pieces, _LONG_STAY),
        pitch,
        pitch_pieces,
    )
    means = centroids(evidence.smooth[evidence.long], seconds[evidence.long], count)
    posteriors, means = merged(evidence, means, count)
    chosen = posteriors.argmax(axis=1) if pieces else np.zeros(0, dtype=np.int64)
    shares = _shares(evidence.smooth @ means.T, chosen)
    return _Labelled(pieces, vectors @ means.T, chosen, shares), means


_NO_VECTORS = np.zeros((0, EMBEDDING_SIZE), dtype=np.float32)


def _pitch(
    windows: Sequence[Window], pieces: Sequence[_Located]
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """Semitones of the voiced frames of all pieces, and the number of the piece of each."""
    of_pieces = [windows[each.window].pitch[pitch_span(each.piece)] for each in pieces]
    frames = np.concatenate([np.zeros(0, np.float16), *of_pieces]).astype(np.float32)
    numbers = np.repeat(np.arange(len(pieces)), [len(each) for each in of_pieces])
    voiced = ~np.isnan(frames)
    return frames[voiced], numbers[voiced]


def _similarities(windows: Sequence[Window], means: npt.NDArray[np.float32]) -> SpeakerSimilarities:
    """Of the steps of all windows to the speakers."""
    rows = len(windows) * STEPS + 2 * STEPS_BEFORE
    values = np.full((rows, len(means)), np.nan, dtype=np.float32)
    for row, window in enumerate(windows):
        values[row * STEPS + STEPS_BEFORE + window.steps] = window.step_embeddings @ means.T
    first = _centre_seconds(step_centre(-STEPS_BEFORE))
    return SpeakerSimilarities(values, first, STEP_FRAMES * FRAME_SECONDS)


def _centre_seconds(centre: float) -> float:
    """Of a span on the recording's frames."""
    return (centre - 0.5) * FRAME_SECONDS + _FIRST_CENTRE_SECONDS


def _similar(
    short: Sequence[_Located], long: _Labelled, steps: SpeakerSimilarities
) -> npt.NDArray[np.float32]:
    """(N, K) similarities of short pieces to the speakers."""
    by_local = _by_local(long.pieces)
    nearest = [
        min(by_local[each.local], key=lambda index: abs(long.pieces[index].centre - each.centre))
        for each in short
    ]
    around = long.similar[nearest]
    own = steps.at(np.array([_centre_seconds(each.centre) for each in short], dtype=np.float64))
    similar: npt.NDArray[np.float32] = np.where(
        np.isnan(own), around, _STEP_SHARE * own + (1.0 - _STEP_SHARE) * around
    ).astype(np.float32)
    return similar


def _labels(pieces: Sequence[_Located], similar: npt.NDArray[np.float32]) -> _Labelled:
    """Short pieces with their speakers."""
    if not pieces:
        nothing = np.zeros(0)
        return _Labelled(pieces, similar, nothing.astype(np.int64), nothing.astype(np.float32))
    weights = _seconds(pieces) / np.float32(_SHORT_WEIGHT_SECONDS)
    chosen = decoded(similar, weights, _stay(pieces, _SHORT_STAY)).argmax(axis=1)
    return _Labelled(pieces, similar, chosen, _shares(similar, chosen))


def _by_local(pieces: Sequence[_Located]) -> dict[tuple[int, int], list[int]]:
    """The pieces of each local speaker of each window."""
    result: dict[tuple[int, int], list[int]] = {}
    for index, each in enumerate(pieces):
        result.setdefault(each.local, []).append(index)
    return result


def _smooth(
    pieces: Sequence[_Located], vectors: npt.NDArray[np.float32]
) -> npt.NDArray[np.float32]:
    """Embeddings averaged over neighbours in a run."""
    smooth = vectors.copy()
    for index, (before, after) in enumerate(pairwise(pieces), start=1):
        if _same_run(before, after):
            smooth[index] += vectors[index - 1] / 2
            smooth[index - 1] += vectors[index] / 2
    return unit(smooth)


def _long(seconds: npt.NDArray[np.float32], count: SpeakerCount) -> npt.NDArray[np.bool_]:
    """Which pieces are long enough to define a speaker; all, if otherwise there are too few."""
    chosen = seconds >= _MIN_TRAINING_SECONDS
    return chosen if chosen.sum() >= max(count.min, 1) else seconds > 0


def _same_run(before: _Located, after: _Located) -> bool:
    return before.window == after.window and before.piece.run == after.piece.run


def _stay(pieces: Sequence[_Located], probability: _Stay) -> npt.NDArray[np.float32]:
    stay = np.zeros(len(pieces), dtype=np.float32)
    for index, (before, after) in enumerate(pairwise(pieces), start=1):
        if _same_run(before, after):
            stay[index] = probability.in_run
        elif before.window == after.window and before.piece.local != after.piece.local:
            stay[index] = probability.other
        else:
            stay[index] = probability.local
    return stay


def _shares(
    similar: npt.NDArray[np.float32], chosen: npt.NDArray[np.int64]
) -> npt.NDArray[np.float32]:
    """Probability of each piece's speaker, from its (N, K) similarities to all of them.

    The posterior of the hidden Markov model is 1 for a single speaker, and nearly so for others.
    """
    shares = np.take_along_axis(probabilities(similar), chosen[:, None], axis=1)[:, 0]
    return shares.astype(np.float32)


def _painted(
    windows: Sequence[Window], fine: _Labelled, coarse: _Labelled, shape: tuple[int, int]
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.float32]]:
    """Each active frame of a local speaker has the speaker of the local speaker's nearest piece.

    Of a long piece where several are active: no piece is of these frames, and a short one that is
    adjacent to them may be a breath.
    """
    active = np.zeros(shape, dtype=bool)
    confidence = np.zeros(len(active), dtype=np.float32)
    for labelled, alone in ((fine, True), (coarse, False)):
        by_local = _by_local(labelled.pieces)
        for (row, local), near in by_local.items():
            window = windows[row]
            used = slice(*window.used)
            frames = window.active[used, local] & ((window.active[used].sum(axis=1) == 1) == alone)
            spoken = window.used[0] + np.flatnonzero(frames)
            centres = np.array([labelled.pieces[index].piece.centre for index in near])
            nearest = np.array(near)[np.searchsorted((centres[1:] + centres[:-1]) / 2, spoken)]
            at = row * HOP_FRAMES + spoken
            active[at, labelled.chosen[nearest]] = True
            confidence[at] = labelled.shares[nearest]
    return active, confidence
