"""Encoder states against NeMo's ConformerEncoder and transformers' ParakeetEncoder."""

import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import pytest
import torch
from nemo.collections.asr.modules import ConformerEncoder
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import ParakeetEncoder, ParakeetEncoderConfig
from transformers_models import encoder_config, encoder_weights

import tiny_model
from parakeet_worker.engine.base import Samples
from parakeet_worker.engine.native import checkpoint
from parakeet_worker.engine.native.encoder import Encoder
from parakeet_worker.engine.native.features import Features
from parakeet_worker.engine.native.folding import fold
from parakeet_worker.engine.native.fused import FusedEncoder
from parakeet_worker.engine.native.precision import Precision
from parakeet_worker.engine.native.tensors import strip_prefix
from utterances import Utterance

Section: TypeAlias = dict[str, Any]
Weights: TypeAlias = dict[str, Tensor]
Encode: TypeAlias = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]

# States are normalised to a deviation of 1; these are float32 sums in another order.
TOLERANCE = 1e-4

FULL_SIZE: Section = tiny_model.config()["encoder"] | {
    "feat_in": 128,
    "n_layers": 24,
    "d_model": 1024,
    "n_heads": 8,
    "ff_expansion_factor": 4,
    "subsampling_conv_channels": 256,
}

VARIANTS: dict[str, Section] = {
    "biases and scaling": {"use_bias": True, "xscaling": True},
    # All utterances are longer than the table of positions to begin with.
    "short table": {"pos_emb_max_len": 4},
}


def nemo(section: Section, weights: Weights) -> Encode:
    encoder = made(lambda: ConformerEncoder(**without_target(section)), weights)

    def encode(mels: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        states, valid = encoder(audio_signal=mels, length=lengths)
        return states.transpose(1, 2), valid

    return encode


def transformers(section: Section, weights: Weights) -> Encode:
    config = ParakeetEncoderConfig(**encoder_config(section))
    encoder = made(lambda: ParakeetEncoder(config), encoder_weights(weights))

    def encode(mels: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        inside = torch.arange(mels.shape[2]) < lengths.unsqueeze(1)
        states = encoder(mels.transpose(1, 2), attention_mask=inside)
        return states.last_hidden_state, states.attention_mask.sum(dim=1)

    return encode


def plain(section: Section, weights: Weights) -> Encode:
    encoder: Encode = made(lambda: Encoder.from_config(section), weights)
    return encoder


def fused(section: Section, weights: Weights) -> Encode:
    encoder = made(lambda: Encoder.from_config(section), weights)
    return FusedEncoder(
        fold(encoder, Precision.FP32), encoder.config, Precision.FP32, torch.device("cpu")
    )


def made(build: Callable[[], Any], weights: Weights) -> Any:
    """A module on the given weights, without a copy."""
    module = build()
    module.load_state_dict(weights, assign=True)
    return module.eval()


def without_target(section: Section) -> Section:
    return {key: value for key, value in section.items() if key != "_target_"}


@dataclass(frozen=True, slots=True, eq=False)
class Encoded:
    """States of a padded batch, and of each of its rows alone."""

    together: Tensor
    valid: Tensor
    alone: tuple[Tensor, ...]


@torch.inference_mode()
def encoded(encode: Encode, section: Section, pieces: Sequence[Samples]) -> Encoded:
    features = Features.from_config(
        tiny_model.config()["preprocessor"] | {"features": section["feat_in"]}
    )
    samples = pad_sequence([torch.from_numpy(piece) for piece in pieces], batch_first=True)
    lengths = torch.tensor([len(piece) for piece in pieces])
    mels, frames = features(samples, lengths)
    together, valid = encode(mels, frames)
    alone = []
    for row, length in enumerate(frames.tolist()):
        row_states, _ = encode(mels[row : row + 1, :, :length], frames[row : row + 1])
        alone.append(row_states[0].float())
    return Encoded(together.float(), valid, tuple(alone))


@pytest.fixture(scope="module", params=["demo", "full size", "biases and scaling", "short table"])
def outcomes(
    request: pytest.FixtureRequest, demo_path: Path, spoken: Sequence[Utterance]
) -> dict[str, Encoded]:
    """The same weights in four encoders, one after the other: the largest are 2.4 GB each."""
    if request.param == "demo":
        read = checkpoint.read_checkpoint(demo_path)
        section, weights = dict(read.encoder), strip_prefix("encoder", read.weights)
        pieces = [utterance.samples for utterance in spoken[::20]]
    elif request.param == "full size":
        section, weights = FULL_SIZE, random_weights(FULL_SIZE)
        pieces = [nearest(spoken, seconds) for seconds in (3.5, 2.0, 0.6)]
    else:
        section = tiny_model.config()["encoder"] | VARIANTS[request.param]
        weights = random_weights(section)
        pieces = [utterance.samples for utterance in spoken[::40]]
    states = {}
    for encoder in (nemo, transformers, plain, fused):
        states[encoder.__name__] = encoded(encoder(section, weights), section, pieces)
        gc.collect()
    return states


def nearest(spoken: Sequence[Utterance], seconds: float) -> Samples:
    return min(
        (each.samples for each in spoken), key=lambda piece: abs(len(piece) - seconds * 16_000)
    )


@torch.no_grad()
def random_weights(section: Section) -> Weights:
    """Random weights, including those that are initialised with zero or one."""
    torch.manual_seed(0)
    weights = Encoder.from_config(section).state_dict()
    for name, tensor in weights.items():
        if name.endswith("running_var"):
            tensor.uniform_(0.5, 2.0)
        elif name.endswith(("pos_bias_u", "pos_bias_v", "running_mean")):
            tensor.normal_()
        elif ".norm_" in name or (".batch_norm." in name and tensor.is_floating_point()):
            tensor.add_(torch.randn_like(tensor) * 0.2)
    return weights


@pytest.mark.parametrize("native", ["plain", "fused"])
@pytest.mark.parametrize("reference", ["nemo", "transformers"])
def test_a_padded_batch_has_the_same_states(
    outcomes: dict[str, Encoded], native: str, reference: str
) -> None:
    states, expected = outcomes[native], outcomes[reference]
    assert states.valid.tolist() == expected.valid.tolist()
    assert states.together.shape == expected.together.shape
    for row, length in enumerate(states.valid.tolist()):
        difference = states.together[row, :length] - expected.together[row, :length]
        assert difference.abs().max() < TOLERANCE


@pytest.mark.parametrize("native", ["plain", "fused"])
@pytest.mark.parametrize("reference", ["nemo", "transformers"])
def test_every_utterance_alone_has_the_same_states(
    outcomes: dict[str, Encoded], native: str, reference: str
) -> None:
    for states, expected in zip(outcomes[native].alone, outcomes[reference].alone, strict=True):
        assert states.shape == expected.shape
        assert (states - expected).abs().max() < TOLERANCE


@pytest.mark.parametrize("native", ["plain", "fused"])
def test_an_utterance_has_the_same_states_alone_and_in_a_batch(
    outcomes: dict[str, Encoded], native: str
) -> None:
    states = outcomes[native]
    for row, alone in enumerate(states.alone):
        assert (states.together[row, : len(alone)] - alone).abs().max() < TOLERANCE
