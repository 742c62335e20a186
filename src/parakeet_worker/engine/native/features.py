"""Log-mel features, equal to those of NeMo's `AudioToMelSpectrogramPreprocessor`."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from parakeet_worker.engine.native.config_section import ConfigSection

_STD_FLOOR = 1e-5


@dataclass(frozen=True, slots=True)
class FeaturesConfig:
    """Hyperparameters of the features, from a checkpoint."""

    sample_rate: int
    mels: int
    window_samples: int
    hop_samples: int
    fft_samples: int
    preemphasis: float
    low_hz: float
    high_hz: float
    log_guard: float

    @classmethod
    def from_nemo(cls, section: Mapping[str, object]) -> "FeaturesConfig":
        """From NeMo's `preprocessor` section; raises `WeightsUnsupported`."""
        options = ConfigSection("preprocessor", section)
        options.expect_target("AudioToMelSpectrogramPreprocessor")
        sample_rate = options.get_int("sample_rate", 16_000)
        window_samples = round(options.get_float("window_size", 0.02) * sample_rate)
        config = cls(
            sample_rate=sample_rate,
            mels=options.get_int("features", 64),
            window_samples=window_samples,
            hop_samples=round(options.get_float("window_stride", 0.01) * sample_rate),
            fft_samples=options.get_int("n_fft", 2 ** math.ceil(math.log2(window_samples))),
            preemphasis=options.get_float("preemph", 0.97),
            low_hz=options.get_float("lowfreq", 0.0),
            high_hz=options.get_float("highfreq", sample_rate / 2),
            log_guard=options.get_float("log_zero_guard_value", 2**-24),
        )
        options.get_choice("window", "hann", default="hann")
        options.get_choice("normalize", "per_feature", default="per_feature")
        options.get_choice("log", True, default=True)
        options.get_choice("log_zero_guard_type", "add", default="add")
        options.get_choice("frame_splicing", 1, default=1)
        options.get_choice("exact_pad", False, default=False)
        options.get_choice("mag_power", 2.0, default=2.0)
        options.get_choice("mel_norm", "slaney", default="slaney")
        options.get_choice("pad_value", 0.0, default=0.0)
        # `pad_to` only adds masked frames; the others are used in training only.
        options.ignore(
            "pad_to", "dither", "nb_augmentation_prob", "nb_max_freq", "rng", "use_grads"
        )
        options.ignore("stft_conv", "stft_exact_pad", "use_torchaudio", "max_duration")
        options.reject_unread()
        return config


class Features(nn.Module):
    """Log-mel features, normalised per mel band over the valid frames of each utterance.

    As in NeMo >= 2.5 (`FilterbankFeatures`): pre-emphasis is masked and the STFT is zero-padded, so
    that an utterance has the same features alone and in a padded batch.
    """

    window: Tensor
    fb: Tensor

    def __init__(self, config: FeaturesConfig) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("window", torch.hann_window(config.window_samples, periodic=False))
        self.register_buffer("fb", mel_filters(config).unsqueeze(0))

    @classmethod
    def from_config(cls, section: Mapping[str, object]) -> "Features":
        return cls(FeaturesConfig.from_nemo(section))

    def forward(self, samples: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """(B, N) float32 samples and (B,) lengths -> (B, mels, T) and (B,) frames, `N // hop`."""
        config = self.config
        emphasised = torch.cat(
            (samples[:, :1], samples[:, 1:] - config.preemphasis * samples[:, :-1]), dim=1
        )
        emphasised = emphasised.masked_fill(~_valid(lengths, samples.shape[1]), 0.0)
        spectrum = torch.stft(
            emphasised,
            n_fft=config.fft_samples,
            hop_length=config.hop_samples,
            win_length=config.window_samples,
            window=self.window,
            center=True,
            pad_mode="constant",
            return_complex=True,
        )
        power = torch.view_as_real(spectrum).pow(2).sum(-1)
        mels = torch.log(torch.matmul(self.fb, power) + config.log_guard)
        frames = torch.div(lengths, config.hop_samples, rounding_mode="floor")
        return _normalise(mels, frames), frames


def mel_filters(config: FeaturesConfig) -> Tensor:
    """Triangular filters of unit area on the Slaney mel scale, (mels, fft_samples // 2 + 1).

    Slaney, "Auditory Toolbox", 1998: linear below 1 kHz, logarithmic above.
    """
    edges_mel = torch.linspace(
        _mel(config.low_hz), _mel(config.high_hz), config.mels + 2, dtype=torch.float64
    )
    edges_hz = _hz(edges_mel)
    bins_hz = torch.linspace(
        0, config.sample_rate / 2, config.fft_samples // 2 + 1, dtype=torch.float64
    )
    widths = edges_hz.diff()
    ramps = edges_hz[:, None] - bins_hz[None, :]
    lower = -ramps[:-2] / widths[:-1, None]
    upper = ramps[2:] / widths[1:, None]
    triangles = torch.minimum(lower, upper).clamp(min=0)
    areas = 2.0 / (edges_hz[2:] - edges_hz[:-2])
    filters: Tensor = (triangles * areas[:, None]).float()
    return filters


_LINEAR_HZ_PER_MEL = 200.0 / 3
_KNEE_HZ = 1000.0
_KNEE_MEL = _KNEE_HZ / _LINEAR_HZ_PER_MEL
_LOG_STEP = math.log(6.4) / 27.0


def _mel(hertz: float) -> float:
    if hertz < _KNEE_HZ:
        return hertz / _LINEAR_HZ_PER_MEL
    return _KNEE_MEL + math.log(hertz / _KNEE_HZ) / _LOG_STEP


def _hz(mels: Tensor) -> Tensor:
    linear = mels * _LINEAR_HZ_PER_MEL
    logarithmic = _KNEE_HZ * torch.exp(_LOG_STEP * (mels - _KNEE_MEL))
    return torch.where(mels < _KNEE_MEL, linear, logarithmic)


def _normalise(mels: Tensor, frames: Tensor) -> Tensor:
    """Normalise each band to zero mean and unit (unbiased) deviation; padding becomes zero."""
    valid = _valid(frames, mels.shape[2]).unsqueeze(1)
    count = frames.view(-1, 1, 1).to(mels.dtype)
    mean = torch.where(valid, mels, 0.0).sum(dim=2, keepdim=True) / count.clamp(min=1)
    centred = torch.where(valid, mels - mean, 0.0)
    deviation = (centred.pow(2).sum(dim=2, keepdim=True) / (count - 1).clamp(min=1)).sqrt()
    return centred / (deviation + _STD_FLOOR)


def _valid(lengths: Tensor, size: int) -> Tensor:
    """(B,) lengths -> (B, size) mask that is true for valid positions."""
    return torch.arange(size, device=lengths.device) < lengths.unsqueeze(1)
