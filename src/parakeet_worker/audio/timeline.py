"""Decoded samples on the recording's own clock: what is missing between them becomes silence."""

import math
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from parakeet_worker.audio.ffmpeg_log import JUMP_SECONDS, Event, Mark
from parakeet_worker.audio.holes import Hole
from parakeet_worker.engine.base import SAMPLE_RATE, Samples
from parakeet_worker.notices import Notice

# Timestamps jitter by less; lost packets add up until they exceed it.
_SHORTEST_GAP_SECONDS = 0.05
# A clock that falls behind by more was set anew, as in concatenated streams.
_RESET_SECONDS = 1.0
# A longer gap has to fit into the duration that the container declares.
_LONG_GAP_SECONDS = 600.0
_DECLARED_SLACK_SECONDS = 1.0
# ffmpeg 5 evaluates its filters again at the end, with an arbitrary timestamp.
_LAST_SAMPLES = SAMPLE_RATE // 50
# A mark that follows another within that time confirms it: a single wrong timestamp is no gap.
_CONFIRMED_WITHIN_SAMPLES = SAMPLE_RATE
# Positions are rounded to samples, timestamps to microseconds.
_UNCHANGED_SECONDS = 1e-4
_SILENCE_SAMPLES = 1 << 19
# A decode error lies between two marks.
_DECODE_ERROR_SECONDS = 1.0
_MERGED_WITHIN_SECONDS = 2.0
_MOST_SPANS = 2000


@dataclass(frozen=True, slots=True)
class Place:
    """State of the clock at one decoded sample."""

    at: int
    """Index of the sample at 16 kHz, gaps not counted."""
    offset_seconds: float
    """Container time minus sample time."""
    jumps: bool = False
    """Whether the offset changed since the previous mark."""
    error: str | None = None


class Clock:
    """Marks of one ffmpeg to places among the samples of the whole recording."""

    def __init__(self, first_sample: int = 0) -> None:
        """`first_sample` is where in the recording this ffmpeg begins, at 16 kHz."""
        self._base = first_sample
        self._last = Place(first_sample, 0.0)
        self._origin: float | None = None
        self._raw_seconds = 0.0
        self._last_seconds = 0.0
        self._reported_seconds = math.inf
        self._started = False
        self.restarted = False
        """Whether the filters were set up anew, for another rate or number of channels."""

    def places(self, events: Iterable[Event], start_seconds: float | None) -> Iterator[Place]:
        """Clock changes and decode errors.

        `start_seconds` is the container's first timestamp, if it is known.
        """
        for event in events:
            if not isinstance(event, Mark):
                yield Place(self._last.at, self._last.offset_seconds, error=event.text)
            elif math.isfinite(event.seconds):
                place, before = self._placed(event, start_seconds), self._last
                self._last = place
                moved_seconds = abs(place.offset_seconds - self._reported_seconds)
                # The mark after a jump confirms it.
                if place.jumps or before.jumps or moved_seconds > _UNCHANGED_SECONDS:
                    self._reported_seconds = place.offset_seconds
                    yield place

    def _placed(self, mark: Mark, start_seconds: float | None) -> Place:
        if self._origin is None:
            self._origin = mark.seconds if start_seconds is None else start_seconds
        elif mark.samples == 0 and self._started:
            self._restart(mark)
        self._started, self._last_seconds = True, mark.seconds
        # The first jump of each ffmpeg is from zero, as in the filter's own reckoning.
        raw_seconds = mark.seconds - mark.samples / mark.rate
        jumps = abs(raw_seconds - self._raw_seconds) > JUMP_SECONDS
        self._raw_seconds = raw_seconds
        at = self._base + round(mark.samples * SAMPLE_RATE / mark.rate)
        return Place(at, mark.seconds - self._origin - at / SAMPLE_RATE, jumps)

    def _restart(self, mark: Mark) -> None:
        """The filters were set up anew; they passed on all samples before.

        The place is that of the mark before, and the time since; versions before 7 may give a time
        of another unit.
        """
        self.restarted = True
        passed = min(max(mark.seconds - self._last_seconds, 0.0), 1.0)
        self._base = self._last.at + round(passed * SAMPLE_RATE)
        self._origin = mark.seconds - self._base / SAMPLE_RATE - self._last.offset_seconds
        self._raw_seconds = 0.0


