"""Cuts a recording into chunks for the engine, in pauses where possible."""

import sys
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from parakeet_worker import threads
from parakeet_worker.audio.decoding import SAMPLE_RATE
from parakeet_worker.engine.base import Samples
from parakeet_worker.vad.base import (
    FRAME_SAMPLES,
    SPEECH_ENDS,
    Detector,
    Probabilities,
    runs,
    speech_spans,
)
from parakeet_worker.vad.gain import even_levels

# Cuts lie on encoder frames, so that frame numbers continue across chunks.
_GRID_SAMPLES = 1280
# Frames below this probability are silence; between it and SPEECH_ENDS, either is possible.
_SILENCE_BELOW = 0.1
# Silence kept around speech; with more, the model misses first words.
_EDGE_SAMPLES = round(0.2 * SAMPLE_RATE)
# A pause that ends a chunk of any length; shorter pauses occur within sentences.
_LONG_PAUSE_FRAMES = round(2.0 * SAMPLE_RATE / FRAME_SAMPLES)
# The shortest pause for a cut at the limit.
_PAUSE_FRAMES = 7
_EARLIEST_CUT_SAMPLES = SAMPLE_RATE
# Without a pause, the window before the limit that is searched for the least speech-like frame.
_CUT_SEARCH_SAMPLES = 8 * SAMPLE_RATE
_OVERLAP_SAMPLES = 62 * _GRID_SAMPLES

# Of times in frames, above the error of floating-point arithmetic.
_ROUNDING = 1e-6

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Span:
    """An interval on the recording's clock."""

    start_seconds: float
    end_seconds: float

    @property
    def seconds(self) -> float:
        return self.end_seconds - self.start_seconds


@dataclass(frozen=True, slots=True, eq=False)
class SpeechFrames:
    """The detector's speech probabilities, one per frame of 32 ms."""

    origin_seconds: float
    """Start of frame 0."""
    first: int
    """Number of the first frame in `probabilities`."""
    probabilities: Probabilities

    def followed_by(self, frames: "SpeechFrames") -> "SpeechFrames":
        """Both; a frame that both contain is that of `frames`."""
        before = self.probabilities[: frames.first - self.first]
        return replace(self, probabilities=np.concatenate((before, frames.probabilities)))

    def means(self, spans: Sequence[Span]) -> list[float]:
        """The mean probability of the frames that each span touches."""
        sums = np.concatenate(([0.0], np.cumsum(self.probabilities, dtype=np.float64)))
        rate = SAMPLE_RATE / FRAME_SAMPLES
        starts = np.array([span.start_seconds for span in spans]) - self.origin_seconds
        ends = np.array([span.end_seconds for span in spans]) - self.origin_seconds
        last = len(self.probabilities) - 1
        first = np.clip(np.floor(starts * rate + _ROUNDING).astype(int) - self.first, 0, last)
        after = np.clip(
            np.ceil(ends * rate - _ROUNDING).astype(int) - self.first, first + 1, last + 1
        )
        means: list[float] = ((sums[after] - sums[first]) / (after - first)).tolist()
        return means


