"""A recording to pieces that the engine can take, cut where nobody speaks."""

import sys
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from parakeet_worker.audio.decoding import SAMPLE_RATE
from parakeet_worker.engine.base import Samples
from parakeet_worker.vad.base import (
    FRAME_SAMPLES,
    SPEECH_ENDS,
    Detector,
    Probabilities,
    runs,
    stretches,
)
from parakeet_worker.vad.level import evened

# Cuts fall on whole encoder frames, so that frame numbers count on across pieces.
_GRID_SAMPLES = 1280
# A frame less probable than this is no speech, in whatever doubt one is elsewhere.
_SURELY_NONE = 0.1
# What is kept of the silence around speech: more makes the model miss first words.
_EDGE_SAMPLES = round(0.2 * SAMPLE_RATE)
# A pause that ends a piece, however short that is; shorter ones hold sentences together.
_LONG_PAUSE_FRAMES = round(2.0 * SAMPLE_RATE / FRAME_SAMPLES)
# A pause that a piece may be cut in, when it has to be cut.
_PAUSE_FRAMES = 7
_EARLIEST_CUT_SAMPLES = SAMPLE_RATE
# Where there is no pause, how far back the least speech-like moment is looked for.
_SEAM_SEARCH_SAMPLES = 8 * SAMPLE_RATE
_BRIDGE_SAMPLES = 62 * _GRID_SAMPLES

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Span:
    """From when to when, on the recording's clock."""

    start_seconds: float
    end_seconds: float

    @property
    def seconds(self) -> float:
        return self.end_seconds - self.start_seconds


@dataclass(frozen=True, slots=True, eq=False)
class Segment:
    """A piece of the recording."""

    start_seconds: float
    samples: Samples
    speech: tuple[Span, ...] = ()
    """Where someone speaks in it, if that is known."""
    bridge: "Segment | None" = None
    """The window over the seam, where it begins in the middle of speech."""
    seam_after: bool = False
    """Whether it ends in the middle of speech; the next segment has the bridge."""
    raised_decibels: float = 0.0
    """How much louder than in the recording it is."""
    channel: int | None = None
    """Which channel of the recording it is, from 1; none of all mixed."""

    @property
    def seconds(self) -> float:
        return len(self.samples) / SAMPLE_RATE

    @property
    def end_seconds(self) -> float:
        return self.start_seconds + self.seconds

    def part(self, span: Span) -> "Segment":
        """The samples of a span, as far as they lie in the segment."""
        first = max(0, round((span.start_seconds - self.start_seconds) * SAMPLE_RATE))
        after = max(first, round((span.end_seconds - self.start_seconds) * SAMPLE_RATE))
        start_seconds = self.start_seconds + first / SAMPLE_RATE
        return Segment(start_seconds, self.samples[first:after], channel=self.channel)


def split(
    recording: Iterable[Samples],
    listen: Callable[[], Detector],
    *,
    max_seconds: float,
    start_seconds: float = 0.0,
    whole: bool = False,
) -> Generator[Segment, None, None]:
    """Cut a recording as it arrives into segments of at most `max_seconds`.

    Stretches of it are (N,), or (N, channels) to be cut channel by channel. `listen` gives a
    detector for each. `start_seconds` is where the first sample lies on the clock. With `whole`,
    nothing is cut. It computes in the calling thread, for as long as a detector does.
    """
    channels: list[_Channel] = []
    for samples in recording:
        columns = [samples] if samples.ndim == 1 else list(samples.T)
        for column in columns[len(channels) :]:
            number = None if column is samples else len(channels) + 1
            detector = listen()
            splitter = Splitter(
                max_seconds,
                deletes=detector.is_sure,
                whole=whole,
                start_seconds=start_seconds,
            )
            channels.append(_Channel(number, detector, splitter))
        for channel, column in zip(channels, columns, strict=True):
            yield from channel.arrived(column)
    for channel in channels:
        yield from channel.ended()


@dataclass(frozen=True, slots=True, eq=False)
class _Channel:
    number: int | None
    detector: Detector
    splitter: "Splitter"

    def arrived(self, samples: Samples) -> Iterator[Segment]:
        contiguous = np.ascontiguousarray(samples)
        self.splitter.add(contiguous, self.detector.feed(contiguous))
        return map(self._numbered, self.splitter.cut())

    def ended(self) -> Iterator[Segment]:
        self.splitter.add(np.zeros(0, dtype=np.float32), self.detector.finish())
        return map(self._numbered, self.splitter.cut(ended=True))

    def _numbered(self, segment: Segment) -> Segment:
        if self.number is None:
            return segment
        bridge = segment.bridge and replace(segment.bridge, channel=self.number)
        return replace(segment, channel=self.number, bridge=bridge)