@dataclass(frozen=True, slots=True)
class _Span:
    """Gaps or damages that lie close together."""

    start_seconds: float
    end_seconds: float
    seconds: float
    count: int = 1


class Timeline:
    """Samples as they are decoded, to samples as a player would play them."""

    def __init__(
        self,
        longest_seconds: float,
        declared_seconds: float | None,
        holes: Iterable[Hole] = (),
    ) -> None:
        """Gaps beyond `longest_seconds`, or far beyond the declared duration, are ignored.

        `holes` are gaps that have no mark.
        """
        self.holes = deque(holes)
        """Those that lie ahead."""
        self._longest_seconds = longest_seconds
        self._declared_seconds = declared_seconds
        self._places: deque[Place] = deque()
        self._held: Samples | None = None
        self._position = 0
        self._inserted = 0
        self._reference_seconds = 0.0
        self._gaps: list[_Span] = []
        self._damages: list[_Span] = []
        self._resets: list[Notice] = []

    def begin(self, at: int, late_seconds: float = 0.0) -> None:
        """Continue with the samples from this one on, of audio that begins so late."""
        self._position = at
        self._places.clear()
        self._inserted, self._reference_seconds = 0, 0.0
        if late_seconds > _SHORTEST_GAP_SECONDS:
            self._inserted = round(late_seconds * SAMPLE_RATE)
            self._reference_seconds = late_seconds

    def add(self, places: Iterable[Place]) -> None:
        """Add clock changes and decode errors; clock changes before the position are ignored."""
        for place in places:
            if place.at >= self._position:
                self._places.append(place)
            elif place.error is not None:
                self._note(self._damages, self._seconds(place.at), _DECODE_ERROR_SECONDS)

    def arranged(self, samples: Samples) -> Iterator[Samples]:
        """The samples that follow, with silence before them where that belongs.

        Those behind a jump of the clock are held back until the next mark confirms it.
        """
        if self._held is not None:
            samples, self._held = np.concatenate((self._held, samples)), None
        yield from self._passed(samples, ended=False)

    def rest(self) -> Iterator[Samples]:
        """What is held back at the end."""
        if self._held is not None:
            samples, self._held = self._held, None
            yield from self._passed(samples, ended=True)

    def _passed(self, samples: Samples, *, ended: bool) -> Iterator[Samples]:
        end = self._position + len(samples)
        last = end - _LAST_SAMPLES if ended else end
        while self._places and self._places[0].at < last:
            place = self._places[0]
            if place.jumps and self._following(place) is None and not ended:
                before = place.at - self._position
                yield from self._advanced(samples[:before])
                self._held = samples[before:]
                return
            self._places.popleft()
            gap_seconds = self._gap_seconds(place)
            if gap_seconds:
                before = place.at - self._position
                yield from self._advanced(samples[:before])
                samples = samples[before:]
                # What comes before the first sample is not missing: the picture begins earlier.
                yield from self._filled(gap_seconds, samples, missing=place.at > 0)
        yield from self._advanced(samples)

    def _advanced(self, samples: Samples) -> Iterator[Samples]:
        while self.holes:
            hole = self.holes[0]
            before = max(0, round(hole.at_seconds * SAMPLE_RATE) - self._position)
            if before >= len(samples):
                break
            self.holes.popleft()
            yield from self._counted(samples[:before])
            samples = samples[before:]
            yield from self._filled(hole.seconds, samples, missing=True)
        yield from self._counted(samples)

    def _counted(self, samples: Samples) -> Iterator[Samples]:
        self._position += len(samples)
        if len(samples):
            yield samples

    def _filled(self, gap_seconds: float, like: Samples, *, missing: bool) -> Iterator[Samples]:
        """Silence of that length, unless it is implausible."""
        begin_seconds = self._seconds(self._position)
        if not self._fits(begin_seconds, gap_seconds):
            self._resets.append(_reset(begin_seconds, gap_seconds))
            return
        if missing:
            self._note(self._gaps, begin_seconds, gap_seconds)
        yield from self._silence(gap_seconds, like)

    def _following(self, place: Place) -> Place | None:
        later = (each for each in self._places if each is not place and each.error is None)
        return next(later, None)

    def _gap_seconds(self, place: Place) -> float:
        """How much is missing before this place."""
        if place.error is not None:
            self._note(self._damages, self._seconds(place.at), _DECODE_ERROR_SECONDS)
            return 0.0
        offset_seconds, following = place.offset_seconds, self._following(place)
        near = following is not None and following.at - place.at <= _CONFIRMED_WITHIN_SAMPLES
        if following is not None and place.jumps and near:
            offset_seconds = min(offset_seconds, following.offset_seconds)
        late_seconds = offset_seconds - self._reference_seconds
        if late_seconds < -_RESET_SECONDS:
            self._reference_seconds = offset_seconds
            return 0.0
        if late_seconds <= _SHORTEST_GAP_SECONDS:
            return 0.0
        self._reference_seconds = offset_seconds
        return late_seconds

    def _fits(self, begin_seconds: float, gap_seconds: float) -> bool:
        end_seconds = begin_seconds + gap_seconds
        if end_seconds > self._longest_seconds:
            return False
        if gap_seconds <= _LONG_GAP_SECONDS or self._declared_seconds is None:
            return True
        return end_seconds <= self._declared_seconds + _DECLARED_SLACK_SECONDS

    def _seconds(self, at: int) -> float:
        return (at + self._inserted) / SAMPLE_RATE

    def _silence(self, seconds: float, like: Samples) -> Iterator[Samples]:
        left = round(seconds * SAMPLE_RATE)
        self._inserted += left
        while left:
            count = min(left, _SILENCE_SAMPLES)
            yield np.zeros((count, *like.shape[1:]), dtype=np.float32)
            left -= count

    @staticmethod
    def _note(spans: list[_Span], start_seconds: float, seconds: float) -> None:
        """Add a span, or extend the one before it."""
        end_seconds, last = start_seconds + seconds, spans[-1] if spans else None
        near = last is not None and start_seconds - last.end_seconds < _MERGED_WITHIN_SECONDS
        if last is not None and (near or len(spans) >= _MOST_SPANS):
            end_seconds = max(last.end_seconds, end_seconds)
            seconds, count = last.seconds + seconds, last.count + 1
            spans[-1] = _Span(last.start_seconds, end_seconds, seconds, count)
        else:
            spans.append(_Span(start_seconds, end_seconds, seconds))

    def damaged(self, seconds: Iterable[float]) -> None:
        """More places where something was damaged, on the recording's clock."""
        for at in seconds:
            self._note(self._damages, at, _DECODE_ERROR_SECONDS)

    def notices(self) -> list[Notice]:
        """What was missing, in order; of damage, what did not leave a gap."""
        gaps = [
            Notice("audio_gap", _gap_message(gap), gap.start_seconds, gap.end_seconds, damage=True)
            for gap in self._gaps
        ]
        damages = [
            Notice(
                "audio_damaged",
                f"something could not be decoded at {span.start_seconds:.1f} s",
                span.start_seconds,
                min(span.end_seconds, self._seconds(self._position)),
                damage=True,
            )
            for span in self._damages
            if not any(_touch(span, gap) for gap in self._gaps)
        ]
        notices = [*gaps, *damages, *self._resets]
        return sorted(notices, key=lambda notice: notice.start_seconds or 0.0)

    @property
    def inserted(self) -> int:
        """Samples of silence so far, those before the first sample included."""
        return self._inserted

    @property
    def gap_seconds(self) -> float:
        """Seconds of inserted silence for missing audio."""
        return sum((gap.seconds for gap in self._gaps), 0.0)


def _gap_message(gap: _Span) -> str:
    places = f"in {gap.count} places from {gap.start_seconds:.2f} s" * (gap.count > 1)
    place = places or f"at {gap.start_seconds:.2f} s"
    return f"{gap.seconds:.2f} s of audio are missing {place}; replaced by silence"


def _reset(at_seconds: float, by_seconds: float) -> Notice:
    return Notice(
        "clock_reset",
        f"the timestamps jump by {by_seconds:.0f} s at {at_seconds:.2f} s, which was not followed",
        at_seconds,
        at_seconds,
    )


def _touch(span: _Span, other: _Span) -> bool:
    return (
        span.start_seconds <= other.end_seconds + _DECODE_ERROR_SECONDS
        and other.start_seconds <= span.end_seconds + _DECODE_ERROR_SECONDS
    )
