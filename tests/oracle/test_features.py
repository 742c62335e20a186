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
    found: tuple[Tensor, Tensor] = Features.from_config(section)(samples, lengths)
    return found


def nemo(section: dict[str, Any], pieces: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    options = {key: value for key, value in section.items() if key != "_target_"}
    preprocessor = AudioToMelSpectrogramPreprocessor(**options).eval()
    found: tuple[Tensor, Tensor] = preprocessor(
        input_signal=pad_sequence(list(pieces), batch_first=True),
        length=torch.tensor([len(piece) for piece in pieces]),
    )
    return found


def transformers(section: dict[str, Any], pieces: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    extractor = ParakeetFeatureExtractor(feature_size=section["features"])
    found = extractor(
        [piece.numpy() for piece in pieces], sampling_rate=16_000, return_tensors="pt"
    )
    return found.input_features.transpose(1, 2), found.attention_mask.sum(dim=1)


@pytest.mark.parametrize("reference", [nemo, transformers])
def test_a_padded_batch_has_the_same_features(
    section: dict[str, Any], batch: list[Tensor], reference: Any
) -> None:
    ours, frames = native(section, batch)
    theirs, their_frames = reference(section, batch)
    assert torch.equal(frames, their_frames)
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().max() < TOLERANCE


@pytest.mark.parametrize("reference", [nemo, transformers])
def test_every_utterance_alone_has_the_same_features(
    section: dict[str, Any], batch: list[Tensor], reference: Any
) -> None:
    for piece in batch:
        ours, frames = native(section, [piece])
        theirs, their_frames = reference(section, [piece])
        assert torch.equal(frames, their_frames)
        assert (ours - theirs).abs().max() < TOLERANCE


def test_the_mel_filters_are_those_that_nemo_puts_into_a_checkpoint(
    section: dict[str, Any],
) -> None:
    options = {key: value for key, value in section.items() if key != "_target_"}
    theirs = AudioToMelSpectrogramPreprocessor(**options).featurizer.state_dict()
    ours = Features.from_config(section).state_dict()
    assert sorted(ours) == sorted(theirs)
    for name, tensor in ours.items():
        assert torch.allclose(tensor, theirs[name], rtol=1e-5, atol=1e-9), name