@dataclass(frozen=True, slots=True, eq=False)
class Chunk:
    """A part of the recording, mono at 16 kHz."""

    start_seconds: float
    samples: Samples
    speech: tuple[Span, ...] = ()
    """Detected speech; empty without a detector."""
    overlap: "Chunk | None" = None
    """The window around the cut at the start, if that lies in speech."""
    cut_in_speech: bool = False
    """Whether the cut at the end lies in speech; the next chunk has the overlap."""
    raised_decibels: float = 0.0
    """Gain relative to the recording."""
    channel: int | None = None
    """Number of the channel, from 1; None for a mix."""
    frames: SpeechFrames | None = None
    """Speech probabilities of these samples and possibly of others; None without a detector."""

    @property
    def seconds(self) -> float:
        return len(self.samples) / SAMPLE_RATE

    @property
    def end_seconds(self) -> float:
        return self.start_seconds + self.seconds

    def after(self, seconds: float) -> "Chunk":
        """The same samples with the speech from this time on."""
        if not self.speech or seconds <= self.speech[0].start_seconds:
            return self
        speech = (
            Span(max(span.start_seconds, seconds), span.end_seconds)
            for span in self.speech
            if span.end_seconds > seconds
        )
        return replace(self, speech=tuple(speech))

    def part(self, span: Span) -> "Chunk":
        """The samples of a span, limited to the chunk."""
        first = max(0, round((span.start_seconds - self.start_seconds) * SAMPLE_RATE))
        after = max(first, round((span.end_seconds - self.start_seconds) * SAMPLE_RATE))
        start_seconds = self.start_seconds + first / SAMPLE_RATE
        samples = self.samples[first:after]
        return Chunk(start_seconds, samples, channel=self.channel, frames=self.frames)


def split(
    recording: Iterable[Samples],
    new_detector: Callable[[], Detector],
    *,
    max_seconds: float,
    start_seconds: float = 0.0,
    whole: bool = False,
) -> Generator[Chunk, None, None]:
    """Cut a recording, while it is decoded, into chunks of at most `max_seconds`.

    Blocks of `recording` have shape (N,), or (N, channels), which cuts each channel separately
    with its own detector. `start_seconds` is the time of the first sample. With `whole`, nothing
    is cut. Runs in the calling thread, including the detector.
    """
    channels: list[_Channel] = []
    for samples in recording:
        columns = [samples] if samples.ndim == 1 else list(samples.T)
        for column in columns[len(channels) :]:
            number = None if column is samples else len(channels) + 1
            detector = new_detector()
            splitter = Splitter(
                max_seconds,
                drops_silence=detector.trusts_silence,
                whole=whole,
                start_seconds=start_seconds,
            )
            channels.append(_Channel(number, detector, splitter))
        for channel, column in zip(channels, columns, strict=True):
            yield from channel.feed(column)
    for channel in channels:
        yield from channel.finish()


@dataclass(frozen=True, slots=True, eq=False)
class _Channel:
    number: int | None
    detector: Detector
    splitter: "Splitter"

    def feed(self, samples: Samples) -> list[Chunk]:
        contiguous = np.ascontiguousarray(samples)
        with self._computing():
            self.splitter.add(contiguous, self.detector.feed(contiguous))
            return [*map(self._numbered, self.splitter.cut())]

    def finish(self) -> list[Chunk]:
        with self._computing():
            self.splitter.add(np.zeros(0, dtype=np.float32), self.detector.finish())
            return [*map(self._numbered, self.splitter.cut(ended=True))]

    def _computing(self) -> AbstractContextManager[None]:
        return threads.COMPUTING.held(early=self.splitter.has_cut_nothing)

    def _numbered(self, chunk: Chunk) -> Chunk:
        if self.number is None:
            return chunk
        overlap = chunk.overlap and replace(chunk.overlap, channel=self.number)
        return replace(chunk, channel=self.number, overlap=overlap)


class _Held:
    """Samples in the blocks in which they arrived, joined when they are cut."""

    def __init__(self) -> None:
        self._blocks: deque[Samples] = deque()
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def append(self, samples: Samples) -> None:
        if len(samples):
            self._blocks.append(samples)
            self._count += len(samples)

    def first(self, count: int) -> Samples:
        """A copy of the first `count` samples."""
        parts, missing = [], count
        for block in self._blocks:
            if not missing:
                break
            parts.append(block[:missing])
            missing -= len(parts[-1])
        return np.concatenate(parts)

    def drop(self, count: int) -> None:
        """Drop the first `count` samples."""
        self._count -= count
        while count:
            block = self._blocks.popleft()
            if len(block) > count:
                self._blocks.appendleft(block[count:])
            count -= min(count, len(block))


