"""Host-to-device transfer of chunks: packed, in int16, without an allocation per batch.

Pinning memory for a batch of 64 minutes takes longer than computing it. Here pinned buffers are
allocated once and used as a ring; copies run on their own stream during the computation of an
earlier batch.
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
# Lower peaks count as silence; the inverse of this scale is still representable.
_SMALLEST_EXPONENT = -40


@dataclass(frozen=True, slots=True)
class Shape:
    """Rows and tokens of a layout; a batch may fill fewer."""

    rows: int
    tokens: int
    longest: int
    """Upper bound of tokens per row."""


@dataclass(frozen=True, slots=True, eq=False)
class Staged:
    """A batch on the device; valid until `Staging.release`."""

    samples: Tensor
    """(S,) int16, rows end to end."""
    words: Tensor
    """Int32 storage of the layout, which `rows` are views of."""
    rows: Rows
    non_finite: frozenset[int]
    """Rows whose samples are not all finite; they are replaced by silence."""
    slot: int


class Staging:
    """A ring of pinned host buffers, each with a device buffer.

    On a CPU the buffers are not pinned, and every copy is complete when the call returns.
    """

    def __init__(self, device: torch.device, samples: int, rows: int, tokens: int) -> None:
        """Allocate buffers for batches of up to `samples`, `rows` and `tokens`."""
        self._device = device
        self._cuda = device.type == "cuda"
        words = layout_words(rows, tokens)
        self._host = [
            (self._host_buffer(samples, torch.int16), self._host_buffer(words, torch.int32))
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
        self._copy_stream: Any = torch.cuda.Stream(device) if self._cuda else None
        self._copied: list[Any] = [
            torch.cuda.Event() if self._cuda else None for _ in range(_SLOTS)
        ]
        self._read: list[Any] = [None] * _SLOTS
        self._next = 0

    @property
    def samples(self) -> int:
        """Capacity in samples."""
        return len(self._host[0][0])

    def stage(
        self, batch: Sequence[Waveform], plan: Plan, shape: Shape, group_tokens: int
    ) -> Staged:
        """Write `batch` into the next pinned buffers and start the copy to the device.

        The current stream waits for the copy. The host waits only for the previous copy from the
        same buffers.
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
        row_scales = [0.0 if scale is None else scale for scale in scales]
        write_layout(plan, row_scales, shape.rows, shape.tokens, words.numpy())
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
            non_finite=frozenset(row for row, scale in enumerate(scales) if scale is None),
            slot=slot,
        )

    def release(self, staged: Staged) -> None:
        """Allow reuse of the batch's buffers after the work queued on the current stream so far."""
        if self._cuda:
            self._read[staged.slot] = torch.cuda.current_stream(self._device).record_event()

    def _copy(self, slot: int, *sources: Tensor) -> list[Tensor]:
        """Copy the sources to the slot's device buffers; the current stream waits for the copy."""
        targets = [
            buffer[: len(source)]
            for buffer, source in zip(self._buffers[slot], sources, strict=True)
        ]
        with self._on_copy_stream():
            if self._read[slot] is not None:
                self._copy_stream.wait_event(self._read[slot])
            for target, source in zip(targets, sources, strict=True):
                target.copy_(source, non_blocking=True)
            if self._cuda:
                self._copied[slot].record()
        if self._cuda:
            torch.cuda.current_stream(self._device).wait_event(self._copied[slot])
        return targets

    def _write(self, chunk: Waveform, target: Tensor) -> float | None:
        """Write samples to an int16 buffer; return the scale of the row, None if not finite.

        float32 is scaled by a power of two: a quiet chunk keeps 15 bits, and float32 samples that
        were decoded from int16 are reproduced exactly.
        """
        if chunk.dtype == np.int16:
            target.copy_(torch.from_numpy(chunk))
            return 1 / _FULL_SCALE
        samples = torch.from_numpy(chunk)
        factor = _scale_factor(samples)
        if factor is None:
            target.zero_()
            return None
        if len(self._scratch) < len(samples):
            self._scratch = torch.empty(len(samples))
        scaled = torch.mul(samples, factor, out=self._scratch[: len(samples)])
        target.copy_(scaled.round_().clamp_(-_FULL_SCALE, _FULL_SCALE - 1))
        return 1 / factor

    def _host_buffer(self, length: int, dtype: torch.dtype) -> Tensor:
        return torch.zeros(length, dtype=dtype, pin_memory=self._cuda)

    def _on_copy_stream(self) -> AbstractContextManager[object]:
        return torch.cuda.stream(self._copy_stream) if self._cuda else nullcontext()


def _scale_factor(samples: Tensor) -> float | None:
    """The power of two that scales `samples` to the range of int16; None if not finite."""
    if not len(samples):
        return 1.0
    low, high = (float(value) for value in torch.aminmax(samples))
    peak = max(high, -low)
    if not math.isfinite(peak):
        return None
    exponent = math.frexp(peak)[1]
    if -low == peak > high and -low == 2.0 ** (exponent - 1):
        exponent -= 1  # the range of int16 is one larger below zero
    return _FULL_SCALE * 2.0 ** -max(exponent, _SMALLEST_EXPONENT)
