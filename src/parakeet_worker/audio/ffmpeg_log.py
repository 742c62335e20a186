"""Parses ffmpeg's log while it decodes: clock marks and decode errors in order, and the text."""

import re
from collections import deque
from dataclasses import dataclass
from typing import TypeAlias

JUMP_SECONDS = 0.03
"""A larger change of the clock is marked immediately; containers round to milliseconds."""

# Evaluated for each decoded frame. It prints the samples decoded so far, the timestamp and the
# sample rate, once a second and for the two frames from which the clock jumps against the samples.
CLOCK_FILTER = (
    "asetpts='st(0,T-N/SR);"
    f"st(4,gt(abs(ld(0)-ld(1)),{JUMP_SECONDS}));"
    "if(ld(4)+ld(3)+gte(N,ld(2)),print(N)+print(T)+print(SR)+st(1,ld(0))+st(2,N+SR));"
    "st(3,ld(4));PTS'"
)

FRAME_FILTER = "asetpts='print(N)+print(T)+print(SR);PTS'"
"""The same for every frame."""

_KEPT_BYTES = 1 << 15
_LONGEST_LINE_BYTES = 1 << 16
_NUMBER = re.compile(rb"-?(?:\d+\.\d{6}|nan|inf)\r?")
_DECODE_ERROR = re.compile(
    rb"Error while decoding|Decoding error|Error submitting packet|Header missing"
    rb"|corrupt decoded frame"
)
# One per frame after a clock reset, about output timestamps, which raw samples do not have.
_NOISE = re.compile(rb"non monotonic(?:ally)? increasing dts")
_NUMBERS_OF_MARK = 3


@dataclass(frozen=True, slots=True)
class Mark:
    """A frame's place among the decoded samples and on the container's clock."""

    samples: int
    """Decoded before it, at `rate`."""
    seconds: float
    rate: int


@dataclass(frozen=True, slots=True)
class DecodeError:
    """A part could not be decoded, near the preceding mark."""

    text: str


Event: TypeAlias = Mark | DecodeError


class Log:
    """Parses ffmpeg's standard error of any length in bounded memory."""

    def __init__(self) -> None:
        self._head, self._tail, self._partial = b"", b"", b""
        self._numbers: list[float] = []
        self._events: deque[Event] = deque()

    def feed(self, content: bytes) -> None:
        """Parse more output."""
        *lines, self._partial = (self._partial + content).split(b"\n")
        self._partial = self._partial[-_LONGEST_LINE_BYTES:]
        for line in lines:
            if _NUMBER.fullmatch(line):
                self._number(float(line))
            elif not _NOISE.search(line):
                self._keep(line + b"\n")

    def text(self) -> str:
        """Head and tail of the log, without marks."""
        return (self._head + self._tail + self._partial).decode(errors="replace")

    def take(self) -> list[Event]:
        """Marks and decode errors since the last call, in order."""
        events = [*self._events]
        self._events.clear()
        return events

    def marks(self) -> list[Mark]:
        """Marks since the last call."""
        return [event for event in self.take() if isinstance(event, Mark)]

    def _number(self, number: float) -> None:
        self._numbers.append(number)
        if len(self._numbers) < _NUMBERS_OF_MARK:
            return
        samples, seconds, rate = self._numbers
        self._numbers.clear()
        if rate > 0:
            self._events.append(Mark(int(samples), seconds, int(rate)))

    def _keep(self, line: bytes) -> None:
        room = max(0, _KEPT_BYTES - len(self._head))
        self._head += line[:room]
        self._tail = (self._tail + line[room:])[-_KEPT_BYTES:]
        match = _DECODE_ERROR.search(line)
        # One per mark is enough: a broken file causes any number of them.
        if match and not (self._events and isinstance(self._events[-1], DecodeError)):
            self._events.append(DecodeError(match[0].decode()))
