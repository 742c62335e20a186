"""Decodes one long recording in several sections concurrently, with the bytes of one decoder."""

import queue
import threading
import time
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
"""Sections of one recording decoded ahead of the current one."""

KEPT_BYTES = 512 << 20
"""Limit of the sections decoded ahead, over all recordings."""

_POLL_SECONDS = 0.02
"""Interval of checks for an available core while the current section has no output."""


class DecodingTooSlow(Exception):
    """A decoder produced no output within the timeout."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Division of a recording, in bytes of decoder output."""

    bounds: Sequence[int]
    """Starts of sections in ascending order, without the first at 0."""
    section_bytes: int
    """Length of each section."""
    overlap_bytes: int
    """Length over which adjacent sections must be equal; otherwise the first one continues."""
    command: Callable[[int], Sequence[str]]
    """Command that decodes the section at a bound."""
    skipped_bytes: int
    """What such a decoder writes before the section begins: its state is not that of one that
    came from the beginning yet."""
    sample_bytes: int
    """Bytes of one sample of all channels."""

    @property
    def kept_bytes(self) -> int:
        """Bytes of a section that are read ahead."""
        return self.section_bytes + self.overlap_bytes


class Cores:
    """Budget of concurrent decoders and of memory, over all recordings."""

    def __init__(self, count: int, memory_bytes: int) -> None:
        self._busy = 0
        self._changing = threading.Lock()
        self.limit(count, memory_bytes)

    def limit(self, count: int, memory_bytes: int) -> None:
        """Change the budget, before the first recording."""
        self.count = count
        """Of processors."""
        self.section_bytes = memory_bytes // (count + 1)
        """With sections of this size, one is read while all cores decode others."""
        self._left_bytes = memory_bytes

    def taken(self, size_bytes: int) -> bool:
        """Reserve a core and memory for a section, if both are available."""
        with self._changing:
            free = self._busy <= self.count and size_bytes <= self._left_bytes
            self._busy += free
            self._left_bytes -= size_bytes * free
            return free

    def release(self) -> None:
        """Release a core; the memory stays reserved until `dropped`."""
        with self._changing:
            self._busy -= 1

    def dropped(self, size_bytes: int) -> None:
        """Release the memory of a section that was read or discarded."""
        with self._changing:
            self._left_bytes += size_bytes

    @contextmanager
    def recording(self) -> Generator[None, None, None]:
        """Count a recording's first decoder, which is never refused."""
        with self._changing:
            self._busy += 1
        try:
            yield
        finally:
            self.release()


CORES = Cores(Container.read().threads, KEPT_BYTES)


class Source:
    """A decoder with output that was read ahead."""

    def __init__(self, child: Child, first_sample: int = 0) -> None:
        """`first_sample` is its start in the recording, at 16 kHz."""
        self.child = child
        self.kept: deque[Content] = deque()
        self._clock = Clock(first_sample)
        self.valid_from = 0
        """Marks before this sample are ignored."""

    def wait(self, timeout_seconds: float) -> bool:  # noqa: ARG002
        """Wait for output that another thread reads; whether `read` need not wait for that."""
        return True

    def places(self, start_seconds: float | None) -> list[Place]:
        """Clock changes and damage reported since the last call."""
        places = self._clock.places(self.child.log.take(), start_seconds)
        return [place for place in places if place.at >= self.valid_from]

    @property
    def restarted(self) -> bool:
        """Whether its filters were set up anew, for another rate or number of channels."""
        return self._clock.restarted

    def read(self, size: int, timeout_seconds: float) -> Content:
        """At most `size` bytes; none at the end."""
        if self.kept:
            content = self.kept.popleft()
            if len(content) > size:
                self.kept.appendleft(memoryview(content)[size:])
            return memoryview(content)[:size]
        return _in_time(self.child.read(size, timeout_seconds))

    def report(self) -> str:
        """Its whole log; waits for its exit."""
        return self.child.report()

    def status(self) -> int:
        """Its exit status."""
        return self.child.status()

    def read_whole(self, size: int, timeout_seconds: float) -> bytes:
        """Exactly `size` bytes; fewer at the end."""
        whole = bytearray()
        while len(whole) < size and (part := self.read(size - len(whole), timeout_seconds)):
            whole += part
        return bytes(whole)


class _Ahead(Source):
    """A section read in a thread, including the overlap after its end."""

    def __init__(self, children: Children, plan: Plan, begin: int, timeout_seconds: float) -> None:
        first_sample = (begin - plan.skipped_bytes) // plan.sample_bytes
        super().__init__(children.start(plan.command(begin)), first_sample)
        self.valid_from = begin // plan.sample_bytes
        self.child.step_back()
        self._size = self._reserved_bytes = plan.kept_bytes
        self._skipped_bytes = plan.skipped_bytes
        self._timeout_seconds = timeout_seconds
        self._queue: queue.SimpleQueue[Content | None] = queue.SimpleQueue()
        self._ended = False
        self.done: Future[None] = threads.started(self._run)

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
            CORES.release()

    def close(self) -> None:
        """Discard its remaining output; call once, after its decoder has ended."""
        try:
            self.done.result()
        finally:
            self._drop(self._reserved_bytes)

    def _drop(self, size: int) -> None:
        """Release memory of bytes that were read, each once."""
        size = min(size, self._reserved_bytes)
        self._reserved_bytes -= size
        CORES.dropped(size)

    def wait(self, timeout_seconds: float) -> bool:
        if self.kept or self._ended:
            return True
        try:
            with threads.SLOTS.released():
                content = self._queue.get(timeout=timeout_seconds)
        except queue.Empty:
            return False
        if content is None:
            self._ended = True
        else:
            self.kept.append(content)
        return True

    def read(self, size: int, timeout_seconds: float) -> Content:
        if not self.wait(timeout_seconds):
            raise DecodingTooSlow
        content = Source.read(self, size, timeout_seconds)
        self._drop(len(content))
        return content


