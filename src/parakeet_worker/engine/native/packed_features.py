"""Log-mel frames of packed samples: `features.Features` for chunks stored end to end."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from parakeet_worker.engine.native.features import Features, FeaturesConfig
from parakeet_worker.engine.native.kernels.kernel_set import Kernels
from parakeet_worker.engine.native.rows import FACTOR, Rows

# Frames per pass: the intermediate tensors take 400 MB; a larger number is not faster.
_FRAMES_PER_PASS = 65_536
_BIN_ALIGNMENT = 8


@dataclass(frozen=True, slots=True, eq=False)
class PackedFeatures:
    """Computes the features of `Features` on one device."""

    config: FeaturesConfig
    window: Tensor
    """(n_fft,) float32, the window centred."""
    filters: Tensor
    """(mels, bins) float32, with bins of zeros up to a multiple of eight."""
    transform: Tensor | None
    """(2 bins, n_fft) real and imaginary parts of the Fourier transform, interleaved, as a product;
    None for the library's FFT, whose result for a frame may depend on the other frames."""
    kernels: Kernels
    dtype: torch.dtype

    @classmethod
    def of(cls, features: Features, kernels: Kernels, dtype: torch.dtype) -> "PackedFeatures":
        """Use the buffers of `features`, on their device."""
        config = features.config
        before = (config.fft_samples - config.window_samples) // 2
        after = config.fft_samples - config.window_samples - before
        filters = features.fb[0]
        missing = -filters.shape[1] % _BIN_ALIGNMENT
        return cls(
            config=config,
            window=functional.pad(features.window, (before, after)),
            filters=functional.pad(filters, (0, missing)).contiguous(),
            transform=_fourier_matrix(config.fft_samples).to(features.window)
            if kernels.reproducible
            else None,
            kernels=kernels,
            dtype=dtype,
        )

    def __call__(self, samples: Tensor, rows: Rows) -> Tensor:
        """(S,) int16 samples -> (8 N, mels) normalised frames; those outside all rows are zero."""
        total = rows.tokens * FACTOR
        power = torch.empty(
            total, self.filters.shape[0], dtype=torch.float32, device=samples.device
        )
        for first in range(0, total, _FRAMES_PER_PASS):
            count = min(_FRAMES_PER_PASS, total - first)
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


def _fourier_matrix(size: int) -> Tensor:
    """(2 (size // 2 + 1), size): cosines and negative sines of each frequency."""
    angles = torch.outer(torch.arange(size // 2 + 1), torch.arange(size)) % size
    angles = angles.double() * (2 * math.pi / size)
    return torch.stack((angles.cos(), -angles.sin()), dim=1).view(-1, size).float()
