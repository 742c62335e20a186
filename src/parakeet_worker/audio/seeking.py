"""Where to begin decoding in the middle of a recording, exact to the sample."""

import math
import statistics
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from parakeet_worker.audio.ffmpeg_log import Mark

# Matroska rounds timestamps to milliseconds: two of them may differ by one more.
_MAX_ERROR_SECONDS = 0.0011
_MAX_ERROR_OF_GRID = 0.25
_MOSTLY = 0.75
_MOST_SHIFT_SECONDS = 1.0
# Blocks of Vorbis have two lengths, powers of two from 64 on, and overlap by halves: frames of the
# usual lengths (256 and 2,048 samples, or longer) differ by multiples of this.
_VORBIS_GRID = 64


@dataclass(frozen=True, slots=True)
class SeekPoint:
    """Where in a file an ffmpeg begins, and which of its samples is the first."""

    seconds: int = 0
    """How many seconds of audio come before the first sample."""
    file_seconds: float | None = None
    """The time in the file that ffmpeg seeks; None decodes from the start."""
    first_seconds: float | None = None
    """The container's timestamp of the first sample; None relies on ffmpeg for it."""
    late_seconds: float = 0.0
    """How long after the container's start the audio begins."""

    @property
    def input_options(self) -> tuple[str, ...]:
        """For ffmpeg, before the input."""
        if self.file_seconds is None:
            return ()
        options = ("-ss", f"{self.file_seconds:.6f}")
        return options if self.first_seconds is None else ("-noaccurate_seek", *options)

    @property
    def filters(self) -> tuple[str, ...]:
        """For ffmpeg, before all other filters."""
        return () if self.first_seconds is None else (f"atrim=start={self.first_seconds:.6f}",)


FROM_START = SeekPoint()


def steady(marks: Sequence[Mark]) -> bool:
    """Whether the clock and the samples of several marks advance alike, at one rate."""
    if len(marks) < 2 or len({mark.rate for mark in marks}) > 1:
        return False
    offsets = [mark.seconds - mark.samples / mark.rate for mark in marks]
    return max(offsets) - min(offsets) <= _MAX_ERROR_SECONDS


def before(frames: Sequence[Mark], seconds: float) -> list[Mark]:
    """The frames up to the first one after this time.

    ffmpeg before version 7 ends with a mark in another unit, which is not one of them.
    """
    result: list[Mark] = []
    for frame in frames:
        if result and frame.seconds < result[-1].seconds - _MOST_SHIFT_SECONDS:
            break
        result.append(frame)
        if frame.seconds > seconds:
            break
    return result


def timestamp_of(
    samples: int, head: Sequence[Mark], frames: Sequence[Mark], *, rounded: bool, codec: str
) -> float | None:
    """The container's timestamp of the sample that follows so many from the start.

    `head` are marks from the start of the recording, `frames` those of all frames from a point
    before the sample. Where timestamps are `rounded`, samples are counted in whole frames. None
    where the result would not be certain to the sample.
    """
    frames = frames[1:]  # the first may be cut
    regular = _regular(frames)
    if not steady(head) or not any(regular) or {each.rate for each in frames} != {head[0].rate}:
        return None
    known, rate = head[-1], head[-1].rate
    # ffmpeg narrows the rounding of a timestamp by those that follow: the last is the best.
    last = [mark for mark, kept in zip(frames, regular, strict=True) if kept][-1]
    passed = last.seconds - known.seconds
    grid, tolerated_seconds = _grid(frames, codec)
    counted = round(passed * rate / grid) * grid
    if 2 * tolerated_seconds > grid / rate or abs(passed - counted / rate) > tolerated_seconds:
        if rounded:
            return None
        counted = round(passed * rate)
    target = samples - (known.samples + counted - last.samples)
    after = bisect_right(frames, target, key=lambda mark: mark.samples)
    # The timestamps of this frame and of both neighbours must be regular.
    if not 2 <= after < len(frames) or not all(regular[after - 2 : after + 1]):
        return None
    return frames[after - 1].seconds + (target - frames[after - 1].samples) / rate


def _grid(frames: Sequence[Mark], codec: str) -> tuple[int, float]:
    """Of how many samples all frames are multiples, and how far off a timestamp may be for it."""
    sizes = [after.samples - before.samples for before, after in pairwise(frames)]
    if codec != "vorbis":
        return math.gcd(*sizes), _MAX_ERROR_SECONDS
    grid = math.gcd(_VORBIS_GRID, *sizes)
    # Its frames begin anywhere between milliseconds, so that rounding is narrowed best.
    return grid, min(_MAX_ERROR_SECONDS, _MAX_ERROR_OF_GRID * grid / frames[0].rate)


def _regular(frames: Sequence[Mark]) -> list[bool]:
    """Which frames have the timestamp that most have: of Ogg Vorbis, ffmpeg shifts single ones."""
    offsets = [mark.seconds - mark.samples / mark.rate for mark in frames]
    usual = statistics.median_low(offsets) if offsets else 0.0
    regular = [abs(offset - usual) <= _MAX_ERROR_SECONDS for offset in offsets]
    return regular if sum(regular) > _MOSTLY * len(regular) else [False] * len(regular)