class Splitter:
    """Buffers samples of a recording and cuts them.

    A pause of 2 s ends a chunk. A chunk at its limit is cut in the middle of its last pause; if
    it has none, in speech, at the least speech-like frame of its last 8 s, and the next chunk has
    an overlap around the cut. With `drops_silence`, silence is dropped except for 0.2 s around
    speech; without, the chunks tile the recording. With `whole`, nothing is cut or dropped.
    """

    def __init__(
        self,
        max_seconds: float,
        *,
        drops_silence: bool,
        whole: bool = False,
        start_seconds: float = 0.0,
    ) -> None:
        limit = round(max_seconds * SAMPLE_RATE) // _GRID_SAMPLES * _GRID_SAMPLES
        self._limit = sys.maxsize if whole else limit
        self._has_spans = drops_silence
        self._drops_silence = drops_silence and not whole
        self._start_seconds = start_seconds
        self._held = _Held()
        self._begin = 0  # index of the first held sample in the recording
        self._probabilities: Probabilities = np.zeros(0, dtype=np.float32)
        self._first_frame = 0  # index of its first frame
        self._before_cut: Samples | None = None
        self._frames_before_cut: SpeechFrames | None = None

    @property
    def has_cut_nothing(self) -> bool:
        """Whether none of the recording has been cut or dropped yet."""
        return self._begin == 0

    def add(self, samples: Samples, probabilities: Probabilities) -> None:
        """Append samples, and the speech probabilities of the next frames."""
        self._held.append(samples)
        self._probabilities = np.concatenate((self._probabilities, probabilities))

    def cut(self, *, ended: bool = False) -> Iterator[Chunk]:
        """All chunks that are complete; with `ended`, the remaining samples too."""
        while True:
            if self._drops_silence and self._before_cut is None:
                self._drop_leading_silence()
            end, in_speech = self._next_cut(ended=ended)
            if end is None:
                return
            chunk = self._chunk(end, in_speech=in_speech)
            self._before_cut = chunk.samples[-_OVERLAP_SAMPLES:] if chunk and in_speech else None
            self._frames_before_cut = chunk.frames if chunk and in_speech else None
            self._drop(end)
            if chunk is not None:
                yield chunk

    def _drop_leading_silence(self) -> None:
        """Drop samples up to 0.2 s before the first frame that may be speech."""
        silent = self._frames() < _SILENCE_BELOW
        lead = len(silent) if silent.all() else int(np.argmin(silent))
        first = (self._frame_offset() + lead * FRAME_SAMPLES) - _EDGE_SAMPLES
        self._drop(max(0, min(first, len(self._held)) // _GRID_SAMPLES * _GRID_SAMPLES))

    def _next_cut(self, *, ended: bool) -> tuple[int | None, bool]:
        """Samples up to the next cut, and whether it lies in speech; None if more are required."""
        known = len(self._held) if ended else self._known()
        frames = self._frames()
        end = self._long_pause(frames) if self._drops_silence else None
        if end is not None:
            return end, False
        # The length of a pause at the limit depends on the frames after it.
        if known > self._limit + (0 if ended else _LONG_PAUSE_FRAMES * FRAME_SAMPLES):
            return self._forced_cut(frames)
        return (len(self._held) or None if ended else None), False

    def _long_pause(self, frames: Probabilities) -> int | None:
        """The cut 0.2 s into a long pause, if it is within the limit.

        A chunk that starts with a pause exists for its overlap only, and is as short as possible.
        """
        for first, _ in _runs(frames < _SILENCE_BELOW, _LONG_PAUSE_FRAMES):
            end = self._frame_offset() + first * FRAME_SAMPLES + _EDGE_SAMPLES
            if end <= self._limit and (first or self._before_cut is not None):
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
        return self._cut_in_speech(frames[:within]), True

    def _cut_in_speech(self, within: Probabilities) -> int:
        """The least speech-like frame of the last 8 s (at most half) before the limit."""
        searched = min(_CUT_SEARCH_SAMPLES, self._limit // 2) // FRAME_SAMPLES
        tail = np.convolve(within[-searched:], np.ones(3) / 3, mode="valid")
        first = len(within) - min(searched, len(within))
        middle = first + 1 + int(np.argmin(tail))
        at = self._frame_offset() + middle * FRAME_SAMPLES + FRAME_SAMPLES // 2
        return _on_grid(at)

    def _chunk(self, end: int, *, in_speech: bool) -> Chunk | None:
        frames = self._frames()[: -(-(end - self._frame_offset()) // FRAME_SAMPLES)]
        silent = bool((frames < _SILENCE_BELOW).all())
        if self._drops_silence and silent and not in_speech and self._before_cut is None:
            return None
        start_seconds = self._start_seconds + self._begin / SAMPLE_RATE
        samples, decibels, spans = self._held.first(end), 0.0, list[tuple[int, int]]()
        if self._has_spans:
            spans = speech_spans(frames)
            samples, decibels = even_levels(samples, _mask(spans, len(frames)))
        speech_frames = self._speech_frames(frames)
        return Chunk(
            start_seconds,
            samples,
            speech=self._spans(spans, end),
            overlap=self._overlap(samples, speech_frames),
            cut_in_speech=in_speech,
            raised_decibels=decibels,
            frames=speech_frames,
        )

    def _speech_frames(self, frames: Probabilities) -> SpeechFrames | None:
        if not self._has_spans or not len(frames):
            return None
        return SpeechFrames(self._start_seconds, self._begin // FRAME_SAMPLES, frames)

    def _spans(self, frames: Iterable[tuple[int, int]], end: int) -> tuple[Span, ...]:
        clock, offset = self._start_seconds + self._begin / SAMPLE_RATE, self._frame_offset()
        bounds = (
            [max(0, min(offset + frame * FRAME_SAMPLES, end)) for frame in span] for span in frames
        )
        return tuple(
            Span(clock + first / SAMPLE_RATE, clock + after / SAMPLE_RATE)
            for first, after in bounds
        )

    def _overlap(self, samples: Samples, frames: SpeechFrames | None) -> Chunk | None:
        """The window around the cut before these samples."""
        if self._before_cut is None:
            return None
        begin = self._begin - len(self._before_cut)
        window = np.concatenate((self._before_cut, samples[:_OVERLAP_SAMPLES]))
        if frames is not None and self._frames_before_cut is not None:
            frames = self._frames_before_cut.followed_by(frames)
        return Chunk(self._start_seconds + begin / SAMPLE_RATE, window, frames=frames)

    def _frames(self) -> Probabilities:
        """The probabilities from the frame of the first held sample on."""
        return self._probabilities[self._begin // FRAME_SAMPLES - self._first_frame :]

    def _frame_offset(self) -> int:
        """Start of the first of `_frames`, relative to the first held sample."""
        return self._begin // FRAME_SAMPLES * FRAME_SAMPLES - self._begin

    def _known(self) -> int:
        """Number of held samples with a probability."""
        detected = (self._first_frame + len(self._probabilities)) * FRAME_SAMPLES
        return min(detected - self._begin, len(self._held))

    def _drop(self, count: int) -> None:
        self._held.drop(count)
        self._begin += count
        passed = self._begin // FRAME_SAMPLES - self._first_frame
        self._probabilities = self._probabilities[passed:]
        self._first_frame += passed


def _mask(spans: Iterable[tuple[int, int]], frames: int) -> Mask:
    """Whether each frame is speech."""
    speaks = np.zeros(frames, dtype=bool)
    for first, after in spans:
        speaks[first:after] = True
    return speaks


def _on_grid(samples: int) -> int:
    return (samples + _GRID_SAMPLES // 2) // _GRID_SAMPLES * _GRID_SAMPLES


def _runs(mask: Mask, shortest: int) -> list[tuple[int, int]]:
    """Runs of at least `shortest` true values, as (first, after the last)."""
    return [(int(first), int(after)) for first, after in runs(mask) if after - first >= shortest]
