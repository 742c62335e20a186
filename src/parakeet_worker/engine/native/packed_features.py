"""Log-mel frames of packed samples: `features.Features` for chunks that lie end to end."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from parakeet_worker.engine.native.features import Features, FeaturesConfig
from parakeet_worker.engine.native.kernels.kernel_set import Kernels
from parakeet_worker.engine.native.rows import FACTOR, Rows

# Frames between whose steps 400 MB lie; more at once is not faster.
_FRAMES_AT_ONCE = 65_536
_ALIGNED_BINS = 8


@dataclass(frozen=True, slots=True, eq=False)
class PackedFeatures:
    """The steps of `Features` on one device."""

    config: FeaturesConfig
    window: Tensor
    """(n_fft,) float32, the window in the middle."""
    filters: Tensor
    """(mels, bins) float32, with bins of zeros up to a multiple of eight."""
    transform: Tensor | None
    """(2 bins, n_fft) real and imaginary parts of the Fourier transform, in turn, as a product;
    None to leave it to the library, which may compute a frame otherwise beside others."""
    kernels: Kernels
    dtype: torch.dtype

    @classmethod
    def of(cls, features: Features, kernels: Kernels, dtype: torch.dtype) -> "PackedFeatures":
        """With the buffers of `features`, on their device."""
        config = features.config
        before = (config.fft_samples - config.window_samples) // 2
        after = config.fft_samples - config.window_samples - before
        filters = features.fb[0]
        missing = -filters.shape[1] % _ALIGNED_BINS
        return cls(
            config=config,
            window=functional.pad(features.window, (before, after)),
            filters=functional.pad(filters, (0, missing)).contiguous(),
            transform=_transform(config.fft_samples).to(features.window)
            if kernels.reproducible
            else None,
            kernels=kernels,
            dtype=dtype,
        )

    def __call__(self, samples: Tensor, rows: Rows) -> Tensor:
        """Packed int16 samples -> (8 N, mels) normalised frames; those that no row has are zero."""
        total = rows.tokens * FACTOR
        power = torch.empty(
            total, self.filters.shape[0], dtype=torch.float32, device=samples.device
        )
        for first in range(0, total, _FRAMES_AT_ONCE):
            count = min(_FRAMES_AT_ONCE, total - first)
            power[first : first + count] = self._mel_power(samples, rows, first, count)
        return self.kernels.mel_norm(power, rows, log_guard=self.config.log_guard, dtype=self.dtype)

    def _mel_power(self, samples: Tensor, rows: Rows, first: int, count: int) -> Tensor:
        framed = self.kernels.frames(
            samples,
            self.window,
            rows,
            first,
            count,
            hop_samples=self.config.hop_samples,
            preemphasis=self.config.preemphasis,
        )
        if self.transform is None:
            spectrum = torch.view_as_real(torch.fft.rfft(framed))
        else:
            spectrum = self.kernels.product(framed, self.transform).view(count, -1, 2)
        power = self.kernels.power(spectrum, self.filters.shape[1])
        return self.kernels.product(power, self.filters)


def _transform(size: int) -> Tensor:
    """(2 (size // 2 + 1), size): cosines and negative sines of each frequency."""
    angles = torch.outer(torch.arange(size // 2 + 1), torch.arange(size)) % size
    angles = angles.double() * (2 * math.pi / size)
    return torch.stack((angles.cos(), -angles.sin()), dim=1).view(-1, size).float()
