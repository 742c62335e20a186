"""One long recording decoded in several places at once, with the bytes of one decoding."""

import queue
import threading
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass

from parakeet_worker import threads
from parakeet_worker.audio.child_process import Child, Children, Content
from parakeet_worker.audio.ffmpeg_log import Mark
from parakeet_worker.audio.timeline import Clock, Place
from parakeet_worker.container import Container

READ_BYTES = 1 << 21

_READY_AHEAD = 8
"""Sections of one recording that are decoded or kept beyond the one that is read."""

_KEPT_BYTES = 512 << 20
"""Of all recordings' sections that are decoded ahead, until they were read."""


class DecodingTooSlow(Exception):
    """A decoder did not deliver in time."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Where a recording may be divided, in bytes of what is decoded."""

    bounds: Sequence[int]
    """Where sections begin, rising, without the first at 0."""
    section_bytes: int
    """How long each is."""
    overlap_bytes: int
    """By which two sections must agree, or the first goes on in the place of the second."""
    command: Callable[[int], Sequence[str]]
    """The decoder of the section that begins at a bound."""
    skipped_bytes: int
    """What such a decoder writes before the section begins: its state is not that of one that
    came from the beginning yet."""
    sample_bytes: int
    """How many bytes are one moment, of all channels."""

    @property
    def kept_bytes(self) -> int:
        """How much of a section is read ahead."""
        return self.section_bytes + self.overlap_bytes


class Cores:
    """How many decoders the machine has cores for, and memory, counted over all recordings."""

    def __init__(self, count: int, memory_bytes: int) -> None:
        self._count = count
        self._busy = 0
        self._left_bytes = memory_bytes
        self._changing = threading.Lock()

    def taken(self, size_bytes: int) -> bool:
        """Take one for a section of that size, if one is free and there is room to keep it."""
        with self._changing:
            free = self._busy <= self._count and size_bytes <= self._left_bytes
            self._busy += free
            self._left_bytes -= size_bytes * free
            return free

    def given(self) -> None:
        """Give one back; what was decoded on it is kept until it is `dropped`."""
        with self._changing:
            self._busy -= 1

    def dropped(self, size_bytes: int) -> None:
        """A section was read, or is not wanted any more."""
        with self._changing:
            self._left_bytes += size_bytes

    @contextmanager
    def recording(self) -> Generator[None, None, None]:
        """One that is decoded in any case."""
        with self._changing:
            self._busy += 1
        try:
            yield
        finally:
            self.given()


CORES = Cores(Container.read().threads, _KEPT_BYTES)


class Source:
    """A decoder, and what was read of it before that was asked for."""

    def __init__(self, child: Child, first_sample: int = 0) -> None:
        """`first_sample` is where in the recording it begins."""
        self.child = child
        self.kept: deque[Content] = deque()
        self._clock = Clock(first_sample)
        self.valid_from = 0
        """From which sample on its marks count."""

    def places(self, start_seconds: float | None) -> list[Place]:
        """What it has said of its clock and of damage since the last call."""
        found = self._clock.places(self.child.log.take(), start_seconds)
        return [place for place in found if place.at >= self.valid_from]

    def read(self, size: int, timeout_seconds: float) -> Content:
        """As many bytes as were asked for, or fewer; none at the end."""
        if self.kept:
            content = self.kept.popleft()
            if len(content) > size:
                self.kept.appendleft(memoryview(content)[size:])
            return memoryview(content)[:size]
        return _in_time(self.child.read(size, timeout_seconds))

    def report(self) -> str:
        """What it said; waits for its end."""
        return self.child.report()

    def status(self) -> int:
        """How it ended."""
        return self.child.status()

    def read_whole(self, size: int, timeout_seconds: float) -> bytes:
        """The same, fewer only at the end."""
        whole = bytearray()
        while len(whole) < size and (part := self.read(size - len(whole), timeout_seconds)):
            whole += part
        return bytes(whole)


class _Ahead(Source):
    """A section that is read in a thread, up to its end and the overlap after it."""

    def __init__(self, children: Children, plan: Plan, begin: int, timeout_seconds: float) -> None:
        first_sample = (begin - plan.skipped_bytes) // plan.sample_bytes
        super().__init__(children.start(plan.command(begin)), first_sample)
        self.valid_from = begin // plan.sample_bytes
        self.child.step_back()
        self._size = plan.kept_bytes
        self._skipped_bytes = plan.skipped_bytes
        self._timeout_seconds = timeout_seconds
        self._queue: queue.SimpleQueue[Content | None] = queue.SimpleQueue()
        self._ended = False
        self.done: Future[None] = threads.begun(self._run)

    def _run(self) -> None:
        """Ends with a None in the queue."""
        left, skip = self._size, self._skipped_bytes
        try:
            while left:
                content = self.child.read(min(skip or left, READ_BYTES), self._timeout_seconds)
                if not content:
                    return
                if skip:
                    skip -= len(content)
                else:
                    left -= len(content)
                    self._queue.put(content)
        finally:
            self._queue.put(None)
            CORES.given()

    def close(self) -> None:
        """What is still in it is not wanted any more; its decoder is dead. To be called once."""
        try:
            self.done.result()
        finally:
            CORES.dropped(self._size)

    def read(self, size: int, timeout_seconds: float) -> Content:
        while not self.kept and not self._ended:
            try:
                content = self._queue.get(timeout=timeout_seconds)
            except queue.Empty:
                raise DecodingTooSlow from None
            if content is None:
                self._ended = True
            else:
                self.kept.append(content)
        return Source.read(self, size, timeout_seconds)


