"""Remaining frames of a search, read back without stalling the GPU."""

import torch
from torch import Tensor


class Progress:
    """Reads the number of remaining frames one replay late, until the next may be the last."""

    def __init__(self, remaining: Tensor, max_advance: int) -> None:
        """`max_advance` is the maximum of frames that a row advances between two updates."""
        self._remaining = remaining
        self._max_advance = max_advance
        on_gpu = remaining.device.type == "cuda"
        self._events = [torch.cuda.Event() for _ in range(2)] if on_gpu else []
        self._copies = [torch.zeros(len(remaining), dtype=remaining.dtype) for _ in range(2)]
        if on_gpu:
            self._copies = [copy.pin_memory() for copy in self._copies]
        self._frames = self._replays = 0

    def start(self, longest: int) -> None:
        """Reset for a group whose longest row has `longest` frames."""
        self._frames, self._replays = longest, 0

    @property
    def unfinished(self) -> bool:
        """Whether any row may have frames left."""
        return self._frames > 0

    def update(self, row_tiles: int) -> None:
        """Copy the result of the replay just launched, and read that of the previous one.

        Waits for the replay just launched only if the previous result is so low that it may be the
        last.
        """
        index = self._replays % 2
        self._copies[index].copy_(self._remaining, non_blocking=True)
        if self._events:
            self._events[index].record()
        if self._replays > 0:
            self._read(1 - index, row_tiles)
        if self._frames <= self._max_advance:
            self._read(index, row_tiles)
        self._replays += 1

    def _read(self, index: int, row_tiles: int) -> None:
        if self._events:
            self._events[index].synchronize()
        self._frames = int(self._copies[index][:row_tiles].max())