def _in_time(content: Content | None) -> Content:
    if content is None:
        raise DecodingTooSlow
    return content


class Sections:
    """Reads the output of one sequential decode, produced by several decoders where it is the same.

    Neither containers nor decoders guarantee this: a decoder that starts in the middle may be off
    by a sample, or keep a different state permanently. Therefore adjacent sections overlap by some
    seconds, and if these differ in a bit, the first decoder continues to the end of the recording.
    If the overlap is digital silence, which proves nothing, it continues to the next bound.
    """

    def __init__(self, children: Children, first: Child, timeout_seconds: float) -> None:
        """Read everything from `first`, until `divide` is called."""
        self._children = children
        self._plan: Plan | None = None
        self._timeout_seconds = timeout_seconds
        self._source = Source(first)
        self._ahead: dict[int, _Ahead] = {}
        self._unstarted: deque[int] = deque()
        self._at = 0
        self._log_texts: list[str] = []
        self.count = 1
        """Number of decoders read so far."""

    def restart(self, child: Child, at: int, first_sample: int) -> None:
        """Read from another decoder, whose output starts at byte `at` of the recording."""
        self._stay()
        self._end(self._source)
        self._source, self._at = Source(child, first_sample), at

    def divide(self, plan: Plan) -> None:
        """Decode sections ahead, as cores are available."""
        self._plan = plan
        self._unstarted.extend(plan.bounds)

    def step_back(self) -> None:
        """Lower the priority of the current decoder."""
        self._source.child.step_back()

    def places(self, start_seconds: float | None) -> list[Place]:
        """Clock changes and damage reported by the current decoder."""
        return self._source.places(start_seconds)

    @property
    def at(self) -> int:
        """The place of the next byte in the recording."""
        return self._at

    @property
    def restarted(self) -> bool:
        """Whether the filters of the current decoder were set up anew."""
        return self._source.restarted

    def marks(self) -> list[Mark]:
        """Clock marks not yet returned as places."""
        return self._source.child.log.marks()

    def log_text(self) -> str:
        """Log of the current decoder so far."""
        return self._source.child.log_text()

    def report(self) -> str:
        """Logs of all decoders that were read; waits for the exit of the last."""
        return "".join((*self._log_texts, self._source.child.report()))

    def status(self) -> int:
        """Exit status of the last decoder."""
        return self._source.child.status()

    def read(self, size: int, timeout_seconds: float) -> Content:
        """The next bytes, at most `size`; none at the end. Raises `DecodingTooSlow`."""
        if self._plan is not None:
            self._look_ahead(self._plan)
            if self._at in self._ahead:
                self._switch(self._plan, timeout_seconds)
            self._start_while_waiting(self._plan, timeout_seconds)
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
        """Start the next sections while cores are available."""
        while self._unstarted and self._unstarted[0] <= self._at:
            self._unstarted.popleft()
        size = plan.kept_bytes
        while self._unstarted and len(self._ahead) < _READY_AHEAD and CORES.taken(size):
            begin = self._unstarted.popleft()
            try:
                ahead = _Ahead(self._children, plan, begin, self._timeout_seconds)
            except BaseException:
                CORES.release()
                CORES.dropped(size)
                raise
            self._ahead[begin] = ahead

    def _start_while_waiting(self, plan: Plan, timeout_seconds: float) -> None:
        """Start sections until the current one has output: a core may be available first."""
        ends = time.monotonic() + timeout_seconds
        while self._unstarted and not self._source.wait(_POLL_SECONDS):
            if time.monotonic() > ends:
                raise DecodingTooSlow
            self._look_ahead(plan)

    def _switch(self, plan: Plan, timeout_seconds: float) -> None:
        """Switch to the section that starts here, if both decoders agree after the bound."""
        size, following = plan.overlap_bytes, self._ahead[self._at]
        before = self._source.read_whole(size, timeout_seconds)
        after = following.read_whole(size, timeout_seconds)
        del self._ahead[self._at]
        if len(before) == size and before == after and before.strip(b"\0"):
            self._source.child.kill()
            self._log_texts.append(self._source.child.report())
            self._end(self._source)
            self._source = following
            self.count += 1
        else:
            self._end(following)
            if before != after:
                self._stay()
        self._source.kept.appendleft(before)

    def _end(self, source: Source) -> None:
        source.child.kill()
        if isinstance(source, _Ahead):
            source.close()
        self._children.end(source.child)

    def _stay(self) -> None:
        """Read the rest from the current decoder."""
        self._unstarted.clear()
        for ahead in self._ahead.values():
            self._end(ahead)
        self._ahead.clear()
