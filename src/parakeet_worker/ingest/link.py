"""Objects between two processes over a Unix socket, with arrays as they are in memory."""

import pickle
import socket
import struct
from contextlib import suppress
from typing import Any

import numpy as np

_LENGTH = struct.Struct("Q")


class LinkClosed(Exception):
    """The other process has closed its end, or has ended."""


class Link:
    """One end of a connection; used by one thread, except `shut_down`.

    A socket of the default size costs half of the processor time of shared memory: its pages stay
    in the cache, while those of new shared memory are cleared first.
    """

    def __init__(self, end: socket.socket) -> None:
        """`end` is of type SOCK_STREAM; it is closed by `close`."""
        self._socket = end

    def send(self, value: object) -> None:
        """Send an object; raises `LinkClosed`, or what pickling it raises."""
        buffers: list[pickle.PickleBuffer] = []
        pickled = pickle.dumps(value, protocol=5, buffer_callback=buffers.append)
        parts = [memoryview(pickled), *(buffer.raw() for buffer in buffers)]
        lengths = b"".join(_LENGTH.pack(length) for length in (len(parts), *map(len, parts)))
        try:
            # Small messages in one call.
            self._socket.sendall(lengths + pickled)
            for part in parts[1:]:
                self._socket.sendall(part)
        except OSError as failure:
            raise LinkClosed from failure

    def receive(self) -> Any:
        """Wait for the next object; raises `LinkClosed`."""
        try:
            (count,) = _LENGTH.unpack(self._received(_LENGTH.size))
            lengths = _LENGTH.iter_unpack(self._received(count * _LENGTH.size))
            pickled, *buffers = [self._received(length) for (length,) in lengths]
        except OSError as failure:
            raise LinkClosed from failure
        return pickle.loads(pickled, buffers=buffers)  # noqa: S301  # from our own process

    def _received(self, size: int) -> memoryview:
        # Not a bytearray, which would be zeroed first.
        view, count = np.empty(size, dtype=np.uint8).data, 0
        while count < size:
            got = self._socket.recv_into(view[count:], 0, socket.MSG_WAITALL)
            if not got:
                raise LinkClosed
            count += got
        return view

    def shut_down(self) -> None:
        """End both directions, from any thread: pending and later calls raise `LinkClosed`."""
        with suppress(OSError):  # it may be closed
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close this end, also for a peer if a fork of this process has it too."""
        self.shut_down()
        self._socket.close()
