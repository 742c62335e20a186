"""How often a random model speaks: set on the recording that is measured with."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from parakeet_worker.engine.base import SAMPLE_RATE, Samples
from parakeet_worker.engine.native.decoder import GreedyDecoder, Joint, Predictor, Scorer
from parakeet_worker.engine.native.encoder import Encoder
from parakeet_worker.engine.native.features import Features
from parakeet_worker.engine.native.precision import Precision

_DURATIONS = (0, 1, 2, 3, 4)
_MAX_SYMBOLS = 10
_HALVINGS = 14
_WIDEST_BIAS = 40.0


@dataclass(frozen=True, slots=True, eq=False)
class Parts:
    """The modules of one model."""

    features: Features
    encoder: Encoder
    predictor: Predictor
    joint: Joint

    def state(self) -> dict[str, Tensor]:
        """All weights under NeMo's names."""
        named: dict[str, nn.Module] = {
            "preprocessor.featurizer": self.features,
            "encoder": self.encoder,
            "decoder": self.predictor,
            "joint": self.joint,
        }
        return {
            f"{part}.{name}": tensor.detach().clone()
            for part, module in named.items()
            for name, tensor in module.state_dict().items()
        }

    @property
    def subsampled(self) -> nn.Linear:
        layer = self.encoder.pre_encode.out
        assert isinstance(layer, nn.Linear)
        return layer

    @property
    def outputs(self) -> nn.Linear:
        layer = self.joint.joint_net[-1]
        assert isinstance(layer, nn.Linear)
        return layer


@dataclass(frozen=True, slots=True)
class Pace:
    """How often the model speaks, and how many steps that takes, per second of audio."""

    blank_bias: float
    tokens_per_second: float
    steps_per_second: float


@torch.no_grad()
def enliven(parts: Parts) -> None:
    """Give weights to what starts at nothing, and let the joint network be moved by its inputs."""
    for name, tensor in parts.encoder.state_dict().items():
        if name.endswith(("pos_bias_u", "pos_bias_v")):
            tensor.normal_(std=0.1)
    for layer in (parts.joint.enc, parts.joint.pred, parts.outputs):
        layer.weight.normal_(std=layer.in_features**-0.5 * 2)
        layer.bias.zero_()
    for name, tensor in parts.predictor.state_dict().items():
        if "lstm" in name:
            tensor.normal_(std=tensor.shape[-1] ** -0.5)
    embed: Any = parts.predictor.prediction["embed"]
    embed.weight[-1].zero_()


@torch.inference_mode()
def set_pace(
    parts: Parts,
    *,
    tokens_per_second: float,
    duration_biases: Sequence[float],
    pieces: Sequence[Samples],
) -> Pace:
    """Find the blank's bias at which the greedy search emits `tokens_per_second`."""
    seconds = sum(map(len, pieces)) / SAMPLE_RATE
    mels, mel_lengths = _mels(parts, pieces)
    _standardise(parts.subsampled, lambda: parts.encoder.pre_encode(mels, mel_lengths))
    states, lengths = parts.encoder(mels, mel_lengths)
    _standardise(parts.joint.enc, lambda: parts.joint.enc(states))
    bias = parts.outputs.bias
    blank = parts.joint.config.vocabulary
    bias[blank + 1 :] = torch.tensor(duration_biases)
    tried = []
    low, high = -_WIDEST_BIAS, _WIDEST_BIAS
    for _ in range(_HALVINGS):
        bias[blank] = middle = (low + high) / 2
        tried.append(_pace(parts, states, lengths, seconds, middle))
        if tried[-1].tokens_per_second > tokens_per_second:
            low = middle
        else:
            high = middle
    closest = min(tried, key=lambda pace: abs(pace.tokens_per_second - tokens_per_second))
    bias[blank] = closest.blank_bias
    return closest


def _mels(parts: Parts, pieces: Sequence[Samples]) -> tuple[Tensor, Tensor]:
    samples = [torch.from_numpy(piece) for piece in pieces]
    lengths = torch.tensor([len(piece) for piece in samples])
    mels, valid = parts.features(pad_sequence(samples, batch_first=True), lengths)
    return mels, valid


def _standardise(layer: nn.Linear, run: Callable[[], object]) -> None:
    """Scale a layer so that what it gives while `run` has no mean and a deviation of one.

    Random networks answer nearly the same to everything: what their frames share would hide what
    separates them, above all in few bits.
    """
    seen: list[Tensor] = []
    hook = layer.register_forward_hook(lambda _layer, _inputs, out: seen.append(out.flatten(0, -2)))
    run()
    hook.remove()
    (result,) = seen
    mean = result.mean(dim=0)
    deviation = (result - mean).std()
    layer.bias.sub_(mean).div_(deviation)
    layer.weight.div_(deviation)


def _pace(parts: Parts, states: Tensor, lengths: Tensor, seconds: float, blank_bias: float) -> Pace:
    scored: list[int] = []
    hook = parts.joint.joint_net.register_forward_hook(
        lambda _module, _inputs, scores: scored.append(len(scores))
    )
    decoder = GreedyDecoder(
        Scorer.of(parts.predictor, parts.joint, Precision.FP32), _DURATIONS, _MAX_SYMBOLS
    )
    rows = decoder.decode(states, lengths)
    hook.remove()
    tokens = sum(len(row) for row in rows)
    return Pace(blank_bias, tokens / seconds, sum(scored) / seconds)
