"""The encoder on packed rows: chunks end to end, so that a batch costs what it contains.

Gives the states that `FusedEncoder` gives for a padded batch, from the same folded tensors. What
is not a matrix product is one of `kernels`.
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
"""The longest row, 82 s: the scores of its positions grow with the square of its length."""
GROUP_TOKENS = 8192
"""Tokens whose subsampling runs at once: its planes take 34 KB a token."""

_ALIGNED_COLUMNS = 8
Affine = tuple[Tensor, Tensor]


class PackedEncoder:
    """Runs on the tensors that `folding.fold` gives in bfloat16 or float16, on one device."""

    def __init__(
        self,
        folded: Tensors,
        config: EncoderConfig,
        kernels: Kernels,
        longest: int = LONGEST_TOKENS,
    ) -> None:
        """`longest` is the tokens of the longest row that will come.

        Raises `ValueError` for a subsampling other than by 8.
        """
        if config.subsampling_factor != FACTOR:
            raise ValueError(f"packed rows need a subsampling of {FACTOR}")
        self.longest = longest
        self._subsampling = _Subsampling(strip_prefix("subsampling", folded), config, kernels)
        self._layers = [
            _Layer(strip_prefix(f"layers.{number}", folded), config.heads, kernels)
            for number in range(config.layers)
        ]
        self._norm = kernels.residual_norm
        table = relative_positions(longest, config.width)
        self._positions = [layer.attention.positions(table) for layer in self._layers]

    @torch.inference_mode()
    def __call__(self, mels: Tensor, rows: Rows) -> Tensor:
        """(8 N, mels) frames -> (N, width) states; no row exceeds `longest`."""
        states = self._subsampling(mels, rows)
        normed: Tensor = self._norm(states, None, self._layers[0].first_norm)
        for number, layer in enumerate(self._layers):
            after = self._layers[number + 1 :][:1]
            normed = layer(
                states,
                normed,
                self._span(number, rows.longest),
                rows,
                after[0].first_norm if after else None,
            )
        return normed

    def _span(self, layer: int, longest: int) -> Tensor:
        """(heads, S, head width) of the distances longest - 1 ... 1 - longest, S rounded up."""
        first = self.longest - longest
        columns = -(-(2 * longest - 1) // _ALIGNED_COLUMNS) * _ALIGNED_COLUMNS
        return self._positions[layer][:, first : first + max(columns, _ALIGNED_COLUMNS)]


class _Subsampling:
    """Mel frames to the states that the layers begin with."""

    def __init__(self, folded: Tensors, config: EncoderConfig, kernels: Kernels) -> None:
        self._kernels = kernels
        self._scale = math.sqrt(config.width) if config.scale_input else 1.0
        self._first, self._second, self._next = (
            _taps(strip_prefix(f"conv.{number}", folded)) for number in (0, 1, 3)
        )
        self._points = [_matrix(strip_prefix(f"conv.{number}", folded)) for number in (2, 4)]
        weight, bias = _matrix(strip_prefix("out", folded))
        channels = self._first[0].shape[1]
        # The planes come with channels last.
        turned = weight.view(len(weight), channels, -1).transpose(1, 2)
        self._out = turned.reshape(len(weight), -1).contiguous(), bias

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
        # The ReLU between them is taken where the result is read.
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
        self, states: Tensor, normed: Tensor, positions: Tensor, rows: Rows, then: Affine | None
    ) -> Tensor:
        """`states` are changed in place; `normed` is their first norm.

        Returns the layer's states under the norm `then`, or as they are.
        """
        normed = self._norm(states, self._feed(normed, *self._first), self._attention_norm)
        attended = self.attention(normed, positions, rows)
        normed = self._norm(states, attended, self._convolution_norm)
        normed = self._norm(states, self._convolution(normed, rows), self._second_norm)
        fed = self._feed(normed, *self._second)
        result: Tensor = self._norm(states, fed, self._out, then)
        return result

    def _feed(self, normed: Tensor, widen: "Matrix", narrow: "Matrix") -> Tensor:
        fed: Tensor = self._product(self._product(normed, *widen, silu=True), *narrow)
        return fed


class _Attention:
    def __init__(self, folded: Tensors, heads: int, kernels: Kernels) -> None:
        self._kernels = kernels
        self._heads = heads
        self._qkv, self._out = (_matrix(strip_prefix(name, folded)) for name in ("qkv", "out"))
        self._position_bias = folded["position_bias"].flatten().contiguous()
        self._position_weight = folded["position_weight"]

    def positions(self, table: Tensor) -> Tensor:
        """(2T-1, width) positions -> (heads, 2T-1 and some zeros, head width), contiguous."""
        table = table.to(self._position_weight)
        projected = functional.linear(table, self._position_weight).view(
            len(table), self._heads, self._position_bias.shape[0] // self._heads
        )
        padded = functional.pad(projected, (0, 0, 0, 0, 0, _ALIGNED_COLUMNS))
        return padded.transpose(0, 1).contiguous()

    def __call__(self, normed: Tensor, positions: Tensor, rows: Rows) -> Tensor:
        kernels = self._kernels
        projected = kernels.product(normed, *self._qkv)
        queries = kernels.position_query(projected, self._position_bias, self._heads)
        scores = kernels.product(queries, positions)
        return kernels.product(kernels.attention(projected, scores, rows), *self._out)


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
    """(C, 1, ...) weights of a convolution as (taps, C)."""
    weight = folded["weight"].flatten(1).t().contiguous()
    bias = folded.get("bias")
    return weight, weight.new_zeros(weight.shape[1]) if bias is None else bias
