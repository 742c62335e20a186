"""Ingest processes, and recordings that are decoded and cut in them.

One process of Python decodes, detects and cuts about 2,000 seconds of audio per second with any
number of threads, and an engine on a GPU transcribes several times as many.
"""

import logging
import pickle
import socket
import subprocess
import sys
import threading
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager, suppress

from parakeet_worker import threads
from parakeet_worker.errors import DecoderKilled
from parakeet_worker.ingest import process
from parakeet_worker.ingest.cutting import Cutting, Decoded, InThread
from parakeet_worker.ingest.link import Link, LinkClosed
from parakeet_worker.ingest.messages import Ended, Failed, Infer, Next, Task
from parakeet_worker.recognition.chunks import Chunk
from parakeet_worker.vad.base import VadBackend
from parakeet_worker.vad.detectors import Detectors

log = logging.getLogger(__name__)

_ATTEMPTS = 2
_STOP_SECONDS = 5.0


class Process:
    """An ingest process, as its worker sees it."""

    def __init__(self, count: int) -> None:
        """Start one of `count` processes; raises `OSError`."""
        self._control, end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with end:
            try:
                self._process = subprocess.Popen(
                    [sys.executable, "-m", process.__name__, str(end.fileno()), str(count)],
                    stdin=subprocess.DEVNULL,
                    pass_fds=[end.fileno()],
                    process_group=0,
                )
            except OSError:
                self._control.close()
                raise
        self._ready = False
        self.recordings = 0
        """Number of recordings that it processes."""

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def ready(self) -> bool:
        """Whether it has imported what it needs."""
        if not self._ready:
            with suppress(OSError):  # nothing to read yet, or it has ended
                self._ready = bool(self._control.recv(len(process.READY), socket.MSG_DONTWAIT))
        return self._ready

    @property
    def ended(self) -> bool:
        """Whether it has ended, by a signal for example."""
        return self._process.poll() is not None

    def kill(self) -> None:
        """Kill it and wait: the sockets of an ending process are closed before `ended` is true."""
        self._process.kill()
        self._process.wait()

    def linked(self, task: Task) -> Link:
        """Start a recording; raises `LinkClosed` if the process has ended."""
        own, end = socket.socketpair()
        with end:
            try:
                socket.send_fds(self._control, [pickle.dumps(task)], [end.fileno()])
            except OSError as failure:
                own.close()
                raise LinkClosed from failure
        return Link(own)

    def stop(self) -> None:
        """Let it end, once its recordings have."""
        # Closing is not enough: the heartbeat's process is a fork with the same sockets.
        with suppress(OSError):  # it has ended
            self._control.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """End it and wait for its end."""
        self.stop()
        self._control.close()
        try:
            self._process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


class Processes:
    """A fixed number of ingest processes; one that ends is replaced."""

    def __init__(self, count: int, backend: VadBackend | None) -> None:
        """`backend` computes the speech probabilities of all recordings, in this process."""
        self.backend = backend
        self._count = count
        self._changing = threading.Lock()
        self._processes = [Process(count) for _ in range(count)]

    def __iter__(self) -> Iterator[Process]:
        return iter(self._processes)

    @contextmanager
    def reserved(self, *, may_start: bool) -> Iterator[Process | None]:
        """The process with the fewest recordings, of those that are ready; None if none is.

        With `may_start`, those that are starting are included.
        """
        with self._changing:
            self._replace_ended()
            usable = [
                each for each in self._processes if not each.ended and (each.ready or may_start)
            ]
            chosen = min(usable, key=lambda each: each.recordings, default=None)
            if chosen is not None:
                chosen.recordings += 1
        try:
            yield chosen
        finally:
            if chosen is not None:
                with self._changing:
                    chosen.recordings -= 1

    def _replace_ended(self) -> None:
        for index, each in enumerate(self._processes):
            if not each.ended:
                continue
            each.close()
            try:
                self._processes[index] = Process(self._count)
            except OSError as failure:  # of memory or descriptors; the next recording retries
                log.warning("an ingest process cannot be started: %s", failure)

    def close(self) -> None:
        """End all processes."""
        with self._changing:
            for each in self._processes:
                each.stop()
            for each in self._processes:
                each.close()


class InProcess:
    """Produces chunks in one of the processes, or in the calling thread while these start.

    If the process ends, another one repeats the recording once, and the chunks that this one has
    produced are skipped.
    """

    def __init__(self, processes: Processes, cutting: Cutting) -> None:
        self._processes = processes
        self._cutting = cutting
        self._changing = threading.Lock()
        self._local: InThread | None = None
        self._link: Link | None = None
        self._stopped = False
        self._decoded: Decoded | None = None
        self._count = 0
        self._end_seconds = 0.0

    def chunks(self) -> Generator[Chunk, None, None]:
        """See `Ingest.chunks`; raises `DecoderKilled` if two processes ended."""
        for attempt in range(_ATTEMPTS):
            with self._processes.reserved(may_start=attempt > 0) as reserved:
                chunks = self._in_this_thread() if reserved is None else self._in(reserved)
                with suppress(LinkClosed), closing(self._new(chunks)) as new:
                    yield from new
                    return
                if self._stopped or reserved is None:
                    return
                reserved.kill()
            log.warning("an ingest process ended; its recording is repeated in another one")
        raise DecoderKilled(self._end_seconds)

    def _new(self, chunks: Generator[Chunk, None, None]) -> Generator[Chunk, None, None]:
        """The chunks that have not been produced yet."""
        number = 0
        with closing(chunks):
            for number, chunk in enumerate(chunks, 1):
                if number > self._count:
                    self._count, self._end_seconds = number, chunk.end_seconds
                    yield chunk
                elif number == self._count and chunk.end_seconds != self._end_seconds:
                    # Words would be lost or repeated.
                    raise DecoderKilled(self._end_seconds)
        if number < self._count:
            raise DecoderKilled(self._end_seconds)

    def _in_this_thread(self) -> Generator[Chunk, None, None]:
        local = InThread(self._cutting, Detectors(self._processes.backend))
        with self._changing:
            self._local = local
            if self._stopped:
                return
        yield from local.chunks()
        self._decoded = local.decoded

    def _in(self, reserved: Process) -> Generator[Chunk, None, None]:
        with self._linked(reserved) as link:
            link.send(Next())
            while not isinstance(message := self._received(link), Ended):
                yield message
                link.send(Next())
            self._decoded = message.decoded

    @contextmanager
    def _linked(self, reserved: Process) -> Iterator[Link]:
        task = Task(self._cutting, has_network=self._processes.backend is not None)
        with closing(reserved.linked(task)) as link:
            with self._changing:
                self._link = link
                if self._stopped:
                    raise LinkClosed
            try:
                yield link
            finally:
                with self._changing:
                    self._link = None

    def _received(self, link: Link) -> Chunk | Ended:
        """The next message, after the inferences that it requires."""
        while True:
            with threads.SLOTS.released():
                message: Chunk | Ended | Infer | Failed = link.receive()
            if isinstance(message, Failed):
                raise message.failure
            if not isinstance(message, Infer):
                return message
            assert self._processes.backend is not None
            link.send(self._processes.backend.probabilities(message.block, message.state))

    def stop(self) -> None:
        """See `Ingest.stop`."""
        with self._changing:
            self._stopped = True
            if self._link is not None:
                self._link.shut_down()
            if self._local is not None:
                self._local.stop()

    @property
    def decoded(self) -> Decoded:
        """See `Ingest.decoded`."""
        assert self._decoded is not None
        return self._decoded