class Splitter:
    """Holds what has arrived of a recording, and cuts it.

    A pause of 2 s ends a segment. A segment that grows to its limit is cut in the middle of its
    last pause, or, if it has none, at the least speech-like moment of its last 8 s: a seam, over
    which the next segment brings a bridge. With `deletes`, silence is left out but for 0.2 s
    around speech; without, the segments tile the recording. With `whole`, nothing is cut or left
    out.
    """

    def __init__(
        self,
        max_seconds: float,
        *,
        deletes: bool,
        whole: bool = False,
        start_seconds: float = 0.0,
    ) -> None:
        limit = round(max_seconds * SAMPLE_RATE) // _GRID_SAMPLES * _GRID_SAMPLES
        self._limit = sys.maxsize if whole else limit
        self._knows_speech = deletes
        self._deletes = deletes and not whole
        self._start_seconds = start_seconds
        self._arrived: list[tuple[Samples, Probabilities]] = []
        self._held: Samples = np.zeros(0, dtype=np.float32)
        self._begin = 0  # where the first held sample lies in the recording
        self._probabilities: Probabilities = np.zeros(0, dtype=np.float32)
        self._first_frame = 0  # where the first of them lies
        self._before_seam: Samples | None = None

    def add(self, samples: Samples, probabilities: Probabilities) -> None:
        """More of the recording, and how probable speech is in the frames that follow."""
        self._arrived.append((samples, probabilities))

    def cut(self, *, ended: bool = False) -> Iterator[Segment]:
        """All segments that can be cut off by now; with `ended`, all that is left."""
        if self._limit == sys.maxsize and not ended:
            return  # what is one piece in the end is put together once
        self._join()
        while True:
            if self._deletes and self._before_seam is None:
                self._leave_silence()
            end, seam = self._next_cut(ended=ended)
            if end is None:
                self._held = _compact(self._held, at_least=0.5)
                return
            segment = self._segment(end, seam=seam)
            self._before_seam = segment.samples[-_BRIDGE_SAMPLES:] if segment and seam else None
            self._drop(end)
            if segment is not None:
                yield segment

    def _join(self) -> None:
        """What was held and what has arrived since, as one."""
        if self._arrived:
            samples, probabilities = zip(*self._arrived, strict=True)
            self._held = np.concatenate((self._held, *samples))
            self._probabilities = np.concatenate((self._probabilities, *probabilities))
            self._arrived.clear()

    def _leave_silence(self) -> None:
        """Begin shortly before the first frame that may be speech."""
        silent = self._frames() < _SURELY_NONE
        lead = len(silent) if silent.all() else int(np.argmin(silent))
        first = (self._frame_offset() + lead * FRAME_SAMPLES) - _EDGE_SAMPLES
        self._drop(max(0, min(first, len(self._held)) // _GRID_SAMPLES * _GRID_SAMPLES))

    def _next_cut(self, *, ended: bool) -> tuple[int | None, bool]:
        """Samples up to the next cut, and whether it is a seam; none while more has to come."""
        known = len(self._held) if ended else self._known()
        frames = self._frames()
        end = self._long_pause(frames) if self._deletes else None
        if end is not None:
            return end, False
        # What follows the limit tells how long a pause is that begins before it.
        if known > self._limit + (0 if ended else _LONG_PAUSE_FRAMES * FRAME_SAMPLES):
            return self._forced_cut(frames)
        return (len(self._held) or None if ended else None), False

    def _long_pause(self, frames: Probabilities) -> int | None:
        """Shortly after the beginning of a long pause, if that is within the limit.

        A segment that begins with one is the bridge's, and as short as can be.
        """
        for first, _ in _runs(frames < _SURELY_NONE, _LONG_PAUSE_FRAMES):
            end = self._frame_offset() + first * FRAME_SAMPLES + _EDGE_SAMPLES
            if end <= self._limit and (first or self._before_seam is not None):
                return -(-end // _GRID_SAMPLES) * _GRID_SAMPLES
        return None

    def _forced_cut(self, frames: Probabilities) -> tuple[int, bool]:
        offset = self._frame_offset()
        within = (self._limit - offset) // FRAME_SAMPLES
        pauses = _runs(frames[: within + _LONG_PAUSE_FRAMES] < SPEECH_ENDS, _PAUSE_FRAMES)
        middles = [
            offset + (first + after) * FRAME_SAMPLES // 2
            for first, after in pauses
            if first + _PAUSE_FRAMES <= within
        ]
        late = [middle for middle in middles if middle >= _EARLIEST_CUT_SAMPLES]
        if late:
            return min(_on_grid(late[-1]), self._limit), False
        return self._seam(frames[:within]), True

    def _seam(self, within: Probabilities) -> int:
        """The least speech-like moment of the last seconds (or half) before the limit."""
        searched = min(_SEAM_SEARCH_SAMPLES, self._limit // 2) // FRAME_SAMPLES
        tail = np.convolve(within[-searched:], np.ones(3) / 3, mode="valid")
        first = len(within) - min(searched, len(within))
        middle = first + 1 + int(np.argmin(tail))
        at = self._frame_offset() + middle * FRAME_SAMPLES + FRAME_SAMPLES // 2
        return _on_grid(at)

    def _segment(self, end: int, *, seam: bool) -> Segment | None:
        frames = self._frames()[: -(-(end - self._frame_offset()) // FRAME_SAMPLES)]
        silent = bool((frames < _SURELY_NONE).all())
        if self._deletes and silent and not seam and self._before_seam is None:
            return None
        start_seconds = self._start_seconds + self._begin / SAMPLE_RATE
        own, decibels, found = self._held[:end], 0.0, list[tuple[int, int]]()
        if self._knows_speech:
            found = stretches(frames)
            own, decibels = evened(own, _mask(found, len(frames)))
        samples = _compact(own)
        return Segment(
            start_seconds,
            samples,
            speech=self._spans(found, end),
            bridge=self._bridge(samples),
            seam_after=seam,
            raised_decibels=decibels,
        )

    def _spans(self, found: Iterable[tuple[int, int]], end: int) -> tuple[Span, ...]:
        clock, offset = self._start_seconds + self._begin / SAMPLE_RATE, self._frame_offset()
        bounds = (
            [max(0, min(offset + frame * FRAME_SAMPLES, end)) for frame in stretch]
            for stretch in found
        )
        return tuple(
            Span(clock + first / SAMPLE_RATE, clock + after / SAMPLE_RATE)
            for first, after in bounds
        )

    def _bridge(self, samples: Samples) -> Segment | None:
        """The window over the seam before these samples."""
        if self._before_seam is None:
            return None
        begin = self._begin - len(self._before_seam)
        window = np.concatenate((self._before_seam, samples[:_BRIDGE_SAMPLES]))
        return Segment(self._start_seconds + begin / SAMPLE_RATE, window)

    def _frames(self) -> Probabilities:
        """The probabilities from the frame that holds the first held sample on."""
        return self._probabilities[self._begin // FRAME_SAMPLES - self._first_frame :]

    def _frame_offset(self) -> int:
        """Where the first of `_frames` begins, counted from the first held sample."""
        return self._begin // FRAME_SAMPLES * FRAME_SAMPLES - self._begin

    def _known(self) -> int:
        """Held samples that the detector has heard."""
        heard = (self._first_frame + len(self._probabilities)) * FRAME_SAMPLES
        return min(heard - self._begin, len(self._held))

    def _drop(self, count: int) -> None:
        self._held = self._held[count:]
        self._begin += count
        passed = self._begin // FRAME_SAMPLES - self._first_frame
        self._probabilities = self._probabilities[passed:]
        self._first_frame += passed


def _mask(found: Iterable[tuple[int, int]], frames: int) -> Mask:
    """Whether someone speaks in each frame."""
    speaks = np.zeros(frames, dtype=bool)
    for first, after in found:
        speaks[first:after] = True
    return speaks


def _compact(samples: Samples, at_least: float = 1.0) -> Samples:
    """A copy where less than that share of the array would be used that they are a view of."""
    whole = samples.base
    if isinstance(whole, np.ndarray) and samples.size < at_least * whole.size:
        return samples.copy()
    return samples


def _on_grid(samples: int) -> int:
    return (samples + _GRID_SAMPLES // 2) // _GRID_SAMPLES * _GRID_SAMPLES


def _runs(mask: Mask, shortest: int) -> list[tuple[int, int]]:
    """Runs of at least `shortest` true values, as (first, after the last)."""
    found = runs(mask)
    return [(int(first), int(after)) for first, after in found if after - first >= shortest]
