"""The encoder folded for serving: the same states as `Encoder` gives, in a fraction of the time.

What can be computed once is: the three attention projections are one matrix with the position
biases and the scale inside, batch norm is inside the depthwise convolution, positions are
projected once for all lengths. `Encoder` stays the definition of correct.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from parakeet_worker.engine.native.encoder import (
    ConformerLayer,
    Convolution,
    Encoder,
    FeedForward,
    RelativeAttention,
    Subsampling,
    relative_positions,
)
from parakeet_worker.engine.native.precision import Linear, Precision, linear

# Longer utterances project their positions on the fly: a table of one hour would take gigabytes.
_MAX_KEPT_FRAMES = 1024
_KEPT_FRAMES_STEP = 128
# Frames that are subsampled at once: the planes between the convolutions stay in the cache of a
# processor, and below 2^31 elements on a GPU.
_TILE_FRAMES = {"cpu": 256, "cuda": 4096}
_TILE_ROWS = {"cpu": 1, "cuda": 16}


class FusedEncoder:
    """Built from an `Encoder` with its weights in place; keeps what it needs of it."""

    def __init__(self, encoder: Encoder, precision: Precision, device: torch.device) -> None:
        shape = encoder.shape
        self._device = device
        self._dtype = precision.dtype
        self._scale = math.sqrt(shape.width) if shape.scale_input else 1.0
        self._subsampling = _Tiled(encoder.pre_encode, precision, device)
        self._layers = [_Layer(layer, precision, device) for layer in encoder.layers]
        self._positions = _Positions(shape.width, precision, device, self._layers)

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
        for layer, places in zip(self._layers, self._positions.of(states.shape[1]), strict=True):
            states = layer(states, places, padding)
        return states, lengths


class _Tiled:
    """The subsampling in tiles of time, channels last.

    Each tile reads enough frames beside it that what the convolutions make up at its edges never
    reaches the frames that are kept.
    """

    def __init__(self, plain: Subsampling, precision: Precision, device: torch.device) -> None:
        layers = [layer for layer in plain.conv if isinstance(layer, nn.Conv2d)]
        self._convolutions = [_convolution(layer, precision, device) for layer in layers]
        self._halves = [layer.stride[0] == 2 for layer in layers]
        # Depthwise and pointwise are one convolution in two steps: only the second is rectified.
        self._rectified = [layer.groups == 1 for layer in layers]
        self._factor = 2 ** sum(self._halves)
        self._tile_frames = _TILE_FRAMES[device.type]
        self._tile_rows = _TILE_ROWS[device.type]
        self._out = linear(
            plain.out.weight.detach().to(device), _on(plain.out.bias, device), precision
        )

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


def _convolution(plain: nn.Conv2d, precision: Precision, device: torch.device) -> Linear:
    """A convolution over channels-last planes; one over single points is a matrix product."""
    if plain.kernel_size == (1, 1):
        product = _linear(plain, precision, device)
        return lambda planes: product(planes.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    return _Conv(plain, precision.dtype, device)


class _Conv:
    def __init__(self, plain: nn.Conv2d, dtype: torch.dtype, device: torch.device) -> None:
        self._weight = (
            plain.weight.detach().to(device, dtype).contiguous(memory_format=torch.channels_last)
        )
        self._bias = _on(plain.bias, device, dtype)
        self._stride, self._padding, self._groups = plain.stride, plain.padding, plain.groups

    def __call__(self, planes: Tensor) -> Tensor:
        return functional.conv2d(
            planes, self._weight, self._bias, self._stride, self._padding, groups=self._groups
        )


def _zero_padding(planes: Tensor, lengths: Tensor) -> Tensor:
    padding = torch.arange(planes.shape[2], device=planes.device) >= lengths.unsqueeze(1)
    return planes.masked_fill(padding[:, None, :, None], 0.0)


class _Layer:
    """One conformer layer."""

    def __init__(self, plain: nn.Module, precision: Precision, device: torch.device) -> None:
        assert isinstance(plain, ConformerLayer)
        dtype = precision.dtype
        self._norms = [
            _Norm(norm, dtype, device)
            for norm in (
                plain.norm_feed_forward1,
                plain.norm_self_att,
                plain.norm_conv,
                plain.norm_feed_forward2,
                plain.norm_out,
            )
        ]
        self._first = _FeedForward(plain.feed_forward1, precision, device)
        self.attention = _Attention(plain.self_attn, precision, device)
        self._convolution = _Convolution(plain.conv, precision, device)
        self._second = _FeedForward(plain.feed_forward2, precision, device)

    def __call__(self, states: Tensor, places: Tensor, padding: Tensor | None) -> Tensor:
        first, attention, convolution, second, out = self._norms
        states = states + self._first(first(states))
        states = states + self.attention(attention(states), places, padding)
        states = states + self._convolution(convolution(states), padding)
        return out(states + self._second(second(states)))


class _Norm:
    def __init__(self, plain: nn.LayerNorm, dtype: torch.dtype, device: torch.device) -> None:
        self._shape, self._eps = plain.normalized_shape, plain.eps
        self._weight = _on(plain.weight, device, dtype)
        self._bias = _on(plain.bias, device, dtype)

    def __call__(self, states: Tensor) -> Tensor:
        return functional.layer_norm(states, self._shape, self._weight, self._bias, self._eps)


class _FeedForward:
    """The half step is inside the second matrix."""

    def __init__(self, plain: FeedForward, precision: Precision, device: torch.device) -> None:
        self._widen = _linear(plain.linear1, precision, device)
        self._narrow = _linear(plain.linear2, precision, device, factor=0.5)

    def __call__(self, states: Tensor) -> Tensor:
        return self._narrow(functional.silu(self._widen(states), inplace=True))


class _Convolution:
    """Batch norm is inside the depthwise convolution; the pointwise ones are matrix products."""

    def __init__(self, plain: Convolution, precision: Precision, device: torch.device) -> None:
        self._widen = _linear(plain.pointwise_conv1, precision, device)
        self._narrow = _linear(plain.pointwise_conv2, precision, device)
        norm, depthwise = plain.batch_norm, plain.depthwise_conv
        assert norm.running_mean is not None
        assert norm.running_var is not None
        gain = norm.weight / torch.sqrt(norm.running_var + norm.eps)
        offset = norm.bias - norm.running_mean * gain
        if depthwise.bias is not None:
            offset = offset + depthwise.bias * gain
        weight = (depthwise.weight * gain[:, None, None]).detach().unsqueeze(-1)
        self._weight = weight.to(device, precision.dtype).contiguous(
            memory_format=torch.channels_last
        )
        self._bias = _on(offset, device, precision.dtype)
        self._padding = depthwise.padding[0]

    def __call__(self, states: Tensor, padding: Tensor | None) -> Tensor:
        gated = functional.glu(self._widen(states), dim=-1)
        if padding is not None:
            gated = gated.masked_fill(padding.unsqueeze(2), 0.0)
        # (B, T, C) read as (B, C, T, 1) is already laid out channels last.
        planes = gated.transpose(1, 2).unsqueeze(-1)
        mixed = functional.conv2d(
            planes,
            self._weight,
            self._bias,
            padding=(int(self._padding), 0),
            groups=planes.shape[1],
        )
        mixed = functional.silu(mixed, inplace=True)
        return self._narrow(mixed.squeeze(-1).transpose(1, 2))


class _Attention:
    """Query, key and value from one matrix; the content bias and the scale are inside it."""

    def __init__(
        self, plain: RelativeAttention, precision: Precision, device: torch.device
    ) -> None:
        self._heads, self._head_width = plain.heads, plain.head_width
        scale = 1 / math.sqrt(plain.head_width)
        parts = (plain.linear_q, plain.linear_k, plain.linear_v)
        weight = torch.cat([part.weight for part in parts]).detach()
        width = weight.shape[1]
        bias = torch.cat(
            [part.bias if part.bias is not None else part.weight.new_zeros(width) for part in parts]
        ).detach()
        bias[:width] += plain.pos_bias_u.detach().flatten()
        weight[:width] *= scale
        bias[:width] *= scale
        self._project = linear(weight.to(device), bias.to(device), precision)
        by_place = (plain.pos_bias_v - plain.pos_bias_u).detach() * scale
        self._by_place = _on(by_place[:, None, :], device, precision.dtype)
        self._out = _linear(plain.linear_out, precision, device)
        self._places = plain.linear_pos.weight.detach().to(device, precision.dtype)

    def project_positions(self, table: Tensor) -> Tensor:
        """(2T-1, width) positions -> (2T-1, heads, head width)."""
        return functional.linear(table, self._places).view(-1, self._heads, self._head_width)

    def __call__(self, states: Tensor, places: Tensor, padding: Tensor | None) -> Tensor:
        batch, time, width = states.shape
        split = (batch, time, 3, self._heads, self._head_width)
        query, key, value = self._project(states).view(split).permute(2, 0, 3, 1, 4)
        scores = torch.matmul(query + self._by_place, places.permute(1, 2, 0))
        bias = _diagonals(scores)
        if padding is not None:
            floor = torch.finfo(bias.dtype).min / 2
            bias = bias.masked_fill(padding[:, None, None, :], floor)
        attended = functional.scaled_dot_product_attention(
            query, key, value, attn_mask=bias, scale=1.0
        )
        return self._out(attended.transpose(1, 2).reshape(batch, time, width))


def _diagonals(scores: Tensor) -> Tensor:
    """`encoder._shift` without a copy: row t of (T, 2T-1) read from column T-1-t on."""
    batch, heads, time, span = scores.contiguous().shape
    strides = (heads * time * span, time * span, span - 1, 1)
    if time == 1:
        return scores
    return scores.contiguous().as_strided((batch, heads, time, time), strides, time - 1)


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

    def of(self, time: int) -> list[Tensor]:
        """(2 time - 1, heads, head width) for every layer."""
        if time > _MAX_KEPT_FRAMES:
            return self._project(time)
        if time > self._frames:
            self._frames = -(-time // _KEPT_FRAMES_STEP) * _KEPT_FRAMES_STEP
            self._kept = self._project(self._frames)
        first = self._frames - time
        return [table[first : first + 2 * time - 1] for table in self._kept]

    def _project(self, time: int) -> list[Tensor]:
        table = relative_positions(time, self._width).to(self._device, self._dtype)
        return [layer.attention.project_positions(table) for layer in self._layers]


def _linear(
    plain: nn.Module, precision: Precision, device: torch.device, factor: float = 1.0
) -> Linear:
    """A linear layer or a pointwise convolution as a matrix product."""
    assert isinstance(plain, nn.Linear | nn.Conv1d | nn.Conv2d)
    weight = plain.weight.detach().flatten(1).to(device) * factor
    bias = None if plain.bias is None else plain.bias.detach().to(device) * factor
    return linear(weight, bias, precision)


def _on(
    tensor: Tensor | None, device: torch.device, dtype: torch.dtype = torch.float32
) -> Tensor | None:
    return None if tensor is None else tensor.detach().to(device, dtype)
