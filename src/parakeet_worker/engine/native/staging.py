"""Chunks from the host's memory to the device's: packed, in int16, without an allocation per batch.

Pinning memory for a batch of 64 minutes takes longer than computing it. Here pinned buffers are
made once and used in turn; a copy runs in a stream of its own while an earlier batch is computed.
"""

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from parakeet_worker.engine.base import Waveform
from parakeet_worker.engine.native.rows import Plan, Rows, layout_words, view_layout, write_layout

_SLOTS = 2
_FULL_SCALE = 1 << 15
# What is quieter than this is silence, and its inverse still a number.
_SMALLEST_EXPONENT = -40


@dataclass(frozen=True, slots=True)
class Shape:
    """How many rows and tokens a layout is made for; what a batch lacks of them stays empty."""

    rows: int
    tokens: int
    longest: int
    """Tokens that no row exceeds."""


@dataclass(frozen=True, slots=True, eq=False)
class Staged:
    """A batch on the device; valid until `Staging.release`."""

    samples: Tensor
    """(S,) int16, rows end to end."""
    words: Tensor
    """The layout that `rows` are views of."""
    rows: Rows
    broken: frozenset[int]
    """Chunks with samples that are not finite numbers; silence is in their place."""
    slot: int


class Staging:
    """A ring of pinned buffers on the host, each with its counterpart on the device.

    On a CPU the buffers are plain ones and every copy is done when the call returns.
    """

    def __init__(self, device: torch.device, samples: int, rows: int, tokens: int) -> None:
        """Room for batches of so many samples, rows and tokens."""
        self._device = device
        self._cuda = device.type == "cuda"
        words = layout_words(rows, tokens)
        self._host = [
            (self._pinned(samples, torch.int16), self._pinned(words, torch.int32))
            for _ in range(_SLOTS)
        ]
        self._buffers = [
            (
                torch.zeros(samples, dtype=torch.int16, device=device),
                torch.zeros(words, dtype=torch.int32, device=device),
            )
            for _ in range(_SLOTS)
        ]
        self._scratch = torch.empty(0)
        self._copying: Any = torch.cuda.Stream(device) if self._cuda else None
        self._copied: list[Any] = [
            torch.cuda.Event() if self._cuda else None for _ in range(_SLOTS)
        ]
        self._read: list[Any] = [None] * _SLOTS
        self._next = 0

    @property
    def samples(self) -> int:
        """Samples that there is room for."""
        return len(self._host[0][0])

    def stage(
        self, batch: Sequence[Waveform], plan: Plan, shape: Shape, group_tokens: int
    ) -> Staged:
        """Write `batch` into the next buffers and begin to copy them.

        The current stream waits for the copy; the host does not, except for the copy that used
        the same buffers before.
        """
        slot = self._next
        self._next = (slot + 1) % _SLOTS
        if self._cuda:
            self._copied[slot].synchronize()
        samples, words = self._host[slot]
        words = words[: layout_words(shape.rows, shape.tokens)]
        scales, end = [], 0
        for chunk in batch:
            end, first = end + len(chunk), end
            scales.append(self._write(chunk, samples[first:end]))
        known = [0.0 if scale is None else scale for scale in scales]
        write_layout(plan, known, shape.rows, shape.tokens, words.numpy())
        on_device = self._copy(slot, samples[:end], words)
        return Staged(
            samples=on_device[0],
            words=on_device[1],
            rows=view_layout(
                on_device[1],
                shape.rows,
                shape.tokens,
                shape.longest,
                plan.groups(group_tokens, shape.tokens),
            ),
            broken=frozenset(row for row, scale in enumerate(scales) if scale is None),
            slot=slot,
        )

    def release(self, staged: Staged) -> None:
        """What the current stream was given so far is the last that reads the batch."""
        if self._cuda:
            self._read[staged.slot] = torch.cuda.current_stream(self._device).record_event()

    def _copy(self, slot: int, *sources: Tensor) -> list[Tensor]:
        """The sources in the device's buffers of the slot, once the current stream gets there."""
        targets = [
            buffer[: len(source)]
            for buffer, source in zip(self._buffers[slot], sources, strict=True)
        ]
        with self._beside():
            if self._read[slot] is not None:
                self._copying.wait_event(self._read[slot])
            for target, source in zip(targets, sources, strict=True):
                target.copy_(source, non_blocking=True)
            if self._cuda:
                self._copied[slot].record()
        if self._cuda:
            torch.cuda.current_stream(self._device).wait_event(self._copied[slot])
        return targets

    def _write(self, chunk: Waveform, target: Tensor) -> float | None:
        """Samples into an int16 buffer; what they are to be multiplied by, None if not finite.

        float32 is scaled by a power of two, so that a quiet chunk keeps 15 bits, and one that was
        int16 before is as it was.
        """
        if chunk.dtype == np.int16:
            target.copy_(torch.from_numpy(chunk))
            return 1 / _FULL_SCALE
        samples = torch.from_numpy(chunk)
        factor = _factor(samples)
        if factor is None:
            target.zero_()
            return None
        if len(self._scratch) < len(samples):
            self._scratch = torch.empty(len(samples))
        scaled = torch.mul(samples, factor, out=self._scratch[: len(samples)])
        target.copy_(scaled.round_().clamp_(-_FULL_SCALE, _FULL_SCALE - 1))
        return 1 / factor

    def _pinned(self, length: int, dtype: torch.dtype) -> Tensor:
        return torch.zeros(length, dtype=dtype, pin_memory=self._cuda)

    def _beside(self) -> AbstractContextManager[object]:
        return torch.cuda.stream(self._copying) if self._cuda else nullcontext()


def _factor(samples: Tensor) -> float | None:
    """The power of two that fills int16 with `samples`; None if they are not finite."""
    if not len(samples):
        return 1.0
    low, high = (float(value) for value in torch.aminmax(samples))
    peak = max(high, -low)
    if not math.isfinite(peak):
        return None
    exponent = math.frexp(peak)[1]
    if -low == peak > high and -low == 2.0 ** (exponent - 1):
        exponent -= 1  # int16 reaches one further down than up
    return _FULL_SCALE * 2.0 ** -max(exponent, _SMALLEST_EXPONENT)
