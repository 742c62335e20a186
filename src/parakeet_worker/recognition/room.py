"""How much decoded audio may be at the engine: of one recording, and of all of them."""

from parakeet_worker.recognition.chunks import Segment

_SAMPLE_BYTES = 4


class AudioMemory:
    """How many samples all recordings together may have at the engine; for the loop alone."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self.held_bytes = 0

    @property
    def full(self) -> bool:
        return self.held_bytes >= self._limit_bytes


class Room:
    """What one recording has at the engine, of its own limit and of all recordings'."""

    def __init__(self, memory: AudioMemory, *, samples: int) -> None:
        self._memory = memory
        self._limit_bytes = samples * _SAMPLE_BYTES
        self._held_bytes = 0

    @property
    def full(self) -> bool:
        """Whether to wait for words before there is more; one piece is always let in."""
        return self._held_bytes > 0 and (self._held_bytes >= self._limit_bytes or self._memory.full)

    def take(self, segment: Segment) -> None:
        self._change(_bytes(segment))

    def give(self, segment: Segment) -> None:
        self._change(-_bytes(segment))

    def close(self) -> None:
        """Give everything back."""
        self._change(-self._held_bytes)

    def _change(self, count: int) -> None:
        self._held_bytes += count
        self._memory.held_bytes += count


def _bytes(segment: Segment) -> int:
    bridge = 0 if segment.bridge is None else segment.bridge.samples.nbytes
    return segment.samples.nbytes + bridge