def _in_time(content: Content | None) -> Content:
    if content is None:
        raise DecodingTooSlow
    return content


class Sections:
    """Reads a recording as one decoder would write it, from several at once where that is the same.

    Neither containers nor decoders promise it: a decoder that begins in the middle may be off by a
    sample, or remember something for ever. So two neighbours decode some seconds both, and where
    these differ in a bit, the first goes on to the end of the recording. Where they have digital
    silence alone, which proves nothing, it goes on to the next bound.
    """

    def __init__(self, children: Children, first: Child, timeout_seconds: float) -> None:
        """All of it from `first`, until it is divided."""
        self._children = children
        self._plan: Plan | None = None
        self._timeout_seconds = timeout_seconds
        self._source = Source(first)
        self._ahead: dict[int, _Ahead] = {}
        self._unstarted: deque[int] = deque()
        self._at = 0
        self._said: list[str] = []
        self.count = 1
        """From how many decoders bytes were read so far."""

    def restart(self, child: Child, at: int, first_sample: int) -> None:
        """Read from another decoder, whose first byte is that one of the recording."""
        self._children.end(self._source.child)
        self._source, self._at = Source(child, first_sample), at

    def divide(self, plan: Plan) -> None:
        """Decode what lies behind its bounds ahead, where there are cores for it."""
        self._plan = plan
        self._unstarted.extend(plan.bounds)

    def step_back(self) -> None:
        """Leave the cores to recordings that are done sooner."""
        self._source.child.step_back()

    def places(self, start_seconds: float | None) -> list[Place]:
        """What was said of the clock and of damage in what is read now."""
        return self._source.places(start_seconds)

    def marks(self) -> list[Mark]:
        """Marks of the clock that were not taken as places."""
        return self._source.child.log.marks()

    def said(self) -> str:
        """What the decoder that is read now has said so far."""
        return self._source.child.said()

    def report(self) -> str:
        """What all decoders said whose bytes were read; waits for the end of the last."""
        return "".join((*self._said, self._source.child.report()))

    def status(self) -> int:
        """How the one ended that came to the end of the recording."""
        return self._source.child.status()

    def read(self, size: int, timeout_seconds: float) -> Content:
        """The next bytes, at most `size`; none at the end. Raises `DecodingTooSlow`."""
        if self._plan is not None:
            self._look_ahead(self._plan)
            if self._at in self._ahead:
                self._hand_over(self._plan, timeout_seconds)
            size = min([size, *(bound - self._at for bound in self._ahead)])
        content = self._source.read(size, timeout_seconds)
        self._at += len(content)
        return content

    def close(self) -> None:
        """Stop all decoders, and wait for the threads that read them."""
        self._children.stop()
        for source in (self._source, *self._ahead.values()):
            if isinstance(source, _Ahead):
                source.close()

    def _look_ahead(self, plan: Plan) -> None:
        """Begin with sections that will be wanted, while there are cores for them."""
        while self._unstarted and self._unstarted[0] <= self._at:
            self._unstarted.popleft()
        size = plan.kept_bytes
        while self._unstarted and len(self._ahead) < _READY_AHEAD and CORES.taken(size):
            begin = self._unstarted.popleft()
            try:
                ahead = _Ahead(self._children, plan, begin, self._timeout_seconds)
            except BaseException:
                CORES.given()
                CORES.dropped(size)
                raise
            self._ahead[begin] = ahead

    def _hand_over(self, plan: Plan, timeout_seconds: float) -> None:
        """Read from the section that begins here, if both agree in what lies after the bound."""
        size, following = plan.overlap_bytes, self._ahead[self._at]
        ours = self._source.read_whole(size, timeout_seconds)
        theirs = following.read_whole(size, timeout_seconds)
        del self._ahead[self._at]
        if len(ours) == size and ours == theirs and ours.strip(b"\0"):
            self._source.child.kill()
            self._said.append(self._source.child.report())
            self._end(self._source)
            self._source = following
            self.count += 1
        else:
            self._end(following)
            if ours != theirs:
                self._stay()
        self._source.kept.appendleft(ours)

    def _end(self, source: Source) -> None:
        source.child.kill()
        if isinstance(source, _Ahead):
            source.close()
        self._children.end(source.child)

    def _stay(self) -> None:
        """Read what is left from the decoder that is read now."""
        self._unstarted.clear()
        for ahead in self._ahead.values():
            self._end(ahead)
        self._ahead.clear()
