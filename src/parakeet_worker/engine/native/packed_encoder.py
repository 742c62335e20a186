"""The encoder on packed rows: chunks end to end, so that no padding is computed.

Computes the same states as `FusedEncoder` on a padded batch, from the same folded tensors. All
operations except matrix products are `kernels`.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional

from parakeet_worker.engine.native.encoder import EncoderConfig, relative_positions
from parakeet_worker.engine.native.kernels.kernel_set import Kernels
from parakeet_worker.engine.native.rows import FACTOR, Group, Rows
from parakeet_worker.engine.native.tensors import Tensors, strip_prefix

LONGEST_TOKENS = 1024
"""Maximum length of a row, 82 s: position scores grow with the square of the length."""
GROUP_TOKENS = 8192
"""Tokens per pass of the subsampling, whose planes take 34 KB per token."""

_COLUMN_ALIGNMENT = 8
Affine = tuple[Tensor, Tensor]


class PackedEncoder:
    """Runs on the tensors of `folding.fold` in bfloat16 or float16, on one device."""

    def __init__(
        self,
        folded: Tensors,
        config: EncoderConfig,
        kernels: Kernels,
        longest: int = LONGEST_TOKENS,
    ) -> None:
        """`longest` is the maximum length of a row in tokens.

        Raises `ValueError` for a subsampling other than by 8.
        """
        if config.subsampling_factor != FACTOR:
            raise ValueError(f"packed rows require a subsampling of {FACTOR}")
        self.longest = longest
        self._subsampling = _Subsampling(strip_prefix("subsampling", folded), config, kernels)
        self._layers = [
            _Layer(strip_prefix(f"layers.{number}", folded), config.heads, kernels)
            for number in range(config.layers)
        ]
        self._norm = kernels.residual_norm
        table = relative_positions(longest, config.width)
        self._position_keys = [layer.attention.position_keys(table) for layer in self._layers]

    @torch.inference_mode()
    def __call__(self, mels: Tensor, rows: Rows) -> Tensor:
        """(8 N, mels) frames -> (N, width) states; no row may exceed `longest`."""
        states = self._subsampling(mels, rows)
        normed: Tensor = self._norm(states, None, self._layers[0].first_norm)
        for index, layer in enumerate(self._layers):
            following = self._layers[index + 1 :][:1]
            normed = layer(
                states,
                normed,
                self._keys_for(index, rows.longest),
                rows,
                following[0].first_norm if following else None,
            )
        return normed

    def _keys_for(self, layer: int, longest: int) -> Tensor:
        """(heads, S, head width) for distances longest - 1 ... 1 - longest, S rounded up."""
        first = self.longest - longest
        columns = -(-(2 * longest - 1) // _COLUMN_ALIGNMENT) * _COLUMN_ALIGNMENT
        return self._position_keys[layer][:, first : first + max(columns, _COLUMN_ALIGNMENT)]


class _Subsampling:
    """Mel frames to the input states of the first layer."""

    def __init__(self, folded: Tensors, config: EncoderConfig, kernels: Kernels) -> None:
        self._kernels = kernels
        self._scale = math.sqrt(config.width) if config.scale_input else 1.0
        self._first, self._second, self._next = (
            _taps(strip_prefix(f"conv.{number}", folded)) for number in (0, 1, 3)
        )
        self._points = [_matrix(strip_prefix(f"conv.{number}", folded)) for number in (2, 4)]
        weight, bias = _matrix(strip_prefix("out", folded))
        channels = self._first[0].shape[1]
        # The planes are channels-last.
        channels_last = weight.view(len(weight), channels, -1).transpose(1, 2)
        self._out = channels_last.reshape(len(weight), -1).contiguous(), bias

    def __call__(self, mels: Tensor, rows: Rows) -> Tensor:
        width = self._out[0].shape[0]
        if len(rows.groups) == 1:
            return self._group(mels, rows, rows.groups[0])
        states = mels.new_empty(rows.tokens, width)
        for group in rows.groups:
            end = group.first + group.tokens
            states[group.first : end] = self._group(mels, rows, group)
        return states

    def _group(self, mels: Tensor, rows: Rows, group: Group) -> Tensor:
        product = self._kernels.product
        planes = self._kernels.subsampling_first(mels, self._first, self._second, rows, group)
        # `subsampling_next` applies the ReLU between the convolutions.
        planes = product(planes.flatten(0, 1), *self._points[0]).view(planes.shape)
        planes = self._kernels.subsampling_next(planes, *self._next, rows, group)
        planes = product(planes.flatten(0, 1), *self._points[1]).relu_().view(planes.shape)
        states = product(planes.flatten(1), *self._out)
        return states if self._scale == 1.0 else states * self._scale


class _Layer:
    """One conformer layer."""

    def __init__(self, folded: Tensors, heads: int, kernels: Kernels) -> None:
        self._norm = kernels.residual_norm
        self._product = kernels.product
        (
            self.first_norm,
            self._attention_norm,
            self._convolution_norm,
            self._second_norm,
            self._out,
        ) = (
            _affine(strip_prefix(f"norms.{name}", folded))
            for name in ("feed_forward1", "self_attn", "conv", "feed_forward2", "out")
        )
        self._first, self._second = (
            (
                _matrix(strip_prefix(f"{name}.linear1", folded)),
                _matrix(strip_prefix(f"{name}.linear2", folded)),
            )
            for name in ("feed_forward1", "feed_forward2")
        )
        self.attention = _Attention(strip_prefix("self_attn", folded), heads, kernels)
        self._convolution = _Convolution(strip_prefix("conv", folded), kernels)

    def __call__(
        self,
        states: Tensor,
        normed: Tensor,
        position_keys: Tensor,
        rows: Rows,
        next_norm: Affine | None,
    ) -> Tensor:
        """Update `states` in place; `normed` is their first norm.

        Returns the layer's states after `next_norm`, or unchanged without one.
        """
        normed = self._norm(states, self._feed_forward(normed, *self._first), self._attention_norm)
        attended = self.attention(normed, position_keys, rows)
        normed = self._norm(states, attended, self._convolution_norm)
        normed = self._norm(states, self._convolution(normed, rows), self._second_norm)
        update = self._feed_forward(normed, *self._second)
        result: Tensor = self._norm(states, update, self._out, next_norm)
        return result

    def _feed_forward(self, normed: Tensor, linear1: "Matrix", linear2: "Matrix") -> Tensor:
        update: Tensor = self._product(self._product(normed, *linear1, silu=True), *linear2)
        return update


class _Attention:
    def __init__(self, folded: Tensors, heads: int, kernels: Kernels) -> None:
        self._kernels = kernels
        self._heads = heads
        self._qkv, self._out = (_matrix(strip_prefix(name, folded)) for name in ("qkv", "out"))
        self._position_bias = folded["position_bias"].flatten().contiguous()
        self._position_weight = folded["position_weight"]

    def position_keys(self, table: Tensor) -> Tensor:
        """(2T-1, width) positions -> (heads, 2T-1 plus zero padding, head width), contiguous."""
        table = table.to(self._position_weight)
        projected = functional.linear(table, self._position_weight).view(
            len(table), self._heads, self._position_bias.shape[0] // self._heads
        )
        padded = functional.pad(projected, (0, 0, 0, 0, 0, _COLUMN_ALIGNMENT))
        return padded.transpose(0, 1).contiguous()

    def __call__(self, normed: Tensor, position_keys: Tensor, rows: Rows) -> Tensor:
        kernels = self._kernels
        qkv = kernels.product(normed, *self._qkv)
        queries = kernels.position_query(qkv, self._position_bias, self._heads)
        scores = kernels.product(queries, position_keys)
        return kernels.product(kernels.attention(qkv, scores, rows), *self._out)


class _Convolution:
    def __init__(self, folded: Tensors, kernels: Kernels) -> None:
        self._kernels = kernels
        self._pointwise1, self._pointwise2 = (
            _matrix(strip_prefix(name, folded)) for name in ("pointwise_conv1", "pointwise_conv2")
        )
        self._taps = _taps(folded)

    def __call__(self, normed: Tensor, rows: Rows) -> Tensor:
        kernels = self._kernels
        gated = kernels.glu(kernels.product(normed, *self._pointwise1))
        return kernels.product(kernels.depthwise(gated, *self._taps, rows), *self._pointwise2)


Matrix = tuple[Tensor, Tensor | None]


def _matrix(folded: Tensors) -> Matrix:
    return folded["weight"], folded.get("bias")


def _affine(folded: Tensors) -> Affine:
    return folded["weight"], folded["bias"]


def _taps(folded: Tensors) -> Affine:
    """(C, 1, ...) weight of a convolution as (taps, C), and its bias or zeros."""
    weight = folded["weight"].flatten(1).t().contiguous()
    bias = folded.get("bias")
    return weight, weight.new_zeros(weight.shape[1]) if bias is None else bias
