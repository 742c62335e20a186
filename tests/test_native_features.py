import math
from typing import Any

import pytest
import torch

from parakeet_worker.engine.native.features import Features, FeaturesConfig, mel_filters
from parakeet_worker.errors import WeightsUnsupported
from tiny_model import config


@pytest.fixture
def features() -> Features:
    return Features.from_config(config()["preprocessor"])


def test_an_utterance_has_the_same_features_alone_and_padded_in_a_batch(
    features: Features,
) -> None:
    torch.manual_seed(0)
    lengths = torch.tensor([16_000, 4_321, 1_600])
    batch = torch.randn(3, 16_000) * 0.1
    together, frames = features(batch, lengths)
    assert frames.tolist() == [100, 27, 10]
    for row, length in enumerate(lengths.tolist()):
        alone, _ = features(batch[row : row + 1, :length], torch.tensor([length]))
        valid = length // 160
        assert torch.allclose(together[row, :, :valid], alone[0, :, :valid], atol=1e-5)
        assert not together[row, :, valid:].any(), "padding is zero"


def test_every_band_has_zero_mean_and_unit_unbiased_deviation(features: Features) -> None:
    torch.manual_seed(1)
    mels, frames = features(torch.randn(1, 32_000), torch.tensor([32_000]))
    valid = mels[0, :, : int(frames)]
    assert torch.allclose(valid.mean(dim=1), torch.zeros(80), atol=1e-4)
    assert torch.allclose(valid.std(dim=1), torch.ones(80), atol=1e-3)


def test_a_tone_has_its_maximum_in_the_band_of_its_frequency(features: Features) -> None:
    time = torch.arange(16_000) / 16_000
    power = features.fb[0] @ torch.fft.rfft(torch.sin(2 * math.pi * 1000 * time)[:512]).abs().pow(2)
    filters = features.fb[0]
    centres_hz = (filters * torch.linspace(0, 8000, 257)).sum(1) / filters.sum(1)
    assert abs(float(centres_hz[power.argmax()]) - 1000) < 40


def test_filters_have_unit_area_in_hertz() -> None:
    filters = mel_filters(FeaturesConfig.from_nemo(config()["preprocessor"] | {"features": 20}))
    hertz_per_bin = 16_000 / 512
    assert torch.allclose(filters.sum(dim=1) * hertz_per_bin, torch.ones(20), atol=0.06)


@pytest.mark.parametrize("length", [0, 1, 159, 160, 320])
def test_the_shortest_audio_gives_finite_features(features: Features, length: int) -> None:
    mels, frames = features(torch.zeros(1, max(1, length)), torch.tensor([length]))
    assert int(frames) == length // 160
    assert torch.isfinite(mels).all()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("normalize", "all_features"),
        ("window", "hamming"),
        ("frame_splicing", 3),
        ("log", False),
        ("exact_pad", True),
        ("mag_power", 1.0),
        ("log_zero_guard_type", "clamp"),
        ("pad_value", -16.0),
        ("some_new_option", 1),
    ],
)
def test_an_unsupported_option_is_rejected(key: str, value: Any) -> None:
    with pytest.raises(WeightsUnsupported, match=f"preprocessor.{key}"):
        Features.from_config(config()["preprocessor"] | {key: value})
