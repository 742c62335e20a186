"""Weight folding: the parameters of `Encoder` to the tensors that `FusedEncoder` runs on.

The three attention projections become one matrix that includes the content bias and the scale;
batch norm is folded into the depthwise convolution, the factor 0.5 of a feed-forward module into
its second matrix.
"""

import math

import torch
from torch import Tensor, nn

from parakeet_worker.engine.native.encoder import (
    ConformerLayer,
    Convolution,
    Encoder,
    FeedForward,
    RelativeAttention,
    Subsampling,
)
from parakeet_worker.engine.native.precision import Precision, packed
from parakeet_worker.engine.native.tensors import add_prefix


@torch.inference_mode()
def fold(encoder: Encoder, precision: Precision) -> dict[str, Tensor]:
    """Fold `encoder` in `precision`; every tensor is contiguous and owns its memory."""
    folded = add_prefix("subsampling", _subsampling(encoder.pre_encode, precision))
    for number, layer in enumerate(encoder.layers):
        assert isinstance(layer, ConformerLayer)
        folded |= add_prefix(f"layers.{number}", _layer(layer, precision))
    return {name: tensor.detach().clone().contiguous() for name, tensor in folded.items()}


def _subsampling(plain: Subsampling, precision: Precision) -> dict[str, Tensor]:
    folded = add_prefix("out", _matrix(plain.out, precision))
    convolutions = [layer for layer in plain.conv if isinstance(layer, nn.Conv2d)]
    for number, layer in enumerate(convolutions):
        pointwise = layer.kernel_size == (1, 1)
        kept = _matrix(layer, precision) if pointwise else _weights(layer, precision)
        folded |= add_prefix(f"conv.{number}", kept)
    return folded


def _layer(plain: ConformerLayer, precision: Precision) -> dict[str, Tensor]:
    norms = {
        "feed_forward1": plain.norm_feed_forward1,
        "self_attn": plain.norm_self_att,
        "conv": plain.norm_conv,
        "feed_forward2": plain.norm_feed_forward2,
        "out": plain.norm_out,
    }
    folded: dict[str, Tensor] = {}
    for name, norm in norms.items():
        folded |= add_prefix(f"norms.{name}", _weights(norm, precision))
    return (
        folded
        | add_prefix("feed_forward1", _feed_forward(plain.feed_forward1, precision))
        | add_prefix("self_attn", _attention(plain.self_attn, precision))
        | add_prefix("conv", _convolution(plain.conv, precision))
        | add_prefix("feed_forward2", _feed_forward(plain.feed_forward2, precision))
    )


def _feed_forward(plain: FeedForward, precision: Precision) -> dict[str, Tensor]:
    return add_prefix("linear1", _matrix(plain.linear1, precision)) | add_prefix(
        "linear2", _matrix(plain.linear2, precision, factor=0.5)
    )


def _convolution(plain: Convolution, precision: Precision) -> dict[str, Tensor]:
    norm, depthwise = plain.batch_norm, plain.depthwise_conv
    assert norm.running_mean is not None
    assert norm.running_var is not None
    gain = norm.weight / torch.sqrt(norm.running_var + norm.eps)
    offset = norm.bias - norm.running_mean * gain
    if depthwise.bias is not None:
        offset = offset + depthwise.bias * gain
    weight = depthwise.weight * gain[:, None, None]
    return {
        **add_prefix("pointwise_conv1", _matrix(plain.pointwise_conv1, precision)),
        **add_prefix("pointwise_conv2", _matrix(plain.pointwise_conv2, precision)),
        "weight": weight.unsqueeze(-1).to(precision.dtype),
        "bias": offset.to(precision.dtype),
    }


def _attention(plain: RelativeAttention, precision: Precision) -> dict[str, Tensor]:
    scale = 1 / math.sqrt(plain.head_width)
    parts = (plain.linear_q, plain.linear_k, plain.linear_v)
    weight = torch.cat([part.weight for part in parts])
    width = weight.shape[1]
    bias = torch.cat(
        [part.bias if part.bias is not None else part.weight.new_zeros(width) for part in parts]
    )
    bias[:width] += plain.pos_bias_u.flatten()
    weight[:width] *= scale
    bias[:width] *= scale
    position_bias = (plain.pos_bias_v - plain.pos_bias_u) * scale
    return {
        **add_prefix("qkv", packed(weight, bias, precision)),
        **add_prefix("out", _matrix(plain.linear_out, precision)),
        "position_bias": position_bias[:, None, :].to(precision.dtype),
        "position_weight": plain.linear_pos.weight.to(precision.dtype),
    }


def _matrix(plain: nn.Module, precision: Precision, factor: float = 1.0) -> dict[str, Tensor]:
    """A linear layer or pointwise convolution as a matrix."""
    assert isinstance(plain, nn.Linear | nn.Conv1d | nn.Conv2d)
    bias = None if plain.bias is None else plain.bias * factor
    return packed(plain.weight.flatten(1) * factor, bias, precision)


def _weights(plain: nn.Module, precision: Precision) -> dict[str, Tensor]:
    return {name: tensor.to(precision.dtype) for name, tensor in plain.named_parameters()}
