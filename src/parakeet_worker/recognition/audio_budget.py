"""Limits the decoded audio at the engine, per recording and in total."""

from parakeet_worker.recognition.chunks import Chunk

_SAMPLE_BYTES = 4


class AudioBudget:
    """Bytes of samples at the engine, of all recordings. For the event loop's thread only."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self.held_bytes = 0

    @property
    def full(self) -> bool:
        return self.held_bytes >= self._limit_bytes


class AudioShare:
    """One recording's samples at the engine, under its own limit and that of the budget."""

    def __init__(self, budget: AudioBudget, *, samples: int) -> None:
        self._budget = budget
        self._limit_bytes = samples * _SAMPLE_BYTES
        self._held_bytes = 0

    @property
    def full(self) -> bool:
        """Whether to wait for a transcript before the next chunk; one chunk is always admitted."""
        return self._held_bytes > 0 and (self._held_bytes >= self._limit_bytes or self._budget.full)

    def acquire(self, chunk: Chunk) -> None:
        self._change(_bytes(chunk))

    def release(self, chunk: Chunk) -> None:
        self._change(-_bytes(chunk))

    def close(self) -> None:
        """Release all of it."""
        self._change(-self._held_bytes)

    def _change(self, count: int) -> None:
        self._held_bytes += count
        self._budget.held_bytes += count


def _bytes(chunk: Chunk) -> int:
    overlap = 0 if chunk.overlap is None else chunk.overlap.samples.nbytes
    return chunk.samples.nbytes + overlap
