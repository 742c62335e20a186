"""Pitch of a voice over time.

The fundamental frequency of each frame is the reciprocal of the lag at which its autocorrelation is
highest (L. Rabiner, "On the use of autocorrelation analysis for pitch detection", 1977), divided by
the autocorrelation of the window (P. Boersma, "Accurate short-term analysis of the fundamental
frequency and the harmonics-to-noise ratio of a sampled sound", 1993).
"""

import torch
from torch import Tensor, nn

from parakeet_worker.speakers.windows import PITCH_FRAME_SAMPLES, PITCH_HOP_SAMPLES, SAMPLE_RATE

_HIGHEST_HZ, _LOWEST_HZ = 400, 60
_SHORTEST_LAG, _LONGEST_LAG = SAMPLE_RATE // _HIGHEST_HZ, SAMPLE_RATE // _LOWEST_HZ
_FFT_SAMPLES = 1024  # at least a frame and the longest lag
_VOICED = 0.6
"""Correlation of a voiced frame with itself one period later."""
# A half or a third of the lag is the period, if the correlation there is nearly as high.
_PARTS_OF_LAG = (2, 3)
_NEARLY = 0.9
_TINY = 1e-12


class Pitch(nn.Module):
    """Pitch of frames of 40 ms, one every 20 ms."""

    window: Tensor
    correlation: Tensor

    def __init__(self) -> None:
        super().__init__()
        window = torch.hann_window(PITCH_FRAME_SAMPLES)
        self.register_buffer("window", window, persistent=False)
        own = _autocorrelation(window)[: _LONGEST_LAG + 1]
        self.register_buffer("correlation", own / own[0], persistent=False)

    def forward(self, samples: Tensor) -> Tensor:
        """(B, N) samples -> (B, T) semitones above 1 Hz; NaN in frames without a voice."""
        frames = samples.unfold(1, PITCH_FRAME_SAMPLES, PITCH_HOP_SAMPLES) * self.window
        products = _autocorrelation(frames)[..., : _LONGEST_LAG + 1]
        power = products[..., :1].clamp_min(_TINY)
        correlation = (products / power / self.correlation)[..., _SHORTEST_LAG:]
        highest, place = correlation.max(dim=-1, keepdim=True)
        lag = place + _SHORTEST_LAG
        for divisor in _PARTS_OF_LAG:
            part = torch.round(lag / divisor).long()
            at_part = correlation.gather(-1, (part - _SHORTEST_LAG).clamp_min(0))
            shorter = (part >= _SHORTEST_LAG) & (at_part > _NEARLY * highest)
            lag = torch.where(shorter, part, lag)
        semitones = 12 * torch.log2(SAMPLE_RATE / lag)
        return torch.where(highest > _VOICED, semitones, torch.nan).squeeze(-1)


def _autocorrelation(frames: Tensor) -> Tensor:
    power = torch.fft.rfft(frames, n=_FFT_SAMPLES).abs().square()
    result: Tensor = torch.fft.irfft(power, n=_FFT_SAMPLES)
    return result
