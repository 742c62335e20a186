"""An ingest process: decodes and cuts recordings, each in a thread and over a link of its own."""

import gc
import itertools
import pickle
import select
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import closing, suppress

from parakeet_worker import heap, threads
from parakeet_worker.audio import sections
from parakeet_worker.container import Container
from parakeet_worker.engine.base import Samples
from parakeet_worker.errors import ParakeetError
from parakeet_worker.ingest.cutting import InThread
from parakeet_worker.ingest.link import Link, LinkClosed
from parakeet_worker.ingest.messages import Ended, Failed, Infer, Next, Task
from parakeet_worker.recognition.chunks import Chunk
from parakeet_worker.vad.base import Inference, NetworkState
from parakeet_worker.vad.detectors import Detectors

READY = b"ready"
"""Sent over the control socket once everything is imported."""

MAX_TASK_BYTES = 1 << 16
"""Maximum size of a task; a path has at most 4 KiB."""

_SLOTS = 2
"""Recordings of which one is computed while another one's decoder is read."""

_MIN_CORES = 4
"""Decoders of one recording: about as many as one process can read."""

_MIN_KEPT_BYTES = 192 << 20
"""For sections decoded ahead, 19 MB each."""

_KEPT_HEAP_BYTES = 256 << 20

_STOP_SECONDS = 2.0


class _Worker:
    """The worker at the other end of a link: requests chunks and computes Silero's network."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._requests = 0

    def wait_for_request(self) -> None:
        """Wait until the worker requests a chunk."""
        while not self._requests:
            self._receive()
        self._requests -= 1

    def probabilities(self, block: Samples, state: NetworkState | None) -> Inference:
        """See `VadBackend.probabilities`."""
        with threads.SLOTS.released():
            self._link.send(Infer(block, state))
            while (result := self._receive()) is None:
                pass
        return result

    def _receive(self) -> Inference | None:
        message: Inference | Next = self._link.receive()
        if not isinstance(message, Next):
            return message
        self._requests += 1
        return None


class _Recording:
    def __init__(self, end: socket.socket, task: Task) -> None:
        self._socket = end
        self._link = Link(end)
        self._worker = _Worker(self._link)
        self._ingest = InThread(task.cutting, Detectors(self._worker if task.has_network else None))

    def run(self) -> None:
        """Send the worker its chunks until it ends or the worker closes the link."""
        watching = threading.Thread(target=self._stop_when_closed, daemon=True)
        watching.start()
        with self._socket:
            try:
                self._send_all()
            except LinkClosed:
                pass  # the worker requires no more
            finally:
                self._link.shut_down()
                watching.join()

    def _send_all(self) -> None:
        with closing(self._ingest.chunks()) as chunks:
            for number in itertools.count():
                # Before it is requested: the next chunk is ready when the worker has room for it.
                with threads.SLOTS.held(early=number < threads.EARLY_VALUES):
                    message = self._following(chunks)
                self._worker.wait_for_request()
                self._link.send(message)
                if not isinstance(message, Chunk):
                    return

    def _following(self, chunks: Iterator[Chunk]) -> Chunk | Ended | Failed:
        try:
            chunk = next(chunks, None)
        except LinkClosed:
            raise
        except Exception as failure:  # noqa: BLE001  # raised in the worker
            return Failed(_portable(failure))
        return chunk or Ended(self._ingest.decoded)

    def _stop_when_closed(self) -> None:
        closed = select.poll()
        closed.register(self._socket, select.POLLRDHUP)
        closed.poll()
        self._ingest.stop()


def _portable(failure: Exception) -> Exception:
    """The exception as it can be sent, with its traceback as a note if it is unexpected."""
    if not isinstance(failure, ParakeetError):
        trace = "".join(traceback.format_exception(failure))
        failure.add_note(f"in an ingest process:\n{trace}")
    try:
        pickle.loads(pickle.dumps(failure))  # noqa: S301  # our own
    except Exception:  # noqa: BLE001  # any, of an exception of any library
        portable = RuntimeError(f"{type(failure).__name__}: {failure}")
        portable.add_note("\n".join(failure.__notes__))
        return portable
    return failure


def main() -> None:
    """Serve the worker until it closes the control socket.

    Arguments are the descriptor of this socket and the number of processes.
    """
    # The worker receives them too, and finishes its recordings.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    descriptor, count = map(int, sys.argv[1:])
    _limit_resources(count)
    gc.freeze()
    running: list[threading.Thread] = []
    with socket.socket(fileno=descriptor) as control:
        with suppress(BrokenPipeError):
            control.send(READY)
        while (recording := _received(control)) is not None:
            running = [thread for thread in running if thread.is_alive()]
            running.append(threading.Thread(target=recording.run, daemon=True))
            running[-1].start()
    for thread in running:  # their links are closed too
        thread.join(_STOP_SECONDS)


def _limit_resources(count: int) -> None:
    """Share processors and memory with the other processes."""
    # The heap's end, which is kept, is that of the first arena.
    heap.limit_arenas(1)
    heap.keep_freed(_KEPT_HEAP_BYTES)
    threads.SLOTS.free = _SLOTS
    available = Container.read().threads
    cores = min(available, max(_MIN_CORES, 2 * available // count))
    sections.CORES.limit(cores, max(_MIN_KEPT_BYTES, sections.KEPT_BYTES // count))


def _received(control: socket.socket) -> _Recording | None:
    """The next recording; None if the worker has closed the socket or has ended."""
    try:
        content, descriptors, _, _ = socket.recv_fds(control, MAX_TASK_BYTES, 1)
    except ConnectionResetError:  # closed before it was read that this process is ready
        return None
    if not content:
        return None
    task: Task = pickle.loads(content)  # noqa: S301  # from our own process
    return _Recording(socket.socket(fileno=descriptors[0]), task)


if __name__ == "__main__":
    main()
