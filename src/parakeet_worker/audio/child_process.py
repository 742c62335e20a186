"""Child processes whose output is read in a thread, in few and large reads."""

import fcntl
import os
import resource
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Self, TypeAlias

import numpy as np

from parakeet_worker import threads
from parakeet_worker.audio.ffmpeg_log import Log
from parakeet_worker.errors import FfmpegMissing

Content: TypeAlias = bytes | bytearray | memoryview

_REPORT_BYTES = 1 << 15
# Timeout of one blocking receive. Between receives the child's log is read, and the time limit is
# checked.
_WAIT_SECONDS = 0.25
# Capacity of the log's pipe, 64 KiB by default; a user may have this much without privileges.
_LOG_BYTES = 1 << 20
# A decoder that needs longer for one read does not keep other recordings waiting.
_SLOW_SECONDS = 1.0
_SOCKET_BYTES = 1 << 20
# Increase of a child's niceness. On a contended core 5 gives a third of the worker's share, 15 a
# ninth of that. A worker thread waiting for a core may hold the GIL and block the event loop,
# with many ffmpegs for 100 ms and more.
_STEPS_BACK = 5
_LONG_STEPS_BACK = 15


def _environment() -> dict[str, str]:
    """The environment without the machine's character set modules.

    A static ffmpeg crashes when it loads them, as it does for names in MPEG-TS.
    """
    return {**os.environ, "GCONV_PATH": "/nonexistent"}


class Stopped(Exception):
    """The children were stopped deliberately: their output is no longer needed."""


class Child:
    """A child process with its output; used by one thread, except `kill`.

    The output is a socket instead of a pipe: a thread can wait in the kernel for megabytes, while
    a pipe wakes it for every 32 KiB that ffmpeg writes.
    """

    def __init__(self, command: Sequence[str], memory_bytes: int | None = None) -> None:
        """Start the process with a memory limit; raises `FfmpegMissing`."""
        self._output, child_socket = socket.socketpair()
        with child_socket:
            wait = struct.pack("ll", 0, round(_WAIT_SECONDS * 1_000_000))
            self._output.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, wait)
            child_socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SOCKET_BYTES)
            try:
                self._process: subprocess.Popen[bytes] = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=child_socket.fileno(),
                    stderr=subprocess.PIPE,
                    # A signal to the worker's process group (Ctrl-C, systemd) must not cut a
                    # recording short that the worker is going to finish. A session would do so
                    # too, but Linux gives each as much of the processor as the whole worker.
                    process_group=0,
                    env=_environment(),
                )
            except OSError as failure:
                self._output.close()
                raise FfmpegMissing from failure
        self.step_back(_STEPS_BACK)
        if memory_bytes is not None:
            _limit_memory(self._process.pid, memory_bytes)
        assert self._process.stderr is not None
        self._errors = self._process.stderr.fileno()
        os.set_blocking(self._errors, False)
        _enlarge(self._errors)
        self.log = Log()
        """Standard error as far as it was read."""

    def read(self, size: int, timeout_seconds: float) -> Content | None:
        """Read `size` bytes, fewer at the end, none after it; None on timeout."""
        # Not a bytearray, which would be zeroed first.
        view, count = np.empty(size, dtype=np.uint8).data, 0
        started = time.monotonic()
        with ExitStack() as stack:
            while count < size:
                got = self._received(view[count:])
                if got == 0:
                    break
                count += got or 0
                waited_seconds = time.monotonic() - started
                if count < size and waited_seconds > timeout_seconds:
                    return None
                if waited_seconds > _SLOW_SECONDS:
                    stack.enter_context(threads.SLOTS.released())
        return view[:count]

    def _received(self, view: memoryview) -> int | None:
        """Receive up to its length for at most 0.25 s; 0 at the end, None if nothing came."""
        try:
            return self._output.recv_into(view, 0, socket.MSG_WAITALL)
        except BlockingIOError:
            return None
        except ConnectionResetError:
            return 0  # it exited with unread input, although there is none
        finally:
            self._read_log()

    def _read_log(self) -> None:
        """Read the available log without blocking."""
        with suppress(BlockingIOError):
            while content := os.read(self._errors, _REPORT_BYTES):
                self.log.feed(content)

    def log_text(self) -> str:
        """Its log so far."""
        self._read_log()
        return self.log.text()

    def report(self) -> str:
        """Its whole log; waits for its exit; call once."""
        os.set_blocking(self._errors, True)
        while content := os.read(self._errors, _REPORT_BYTES):
            self.log.feed(content)
        return self.log.text()

    def status(self) -> int:
        """Its exit status, negative for a signal; waits for its end."""
        return self._process.wait()

    def step_back(self, by: int = _LONG_STEPS_BACK) -> None:
        """Lower its priority: `by` is added to the worker's niceness."""
        niceness = os.getpriority(os.PRIO_PROCESS, 0) + by
        with suppress(OSError):  # it may have ended
            for thread in Path(f"/proc/{self._process.pid}/task").iterdir():
                os.setpriority(os.PRIO_PROCESS, int(thread.name), niceness)

    def kill(self) -> None:
        """Kill it, from any thread; pending reads end."""
        with suppress(ProcessLookupError):
            self._process.kill()

    def end(self) -> None:
        """Kill and reap it, and close its pipes."""
        self.kill()
        self._output.close()
        self._process.wait()
        assert self._process.stderr is not None
        self._process.stderr.close()


def _enlarge(pipe: int) -> None:
    """Give the log's pipe room for the lines between two reads, up to 0.25 s apart.

    A file with an error in every packet has megabytes of log, for which ffmpeg would wait.
    """
    with suppress(OSError, AttributeError):  # beyond the user's limit, or not on Linux
        fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, _LOG_BYTES)


def _limit_memory(pid: int, limit_bytes: int) -> None:
    """What it allocates is counted, and the stacks of its threads; its libraries are not.

    Set from outside, a moment after its start: to run code between fork and exec is not safe in a
    process with threads.
    """
    # It may have ended, or the container may forbid it.
    with suppress(OSError):
        _, hard = resource.prlimit(pid, resource.RLIMIT_DATA)
        limit = limit_bytes if hard == resource.RLIM_INFINITY else min(limit_bytes, hard)
        resource.prlimit(pid, resource.RLIMIT_DATA, (limit, limit))


class Children:
    """The processes of one recording: stopped from any thread, ended with the block."""

    def __init__(self, memory_bytes: int | None = None) -> None:
        """Each with at most so much memory of its own."""
        self._memory_bytes = memory_bytes
        self._starting = threading.Lock()
        self._alive: list[Child] = []
        self._stopped = False

    def start(self, command: Sequence[str]) -> Child:
        """Start one; raises `Stopped` or `FfmpegMissing`."""
        with self._starting:
            if self._stopped:
                raise Stopped
            child = Child(command, self._memory_bytes)
            self._alive.append(child)
            return child

    def end(self, child: Child) -> None:
        """End one before the others."""
        child.end()
        with self._starting:
            self._alive.remove(child)

    def check(self) -> None:
        """Raise `Stopped` where a child's end is our own doing."""
        if self._stopped:
            raise Stopped

    def stop(self) -> None:
        """Kill them all, and start no more."""
        with self._starting:
            self._stopped = True
            for child in self._alive:
                child.kill()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        failure: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()
        for child in self._alive:
            child.end()
        self._alive.clear()
