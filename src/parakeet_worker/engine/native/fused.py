"""The encoder on folded weights: the states of `Encoder`, several times faster.

Positions are projected once for all lengths, and the subsampling runs in tiles. `Encoder` is the
reference.
"""

import math
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor
from torch.nn import functional

from parakeet_worker.engine.native.encoder import EncoderConfig, relative_positions
from parakeet_worker.engine.native.precision import Linear, Precision, linear
from parakeet_worker.engine.native.tensors import Tensors, strip_prefix

# Positions of longer utterances are not cached: a table for one hour would take gigabytes.
_MAX_CACHED_FRAMES = 1024
_CACHED_FRAMES_STEP = 128
# Queries per attention call: the memory for a long recording grows linearly with its length
# instead of quadratically.
_QUERY_CHUNK = 1024
# Frames and rows per subsampling tile: intermediate planes fit the cache of a CPU, and stay below
# 2^31 elements on a GPU.
_TILE_FRAMES = {"cpu": 256, "cuda": 4096}
_TILE_ROWS = {"cpu": 1, "cuda": 16}


class FusedEncoder:
    """Runs on the tensors of `folding.fold`, on one device."""

    def __init__(
        self, folded: Tensors, config: EncoderConfig, precision: Precision, device: torch.device
    ) -> None:
        self._device = device
        self._dtype = precision.dtype
        self._scale = math.sqrt(config.width) if config.scale_input else 1.0
        moved = {name: tensor.to(device) for name, tensor in folded.items()}
        self._subsampling = _TiledSubsampling(
            strip_prefix("subsampling", moved), config.subsampling_factor, precision, device
        )
        self._layers = [
            _Layer(strip_prefix(f"layers.{number}", moved), config.heads, precision)
            for number in range(config.layers)
        ]
        self._positions = _Positions(config.width, precision, device, self._layers)

    @torch.inference_mode()
    def prepare(self, frames: int) -> None:
        """Project the positions for utterances of up to `frames` encoder frames."""
        self._positions.of(min(frames, _MAX_CACHED_FRAMES))

    @torch.inference_mode()
    def __call__(self, mels: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """(B, mels, T) float32 frames and (B,) lengths -> (B, T', width) states and lengths.

        States are in the encoder's precision; those beyond a row's length are undefined.
        """
        padded = bool((lengths < mels.shape[2]).any())
        states, lengths = self._subsampling(mels.to(self._dtype), lengths, padded=padded)
        states = states * self._scale
        padding = None
        if padded:
            frames = torch.arange(states.shape[1], device=self._device)
            padding = frames >= lengths.unsqueeze(1)
        for layer, positions in zip(self._layers, self._positions.of(states.shape[1]), strict=True):
            states = layer(states, positions, padding)
        return states, lengths


class _TiledSubsampling:
    """Subsampling in tiles of time, channels last.

    Each tile is extended by a halo, so that padding at its edges does not affect the frames that
    are kept.
    """

    def __init__(
        self, folded: Tensors, factor: int, precision: Precision, device: torch.device
    ) -> None:
        # A full convolution, then pairs of a depthwise and a pointwise one with a ReLU after the
        # second of each pair.
        self._convolutions: list[Linear] = []
        halvings = int(math.log2(factor))
        for number in range(2 * halvings - 1):
            part = strip_prefix(f"conv.{number}", folded)
            pointwise = number > 0 and number % 2 == 0
            convolution = _pointwise(part, precision) if pointwise else _Conv(part)
            self._convolutions.append(convolution)
        self._strided = [number == 0 or number % 2 == 1 for number in range(2 * halvings - 1)]
        self._has_relu = [number % 2 == 0 for number in range(2 * halvings - 1)]
        self._factor = factor
        self._tile_frames = _TILE_FRAMES[device.type]
        self._tile_rows = _TILE_ROWS[device.type]
        self._out = linear(strip_prefix("out", folded), precision)

    def __call__(self, mels: Tensor, lengths: Tensor, *, padded: bool) -> tuple[Tensor, Tensor]:
        rows = [
            self._subsample(tile, valid, padded)
            for tile, valid in zip(
                torch.split(mels, self._tile_rows),
                torch.split(lengths, self._tile_rows),
                strict=True,
            )
        ]
        for _ in range(int(math.log2(self._factor))):
            lengths = (lengths - 1) // 2 + 1
        return self._out(torch.cat(rows)), lengths

    def _subsample(self, mels: Tensor, lengths: Tensor, padded: bool) -> Tensor:
        planes = mels.transpose(1, 2).unsqueeze(1)  # (B, 1, T, mels)
        frames, halo = planes.shape[2], 2 * self._factor
        tiles = []
        for first in range(0, frames, self._tile_frames):
            low = max(0, first - halo)
            tile = planes[:, :, low : first + self._tile_frames + halo]
            convolved = self._convolve(tile, lengths - low, padded)
            count = -(-min(self._tile_frames, frames - first) // self._factor)
            skipped = (first - low) // self._factor
            tiles.append(convolved[:, :, skipped : skipped + count])
        return torch.cat(tiles, dim=2).transpose(1, 2).flatten(2)

    def _convolve(self, planes: Tensor, lengths: Tensor, padded: bool) -> Tensor:
        if padded:
            planes = _zero_padding(planes, lengths)
        steps = zip(self._convolutions, self._strided, self._has_relu, strict=True)
        for convolution, strided, has_relu in steps:
            planes = convolution(planes)
            if has_relu:
                planes = planes.relu_()
            if strided:
                lengths = (lengths - 1) // 2 + 1
            if padded:
                planes = _zero_padding(planes, lengths)
        return planes


def _pointwise(folded: Tensors, precision: Precision) -> Linear:
    """A 1x1 convolution on channels-last planes, as a matrix product."""
    product = linear(folded, precision)
    return lambda planes: product(planes.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class _Conv:
    """Depthwise 3x3 convolution with stride 2."""

    def __init__(self, folded: Tensors) -> None:
        self._weight = folded["weight"].contiguous(memory_format=torch.channels_last)
        self._bias = folded.get("bias")

    def __call__(self, planes: Tensor) -> Tensor:
        return functional.conv2d(
            planes, self._weight, self._bias, stride=2, padding=1, groups=planes.shape[1]
        )


def _zero_padding(planes: Tensor, lengths: Tensor) -> Tensor:
    padding = torch.arange(planes.shape[2], device=planes.device) >= lengths.unsqueeze(1)
    return planes.masked_fill(padding[:, None, :, None], 0.0)


class _Layer:
    """A conformer layer."""

    def __init__(self, folded: Tensors, heads: int, precision: Precision) -> None:
        self._norms = [
            _Norm(strip_prefix(f"norms.{name}", folded))
            for name in ("feed_forward1", "self_attn", "conv", "feed_forward2", "out")
        ]
        self._feed_forward1 = _FeedForward(strip_prefix("feed_forward1", folded), precision)
        self.self_attn = _Attention(strip_prefix("self_attn", folded), heads, precision)
        self._conv = _Convolution(strip_prefix("conv", folded), precision)
        self._feed_forward2 = _FeedForward(strip_prefix("feed_forward2", folded), precision)

    def __call__(self, states: Tensor, positions: Tensor, padding: Tensor | None) -> Tensor:
        first, attention, convolution, second, out = self._norms
        states = states + self._feed_forward1(first(states))
        states = states + self.self_attn(attention(states), positions, padding)
        states = states + self._conv(convolution(states), padding)
        return out(states + self._feed_forward2(second(states)))


class _Norm:
    def __init__(self, folded: Tensors) -> None:
        self._weight, self._bias = folded["weight"], folded["bias"]

    def __call__(self, states: Tensor) -> Tensor:
        return functional.layer_norm(states, self._weight.shape, self._weight, self._bias)


class _FeedForward:
    def __init__(self, folded: Tensors, precision: Precision) -> None:
        self._linear1 = linear(strip_prefix("linear1", folded), precision)
        self._linear2 = linear(strip_prefix("linear2", folded), precision)

    def __call__(self, states: Tensor) -> Tensor:
        return self._linear2(functional.silu(self._linear1(states), inplace=True))


class _Convolution:
    """The convolution module; pointwise convolutions are matrix products."""

    def __init__(self, folded: Tensors, precision: Precision) -> None:
        self._pointwise1 = linear(strip_prefix("pointwise_conv1", folded), precision)
        self._pointwise2 = linear(strip_prefix("pointwise_conv2", folded), precision)
        self._weight = folded["weight"].contiguous(memory_format=torch.channels_last)
        self._bias = folded["bias"]
        self._padding = (self._weight.shape[2] - 1) // 2

    def __call__(self, states: Tensor, padding: Tensor | None) -> Tensor:
        gated = functional.glu(self._pointwise1(states), dim=-1)
        if padding is not None:
            gated = gated.masked_fill(padding.unsqueeze(2), 0.0)
        # (B, T, C) viewed as (B, C, T, 1) is channels last.
        planes = gated.transpose(1, 2).unsqueeze(-1)
        mixed = functional.conv2d(
            planes,
            self._weight,
            self._bias,
            padding=(self._padding, 0),
            groups=planes.shape[1],
        )
        mixed = functional.silu(mixed, inplace=True)
        return self._pointwise2(mixed.squeeze(-1).transpose(1, 2))


class _Attention:
    def __init__(self, folded: Tensors, heads: int, precision: Precision) -> None:
        self._qkv = linear(strip_prefix("qkv", folded), precision)
        self._out = linear(strip_prefix("out", folded), precision)
        self._position_bias, self._position_weight = (
            folded["position_bias"],
            folded["position_weight"],
        )
        self._heads, self._head_width = heads, self._position_bias.shape[-1]

    def project_positions(self, table: Tensor) -> Tensor:
        """(2T-1, width) positions -> (2T-1, heads, head width)."""
        return functional.linear(table, self._position_weight).view(
            -1, self._heads, self._head_width
        )

    def __call__(self, states: Tensor, positions: Tensor, padding: Tensor | None) -> Tensor:
        batch, time, width = states.shape
        split = (batch, time, 3, self._heads, self._head_width)
        query, key, value = self._qkv(states).view(split).permute(2, 0, 3, 1, 4)
        attended, end = [], 0
        for queries in query.split(_QUERY_CHUNK, dim=2):
            first, end = end, end + queries.shape[2]
            span = positions[time - end : 2 * time - 1 - first]
            attended.append(self._attend(queries, key, value, span, padding))
        return self._out(torch.cat(attended, dim=2).transpose(1, 2).reshape(batch, time, width))

    def _attend(
        self, query: Tensor, key: Tensor, value: Tensor, positions: Tensor, padding: Tensor | None
    ) -> Tensor:
        """(B, heads, Q, head width) queries to all keys; `positions` are (T+Q-1, heads, width)."""
        scores = torch.matmul(query + self._position_bias, positions.permute(1, 2, 0))
        bias = _diagonals(scores)
        if padding is not None:
            floor = torch.finfo(bias.dtype).min / 2
            bias = bias.masked_fill(padding[:, None, None, :], floor)
        if query.is_cuda:
            return attend_unfused(query, key, value, bias)
        return functional.scaled_dot_product_attention(query, key, value, attn_mask=bias, scale=1.0)


def attend_unfused(query: Tensor, key: Tensor, value: Tensor, bias: Tensor) -> Tensor:
    """Attention of scaled queries without a fused kernel, softmax in float32.

    Used on a GPU: fused backends fault on a bias with odd strides and offsets, such as the view
    that `_diagonals` returns, or copy it depending on the backend.
    """
    scores = torch.matmul(query, key.transpose(-1, -2)).float() + bias
    return torch.matmul(scores.softmax(dim=-1).to(value.dtype), value)


def _diagonals(scores: Tensor) -> Tensor:
    """`encoder._shift` as a view: row q of (Q, T+Q-1) from column Q-1-q on, (Q, T)."""
    scores = scores.contiguous()
    batch, heads, queries, span = scores.shape
    if queries == 1:
        return scores
    strides = (heads * queries * span, queries * span, span - 1, 1)
    return scores.as_strided((batch, heads, queries, span - queries + 1), strides, queries - 1)


class _Positions:
    """Projected positions of every layer, cached for the longest utterance so far.

    The table of a shorter utterance is the middle of the cached one.
    """

    def __init__(
        self, width: int, precision: Precision, device: torch.device, layers: list[_Layer]
    ) -> None:
        self._width = width
        self._dtype = precision.dtype
        self._device = device
        self._layers = layers
        self._frames = 0
        self._tables: list[Tensor] = []

    def of(self, time: int) -> Iterable[Tensor]:
        """One (2 time - 1, heads, head width) table per layer."""
        if time > _MAX_CACHED_FRAMES:
            return self._project(time)
        if time > self._frames:
            self._frames = -(-time // _CACHED_FRAMES_STEP) * _CACHED_FRAMES_STEP
            self._tables = list(self._project(self._frames))
        first = self._frames - time
        return [table[first : first + 2 * time - 1] for table in self._tables]

    def _project(self, time: int) -> Iterator[Tensor]:
        """Yield one table at a time: those of a long recording do not fit in memory together."""
        table = relative_positions(time, self._width).to(self._device, self._dtype)
        for layer in self._layers:
            yield layer.self_attn.project_positions(table)
