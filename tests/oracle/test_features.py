"""Log-mel features against NeMo's preprocessor and transformers' extractor."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from nemo.collections.asr.modules import AudioToMelSpectrogramPreprocessor
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import ParakeetFeatureExtractor

import tiny_model
from parakeet_worker.engine.native.features import Features
from utterances import Utterance

# Three ways to sum the same float32 numbers; features have a deviation of 1.
TOLERANCE = 1e-4


@pytest.fixture(scope="module", params=[80, 128], ids=["80 mels", "128 mels"])
def section(request: pytest.FixtureRequest) -> dict[str, Any]:
    return tiny_model.config()["preprocessor"] | {"features": request.param}


@pytest.fixture(scope="module")
def batch(spoken: Sequence[Utterance]) -> list[Tensor]:
    """Speech of many lengths, the shortest two frames long, one of them silent."""
    pieces = [torch.from_numpy(utterance.samples) for utterance in spoken[::25]]
    cut = [pieces[0][:length] for length in (320, 321, 479, 1_600, 12_345)]
    return [*pieces, *cut, torch.zeros(8_000)]


def native(section: dict[str, Any], pieces: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    samples = pad_sequence(list(pieces), batch_first=True)
    lengths = torch.tensor([len(piece) for piece in pieces])
    features: tuple[Tensor, Tensor] = Features.from_config(section)(samples, lengths)
    return features


def nemo(section: dict[str, Any], pieces: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    options = {key: value for key, value in section.items() if key != "_target_"}
    preprocessor = AudioToMelSpectrogramPreprocessor(**options).eval()
    features: tuple[Tensor, Tensor] = preprocessor(
        input_signal=pad_sequence(list(pieces), batch_first=True),
        length=torch.tensor([len(piece) for piece in pieces]),
    )
    return features


def transformers(section: dict[str, Any], pieces: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    extractor = ParakeetFeatureExtractor(feature_size=section["features"])
    features = extractor(
        [piece.numpy() for piece in pieces], sampling_rate=16_000, return_tensors="pt"
    )
    return features.input_features.transpose(1, 2), features.attention_mask.sum(dim=1)


@pytest.mark.parametrize("reference", [nemo, transformers])
def test_a_padded_batch_has_the_same_features(
    section: dict[str, Any], batch: list[Tensor], reference: Any
) -> None:
    native_mels, frames = native(section, batch)
    reference_mels, reference_frames = reference(section, batch)
    assert torch.equal(frames, reference_frames)
    assert native_mels.shape == reference_mels.shape
    assert (native_mels - reference_mels).abs().max() < TOLERANCE


@pytest.mark.parametrize("reference", [nemo, transformers])
def test_every_utterance_alone_has_the_same_features(
    section: dict[str, Any], batch: list[Tensor], reference: Any
) -> None:
    for piece in batch:
        native_mels, frames = native(section, [piece])
        reference_mels, reference_frames = reference(section, [piece])
        assert torch.equal(frames, reference_frames)
        assert (native_mels - reference_mels).abs().max() < TOLERANCE


def test_the_mel_filters_equal_those_of_a_nemo_checkpoint(
    section: dict[str, Any],
) -> None:
    options = {key: value for key, value in section.items() if key != "_target_"}
    reference_mels = AudioToMelSpectrogramPreprocessor(**options).featurizer.state_dict()
    native_mels = Features.from_config(section).state_dict()
    assert sorted(native_mels) == sorted(reference_mels)
    for name, tensor in native_mels.items():
        assert torch.allclose(tensor, reference_mels[name], rtol=1e-5, atol=1e-9), name
