"""Prediction and joint network, laid out for the kernels of a search."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from parakeet_worker.engine.native.decoder import joint_outputs
from parakeet_worker.engine.native.kernels import joint_scores
from parakeet_worker.engine.native.kernels.lstm import Layer
from parakeet_worker.engine.native.kernels.tiles import Tile
from parakeet_worker.engine.native.tensors import Tensors, strip_prefix


@dataclass(frozen=True, slots=True, eq=False)
class SearchModel:
    """The parts of a checkpoint that the search uses, in float32 on the device."""

    predictor: Tensors
    """Prediction network, under the names of `decoder.Predictor`."""
    joint: Tensors
    """Joint network, under the names of `decoder.Joint`."""
    activation: str
    durations: tuple[int, ...]
    max_symbols: int


@dataclass(frozen=True, slots=True, eq=False)
class SearchWeights:
    """Weights for the kernels; H is the width of the LSTM, J of the joint network."""

    encode: Tensor
    """(J, encoder width); its bias is part of `predict_bias`."""
    layers: tuple[Layer, ...]
    predict: Tensor
    """(H, J)."""
    predict_bias: Tensor
    """(J,) float32."""
    outputs: Tensor
    """(V + 1 + durations, J)."""
    outputs_bias: Tensor
    """Float32."""
    tokens: int
    """V + 1; the blank is the last token."""
    logit_bias: Tensor
    """(slots, V + 1 and padding) float32, added to the logits of the slot's rows."""
    durations: Tensor
    """(durations,) int32."""

    @classmethod
    def of(
        cls, model: SearchModel, dtype: torch.dtype, device: torch.device, slots: int, tile: Tile
    ) -> "SearchWeights":
        joint, outputs = model.joint, joint_outputs(model.joint)
        tokens = len(model.predictor["prediction.embed.weight"])
        return cls(
            encode=_aligned_copy(joint["enc.weight"], dtype),
            layers=tuple(_layers(model.predictor, dtype)),
            predict=_transposed(joint["pred.weight"], dtype),
            predict_bias=(joint["pred.bias"] + joint["enc.bias"]).float(),
            outputs=_aligned_copy(joint[f"{outputs}.weight"], dtype),
            outputs_bias=_aligned_copy(joint[f"{outputs}.bias"], torch.float32),
            tokens=tokens,
            logit_bias=torch.zeros(
                slots, joint_scores.blocks(tokens, tile) * tile.columns, device=device
            ),
            durations=torch.tensor(model.durations, dtype=torch.int32, device=device),
        )

    @property
    def blank(self) -> int:
        return self.tokens - 1

    @property
    def nbytes(self) -> int:
        layers = [
            weight for layer in self.layers for weight in (layer.input_weight, layer.hidden_weight)
        ]
        weights = (self.encode, self.predict, self.outputs, self.logit_bias, *layers)
        return sum(weight.nbytes for weight in weights)


def _aligned_copy(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """Copy into newly allocated, aligned memory; a view of a mapped file may be unaligned."""
    return weight.to(dtype, copy=True).contiguous()


def _transposed(weight: Tensor, dtype: torch.dtype) -> Tensor:
    return weight.t().to(dtype).contiguous()


def _layers(predictor: Tensors, dtype: torch.dtype) -> Iterator[Layer]:
    lstm = strip_prefix("prediction.dec_rnn.lstm", predictor)
    for layer in range(sum(name.startswith("weight_hh_l") for name in lstm)):
        bias = (lstm[f"bias_ih_l{layer}"] + lstm[f"bias_hh_l{layer}"]).float()
        input_weight = _transposed(lstm[f"weight_ih_l{layer}"], dtype)
        if layer == 0:
            embedding = predictor["prediction.embed.weight"].float()
            input_weight = embedding @ lstm["weight_ih_l0"].float().t() + bias
        yield Layer(input_weight, bias, _transposed(lstm[f"weight_hh_l{layer}"], dtype))
