"""The encoder folded for serving: the same states as `Encoder` gives, in a fraction of the time.

Beside what `folding` computes once, positions are projected once for all lengths, and the
subsampling runs in tiles. `Encoder` stays the definition of correct.
"""

import math
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor
from torch.nn import functional

from parakeet_worker.engine.native.encoder import EncoderConfig, relative_positions
from parakeet_worker.engine.native.precision import Linear, Precision, linear
from parakeet_worker.engine.native.tensors import Tensors, strip_prefix

# Longer utterances project their positions on the fly: a table of one hour would take gigabytes.
_MAX_KEPT_FRAMES = 1024
_KEPT_FRAMES_STEP = 128
# Queries that attend at once: what one pass over a long recording holds grows with its length
# and not with its square.
_QUERIES_AT_ONCE = 1024
# Frames that are subsampled at once: the planes between the convolutions stay in the cache of a
# processor, and below 2^31 elements on a GPU.
_TILE_FRAMES = {"cpu": 256, "cuda": 4096}
_TILE_ROWS = {"cpu": 1, "cuda": 16}


class FusedEncoder:
    """Runs on the tensors that `folding.fold` gives, brought to one device."""

    def __init__(
        self, folded: Tensors, config: EncoderConfig, precision: Precision, device: torch.device
    ) -> None:
        self._device = device
        self._dtype = precision.dtype
        self._scale = math.sqrt(config.width) if config.scale_input else 1.0
        moved = {name: tensor.to(device) for name, tensor in folded.items()}
        self._subsampling = _Tiled(
            strip_prefix("subsampling", moved), config.subsampling_factor, precision, device
        )
        self._layers = [
            _Layer(strip_prefix(f"layers.{number}", moved), config.heads, precision)
            for number in range(config.layers)
        ]
        self._positions = _Positions(config.width, precision, device, self._layers)

    @torch.inference_mode()
    def prepare(self, frames: int) -> None:
        """Project the positions for utterances of up to so many frames of 80 ms."""
        self._positions.of(min(frames, _MAX_KEPT_FRAMES))

    @torch.inference_mode()
    def __call__(self, mels: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """(B, mels, T) float32 frames and (B,) lengths -> (B, T', width) states and lengths.

        States are in the encoder's precision; those beyond a row's length mean nothing.
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


class _Tiled:
    """The subsampling in tiles of time, channels last.

    Each tile reads enough frames beside it that what the convolutions make up at its edges never
    reaches the frames that are kept.
    """

    def __init__(
        self, folded: Tensors, factor: int, precision: Precision, device: torch.device
    ) -> None:
        # The first convolution sees one plane; after it come pairs of a depthwise and a
        # pointwise one, which are one convolution in two steps: only the second is rectified.
        self._convolutions: list[Linear] = []
        halvings = int(math.log2(factor))
        for number in range(2 * halvings - 1):
            part = strip_prefix(f"conv.{number}", folded)
            pointwise = number > 0 and number % 2 == 0
            convolution = _pointwise(part, precision) if pointwise else _Conv(part)
            self._convolutions.append(convolution)
        self._halves = [number == 0 or number % 2 == 1 for number in range(2 * halvings - 1)]
        self._rectified = [number % 2 == 0 for number in range(2 * halvings - 1)]
        self._factor = factor
        self._tile_frames = _TILE_FRAMES[device.type]
        self._tile_rows = _TILE_ROWS[device.type]
        self._out = linear(strip_prefix("out", folded), precision)

    def __call__(self, mels: Tensor, lengths: Tensor, *, padded: bool) -> tuple[Tensor, Tensor]:
        rows = [
            self._subsample(some, valid, padded)
            for some, valid in zip(
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
            kept = self._convolve(tile, lengths - low, padded)
            after = -(-min(self._tile_frames, frames - first) // self._factor)
            skipped = (first - low) // self._factor
            tiles.append(kept[:, :, skipped : skipped + after])
        return torch.cat(tiles, dim=2).transpose(1, 2).flatten(2)

    def _convolve(self, planes: Tensor, lengths: Tensor, padded: bool) -> Tensor:
        if padded:
            planes = _zero_padding(planes, lengths)
        steps = zip(self._convolutions, self._halves, self._rectified, strict=True)
        for convolution, halves, rectified in steps:
            planes = convolution(planes)
            if rectified:
                planes = planes.relu_()
            if halves:
                lengths = (lengths - 1) // 2 + 1
            if padded:
                planes = _zero_padding(planes, lengths)
        return planes


def _pointwise(folded: Tensors, precision: Precision) -> Linear:
    """A convolution over single points of channels-last planes is a matrix product."""
    product = linear(folded, precision)
    return lambda planes: product(planes.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class _Conv:
    """Three by three, every second point in both directions; in groups of one plane each."""

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
    """One conformer layer."""

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
    """The pointwise convolutions are matrix products."""

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
        # (B, T, C) read as (B, C, T, 1) is already laid out channels last.
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
        attended, after = [], 0
        for some in query.split(_QUERIES_AT_ONCE, dim=2):
            first, after = after, after + some.shape[2]
            seen = positions[time - after : 2 * time - 1 - first]
            attended.append(self._attend(some, key, value, seen, padding))
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
            return attend_exactly(query, key, value, bias)
        return functional.scaled_dot_product_attention(query, key, value, attn_mask=bias, scale=1.0)


def attend_exactly(query: Tensor, key: Tensor, value: Tensor, bias: Tensor) -> Tensor:
    """Attention of scaled queries written out, with its softmax in float32.

    What the plain path uses on a GPU: the fused backends fault on a bias with odd strides and
    offsets, as a view of skewed scores has, or choose themselves whether to copy it.
    """
    scores = torch.matmul(query, key.transpose(-1, -2)).float() + bias
    return torch.matmul(scores.softmax(dim=-1).to(value.dtype), value)


def _diagonals(scores: Tensor) -> Tensor:
    """`encoder._shift` without a copy: row q of (Q, T+Q-1) read from column Q-1-q on, (Q, T)."""
    scores = scores.contiguous()
    batch, heads, queries, span = scores.shape
    if queries == 1:
        return scores
    strides = (heads * queries * span, queries * span, span - 1, 1)
    return scores.as_strided((batch, heads, queries, span - queries + 1), strides, queries - 1)


class _Positions:
    """Every layer's projected positions, made once for the longest utterance so far.

    The table of a shorter one is the middle of it.
    """

    def __init__(
        self, width: int, precision: Precision, device: torch.device, layers: list[_Layer]
    ) -> None:
        self._width = width
        self._dtype = precision.dtype
        self._device = device
        self._layers = layers
        self._frames = 0
        self._kept: list[Tensor] = []

    def of(self, time: int) -> Iterable[Tensor]:
        """(2 time - 1, heads, head width) for every layer."""
        if time > _MAX_KEPT_FRAMES:
            return self._project(time)
        if time > self._frames:
            self._frames = -(-time // _KEPT_FRAMES_STEP) * _KEPT_FRAMES_STEP
            self._kept = list(self._project(self._frames))
        first = self._frames - time
        return [table[first : first + 2 * time - 1] for table in self._kept]

    def _project(self, time: int) -> Iterator[Tensor]:
        """Layer by layer: of a long recording, one table is all that there is room for."""
        table = relative_positions(time, self._width).to(self._device, self._dtype)
        for layer in self._layers:
            yield layer.self_attn.project_positions(table)
