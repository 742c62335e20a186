"""Segmentation of 10 s windows: which of up to three local speakers is active in each frame.

The network is PyanNet (H. Bredin and A. Laurent, "End-to-end speaker segmentation for
overlap-aware resegmentation", Interspeech 2021) with powerset outputs (A. Plaquet and H. Bredin,
"Powerset multi-class cross entropy loss for neural speaker diarization", Interspeech 2023), on
learned band-pass filters (M. Ravanelli and Y. Bengio, "Speaker recognition from raw waveform with
SincNet", SLT 2018).
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from parakeet_worker.errors import WeightsCorrupt
from parakeet_worker.speakers import weights
from parakeet_worker.speakers.windows import CLASSES, SAMPLE_RATE

_FILTERS = 80
_FILTER_SAMPLES = 251
_STRIDE_SAMPLES = 10
_LOWEST_HZ = 50.0
_NARROWEST_HZ = 50.0
_WIDTH = 128


class Segmentation(nn.Module):
    """Band-pass filters, two convolutions, four bidirectional LSTM layers, and seven classes."""

    filters: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("filters", torch.zeros(_FILTERS, 1, _FILTER_SAMPLES))
        self.samples_norm = nn.InstanceNorm1d(1, affine=True)
        self.convolutions = nn.ModuleList([nn.Conv1d(_FILTERS, 60, 5), nn.Conv1d(60, 60, 5)])
        self.norms = nn.ModuleList(
            nn.InstanceNorm1d(width, affine=True) for width in (_FILTERS, 60, 60)
        )
        self.lstm = nn.LSTM(60, _WIDTH, num_layers=4, bidirectional=True, batch_first=True)
        self.linear = nn.ModuleList([nn.Linear(2 * _WIDTH, _WIDTH), nn.Linear(_WIDTH, _WIDTH)])
        self.classifier = nn.Linear(_WIDTH, len(CLASSES))

    def forward(self, samples: Tensor) -> Tensor:
        """(B, N) samples -> (B, T, 7) log-probabilities; T is 589 for windows of 10 s."""
        states = self.samples_norm(samples[:, None])
        states = functional.conv1d(states, self.filters, stride=_STRIDE_SAMPLES).abs()
        states = self._pooled(states, self.norms[0])
        for convolution, norm in zip(self.convolutions, self.norms[1:], strict=True):
            states = self._pooled(convolution(states), norm)
        states, _ = self.lstm(states.transpose(1, 2))
        for layer in self.linear:
            states = functional.leaky_relu(layer(states))
        return functional.log_softmax(self.classifier(states), dim=-1)

    def _pooled(self, states: Tensor, norm: nn.Module) -> Tensor:
        return functional.leaky_relu(norm(functional.max_pool1d(states, 3)))


def load(device: str = "cpu", folder: Path | None = None) -> Segmentation:
    """The network on `device`; raises `ExtraMissing`, `WeightsMissing` or `WeightsCorrupt`."""
    stored = weights.load(weights.SEGMENTATION, folder)
    network = Segmentation()
    try:
        network.load_state_dict(_renamed(stored))
    except (RuntimeError, KeyError) as failure:
        path = str(weights.SEGMENTATION.path)
        raise WeightsCorrupt(path, f"{type(failure).__name__}: {failure}") from failure
    return network.to(device).eval().requires_grad_(requires_grad=False)


def _renamed(stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our names, with the filters computed from their two frequencies each."""
    filterbank = "sincnet.conv1d.0.filterbank"
    parts = [stored[f"{filterbank}.{part}"] for part in ("low_hz_", "band_hz_", "window_", "n_")]
    result = {"filters": band_pass_filters(*parts)}
    prefixes = {
        "sincnet.wav_norm1d.": "samples_norm.",
        "sincnet.conv1d.1.": "convolutions.0.",
        "sincnet.conv1d.2.": "convolutions.1.",
        "sincnet.norm1d.": "norms.",
    }
    for name, tensor in stored.items():
        if name.startswith(filterbank):
            continue
        prefix = next((each for each in prefixes if name.startswith(each)), "")
        result[prefixes.get(prefix, "") + name.removeprefix(prefix)] = tensor
    return result


def band_pass_filters(low_hz: Tensor, band_hz: Tensor, window: Tensor, angle: Tensor) -> Tensor:
    """Learned lower edges and widths, (F, 1) each -> (2 F, 1, 251) filters.

    Each pair is a windowed band-pass filter and its quadrature: the real and the imaginary part of
    the analytic filter, scaled to one at its centre. `window` and `angle` are of the samples before
    the centre. The norms after the filters amplify the last bits of float32, so the order of
    operations is that of the training code.
    """
    low = _LOWEST_HZ + low_hz.abs()
    high = (low + _NARROWEST_HZ + band_hz.abs()).clamp(_LOWEST_HZ, SAMPLE_RATE / 2)
    low_angle, high_angle, width = low * angle, high * angle, high - low
    scale = angle / 2
    even = (high_angle.sin() - low_angle.sin()) / scale * window
    odd = (low_angle.cos() - high_angle.cos()) / scale * window
    real = torch.cat((even, 2 * width, even.flip(1)), dim=1)
    imaginary = torch.cat((odd, torch.zeros_like(width), -odd.flip(1)), dim=1)
    return torch.cat((real / (2 * width), imaginary / (2 * width)))[:, None]
