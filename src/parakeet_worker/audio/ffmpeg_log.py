"""What ffmpeg writes while it decodes: marks of its clock, complaints in their place, the rest."""

import re
from collections import deque
from dataclasses import dataclass
from typing import TypeAlias

JUMP_SECONDS = 0.03
"""A change of the clock that is marked at once; containers round to milliseconds."""

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
_COMPLAINT = re.compile(
    rb"Error while decoding|Decoding error|Error submitting packet|Header missing"
    rb"|corrupt decoded frame"
)
# One for each frame behind a reset of the clock, about the timestamps that are written nowhere.
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
class Complaint:
    """Something could not be decoded, about where the mark before it is."""

    text: str


Event: TypeAlias = Mark | Complaint


class Log:
    """Takes what ffmpeg writes to its standard error, of any length, and keeps little of it."""

    def __init__(self) -> None:
        self._head, self._tail, self._partial = b"", b"", b""
        self._numbers: list[float] = []
        self._events: deque[Event] = deque()

    def feed(self, content: bytes) -> None:
        """Read on."""
        *lines, self._partial = (self._partial + content).split(b"\n")
        self._partial = self._partial[-_LONGEST_LINE_BYTES:]
        for line in lines:
            if _NUMBER.fullmatch(line):
                self._number(float(line))
            elif not _NOISE.search(line):
                self._keep(line + b"\n")

    def text(self) -> str:
        """The head and the tail of what it wrote, without marks."""
        return (self._head + self._tail + self._partial).decode(errors="replace")

    def take(self) -> list[Event]:
        """Marks and complaints since the last call, in their order."""
        events = [*self._events]
        self._events.clear()
        return events

    def marks(self) -> list[Mark]:
        """Of these the marks."""
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
        found = _COMPLAINT.search(line)
        # One after each mark is enough: a broken file complains without end.
        if found and not (self._events and isinstance(self._events[-1], Complaint)):
            self._events.append(Complaint(found[0].decode()))
