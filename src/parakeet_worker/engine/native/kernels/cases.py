"""Calls of every kernel on noise of mixed lengths, at a model's sizes, on any device."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from parakeet_worker.engine.native.rows import FACTOR, Plan, Rows, rows_of

Results = tuple[Tensor, ...]
Operation = Callable[..., Tensor]

_TOKENS = (37, 1, 0, 70, 13)
"""Rows longer than any tile, shorter, and empty, none of them a multiple of anything."""
_FULL_SCALE = 32768


@dataclass(frozen=True, slots=True)
class Widths:
    """What of a model decides its kernels' constants."""

    fft_samples: int
    hop_samples: int
    preemphasis: float
    log_guard: float
    mels: int
    channels: int
    width: int
    heads: int
    taps: int


@dataclass(frozen=True, slots=True)
class Case:
    """One call of one kernel."""

    kernel: str
    run: Callable[[Operation], Results]
    """Call an implementation on its own copy of the arguments; what it returned and changed."""


def cases(widths: Widths, dtype: torch.dtype, device: torch.device) -> Iterator[Case]:
    """Every kernel in every variant that a model launches in `dtype`."""
    noise = _Noise(dtype, device)
    plan = Plan(
        tuple(max(0, FACTOR * tokens * widths.hop_samples - 700) for tokens in _TOKENS),
        widths.hop_samples,
    )
    rows = rows_of(plan, [1 / _FULL_SCALE] * len(_TOKENS), device)
    yield from _features(widths, noise, rows, sum(plan.samples))
    yield from _subsampling(widths, noise, rows)
    yield from _layer(widths, noise, rows)


class _Noise:
    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        self.dtype = dtype
        self._device = device
        # On the processor, so that every device has the same.
        self._chance = torch.Generator().manual_seed(0)

    def __call__(self, *shape: int, dtype: torch.dtype | None = None, scale: float = 1.0) -> Tensor:
        drawn = torch.randn(*shape, generator=self._chance) * scale
        return drawn.to(dtype or self.dtype).to(self._device)


def _features(widths: Widths, noise: _Noise, rows: Rows, samples: int) -> Iterator[Case]:
    single = torch.float32
    packed = noise(samples, dtype=torch.int16, scale=3000)
    window = noise(widths.fft_samples, dtype=single)
    yield Case(
        "frames",
        lambda call: (
            call(
                packed, window, rows, 0, rows.tokens * FACTOR,
                hop_samples=widths.hop_samples, preemphasis=widths.preemphasis,
            ),
        ),
    )  # fmt: skip
    bins = widths.fft_samples // 2 + 1
    spectrum = noise(rows.tokens, bins, 2, dtype=single)
    yield Case("power", lambda call: (call(spectrum, -(-bins // 8) * 8),))
    power = noise(rows.tokens * FACTOR, widths.mels, dtype=single).square()
    yield Case(
        "mel_norm",
        lambda call: (call(power, rows, log_guard=widths.log_guard, dtype=noise.dtype),),
    )


def _subsampling(widths: Widths, noise: _Noise, rows: Rows) -> Iterator[Case]:
    (group,) = rows.groups
    channels, bands = widths.channels, (widths.mels + 3) // 4
    mels = noise(rows.tokens * FACTOR, widths.mels)
    first, second = ((noise(9, channels, scale=1 / 3), noise(channels)) for _ in range(2))
    yield Case("subsampling_first", lambda call: (call(mels, first, second, rows, group),))
    planes = noise(2 * rows.tokens, bands, channels)
    yield Case("subsampling_next", lambda call: (call(planes, *first, rows, group),))


def _layer(widths: Widths, noise: _Noise, rows: Rows) -> Iterator[Case]:
    tokens, width, heads = rows.tokens, widths.width, widths.heads
    states, update = noise(tokens, width), noise(tokens, width)
    norm, then = ((noise(width), noise(width)) for _ in range(2))
    for added, second in ((None, None), (update, None), (update, then)):

        def normed(call: Operation, added=added, second=second) -> Results:
            changed = states.clone()
            return call(changed, added, norm, second), changed

        yield Case("residual_norm", normed)
    projected, bias = noise(tokens, 3 * width), noise(width)
    yield Case("position_query", lambda call: (call(projected, bias, heads),))
    quiet = noise(tokens, 3 * width, scale=(heads / width) ** 0.25)
    span = -(-(2 * rows.longest - 1) // 8) * 8
    positions = noise(heads, tokens, span)
    yield Case("attention", lambda call: (call(quiet, positions, rows),))
    wide = noise(tokens, 2 * width)
    yield Case("glu", lambda call: (call(wide),))
    taps = noise(widths.taps, width, scale=1 / 3), noise(width)
    yield Case("depthwise", lambda call: (call(states, *taps, rows),))
