"""Log-mel frames to encoder states: the FastConformer encoder, under NeMo's parameter names.

Gulati et al., "Conformer", 2020; Rekesh et al., "Fast Conformer", 2023; relative positions as in
Dai et al., "Transformer-XL", 2019, appendix B.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from parakeet_worker.engine.native.options import Options

Size = TypeVar("Size", int, Tensor)


@dataclass(frozen=True, slots=True)
class EncoderShape:
    """What a checkpoint says of its encoder."""

    mels: int
    layers: int
    width: int
    heads: int
    feed_forward_width: int
    conv_kernel: int
    subsampling_factor: int
    subsampling_channels: int
    use_bias: bool
    scale_input: bool
    dropout: float
    dropout_attention: float

    @classmethod
    def read(cls, config: Mapping[str, object]) -> "EncoderShape":
        """From NeMo's `encoder` section; raises `WeightsUnsupported`."""
        options = Options("encoder", config)
        options.target("ConformerEncoder")
        width = options.integer("d_model")
        shape = cls(
            mels=options.integer("feat_in"),
            layers=options.integer("n_layers"),
            width=width,
            heads=options.integer("n_heads", 4),
            feed_forward_width=width * options.integer("ff_expansion_factor", 4),
            conv_kernel=options.integer("conv_kernel_size", 31),
            subsampling_factor=options.integer("subsampling_factor", 4),
            subsampling_channels=options.integer("subsampling_conv_channels", width),
            use_bias=options.flag("use_bias", True),
            scale_input=options.flag("xscaling", True),
            dropout=options.number("dropout", 0.1),
            dropout_attention=options.number("dropout_att", 0.0),
        )
        _refuse_other_encoders(options)
        return shape


def _refuse_other_encoders(options: Options) -> None:
    options.one_of("subsampling", "dw_striding", default="striding")
    options.one_of("causal_downsampling", False, default=False)
    options.one_of("feat_out", -1, default=-1)
    options.one_of("reduction_factor", 1, default=1)
    options.one_of("self_attention_model", "rel_pos", default="rel_pos")
    options.one_of("att_context_style", "regular", default="regular")
    if options.integers("att_context_size", (-1, -1)) != (-1, -1):
        options.one_of("att_context_size", None, default=None)
    options.one_of("conv_norm_type", "batch_norm", default="batch_norm")
    options.one_of("conv_context_style", "regular", default="regular")
    options.one_of("global_tokens", 0, default=0)
    # Shared position biases are stored once per layer all the same, the table of positions is
    # made as long as needed, and the rest chooses kernels or acts in training alone.
    options.skip("untie_biases", "pos_emb_max_len", "subsampling_conv_chunking_factor")
    options.skip("global_tokens_spacing", "global_attn_separate", "sync_max_audio_length")
    options.skip("use_pytorch_sdpa", "use_pytorch_sdpa_backends", "att_context_probs")
    options.skip("dropout_pre_encoder", "dropout_emb", "stochastic_depth_drop_prob")
    options.skip("stochastic_depth_mode", "stochastic_depth_start_layer")
    options.close()


class Encoder(nn.Module):
    """Subsamples 8 times (or as configured) and runs the conformer layers with full attention."""

    def __init__(self, shape: EncoderShape) -> None:
        super().__init__()
        self.shape = shape
        self.pre_encode = Subsampling(shape)
        self.layers = nn.ModuleList(ConformerLayer(shape) for _ in range(shape.layers))
        self.dropout = nn.Dropout(shape.dropout)

    @classmethod
    def from_config(cls, config: Mapping[str, object]) -> "Encoder":
        return cls(EncoderShape.read(config))

    def forward(self, mels: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """(B, mels, T) frames and (B,) lengths -> (B, T', width) states and (B,) lengths."""
        states, lengths = self.pre_encode(mels, lengths)
        if self.shape.scale_input:
            states = states * math.sqrt(self.shape.width)
        states = self.dropout(states)
        positions = relative_positions(states.shape[1], self.shape.width).to(states)
        padding = torch.arange(states.shape[1], device=states.device) >= lengths.unsqueeze(1)
        for layer in self.layers:
            states = layer(states, positions, padding)
        return states, lengths


class Subsampling(nn.Module):
    """Strided depthwise-separable convolutions that halve time and mels once per power of two.

    Frames beyond each length are zeroed before every convolution, so that padding never leaks.
    """

    def __init__(self, shape: EncoderShape) -> None:
        super().__init__()
        channels = shape.subsampling_channels
        halvings = int(math.log2(shape.subsampling_factor))
        layers: list[nn.Module] = [_halving_conv(1, channels, groups=1), nn.ReLU()]
        for _ in range(halvings - 1):
            layers.append(_halving_conv(channels, channels, groups=channels))
            layers += [nn.Conv2d(channels, channels, kernel_size=1), nn.ReLU()]
        self.conv = nn.Sequential(*layers)
        mels_left = shape.mels
        for _ in range(halvings):
            mels_left = _halved(mels_left)
        self.out = nn.Linear(channels * mels_left, shape.width)

    def forward(self, mels: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        planes = mels.transpose(1, 2).unsqueeze(1)  # (B, 1, T, mels)
        planes = _zero_padding(planes, lengths)
        for layer in self.conv:
            planes = layer(planes)
            if isinstance(layer, nn.Conv2d):
                if layer.stride[0] == 2:
                    lengths = _halved(lengths)
                planes = _zero_padding(planes, lengths)
        states: Tensor = self.out(planes.transpose(1, 2).flatten(2))
        return states, lengths


def _halving_conv(channels_in: int, channels_out: int, groups: int) -> nn.Conv2d:
    return nn.Conv2d(channels_in, channels_out, kernel_size=3, stride=2, padding=1, groups=groups)


def _halved(size: Size) -> Size:
    halved: Size = (size - 1) // 2 + 1
    return halved


def _zero_padding(planes: Tensor, lengths: Tensor) -> Tensor:
    """Zero the frames of (B, C, T, F) beyond each of the (B,) lengths."""
    padding = torch.arange(planes.shape[2], device=planes.device) >= lengths.unsqueeze(1)
    return planes.masked_fill(padding[:, None, :, None], 0.0)


class ConformerLayer(nn.Module):
    """Half feed-forward, attention, convolution, half feed-forward, each with its own norm."""

    def __init__(self, shape: EncoderShape) -> None:
        super().__init__()
        self.norm_feed_forward1 = nn.LayerNorm(shape.width)
        self.feed_forward1 = FeedForward(shape)
        self.norm_self_att = nn.LayerNorm(shape.width)
        self.self_attn = RelativeAttention(shape)
        self.norm_conv = nn.LayerNorm(shape.width)
        self.conv = Convolution(shape)
        self.norm_feed_forward2 = nn.LayerNorm(shape.width)
        self.feed_forward2 = FeedForward(shape)
        self.norm_out = nn.LayerNorm(shape.width)
        self.dropout = nn.Dropout(shape.dropout)

    def forward(self, states: Tensor, positions: Tensor, padding: Tensor) -> Tensor:
        """(B, T, width) states, (2T-1, width) positions, (B, T) padding -> (B, T, width)."""
        half = self.feed_forward1(self.norm_feed_forward1(states))
        states = states + 0.5 * self.dropout(half)
        attended = self.self_attn(self.norm_self_att(states), positions, padding)
        states = states + self.dropout(attended)
        states = states + self.dropout(self.conv(self.norm_conv(states), padding))
        half = self.feed_forward2(self.norm_feed_forward2(states))
        normed: Tensor = self.norm_out(states + 0.5 * self.dropout(half))
        return normed


class FeedForward(nn.Module):
    def __init__(self, shape: EncoderShape) -> None:
        super().__init__()
        self.linear1 = nn.Linear(shape.width, shape.feed_forward_width, bias=shape.use_bias)
        self.linear2 = nn.Linear(shape.feed_forward_width, shape.width, bias=shape.use_bias)
        self.dropout = nn.Dropout(shape.dropout)

    def forward(self, states: Tensor) -> Tensor:
        fed: Tensor = self.linear2(self.dropout(functional.silu(self.linear1(states))))
        return fed


class Convolution(nn.Module):
    """Pointwise GLU, depthwise convolution, batch norm, SiLU, pointwise."""

    def __init__(self, shape: EncoderShape) -> None:
        super().__init__()
        width, bias = shape.width, shape.use_bias
        self.pointwise_conv1 = nn.Conv1d(width, 2 * width, kernel_size=1, bias=bias)
        self.depthwise_conv = nn.Conv1d(
            width,
            width,
            kernel_size=shape.conv_kernel,
            padding=(shape.conv_kernel - 1) // 2,
            groups=width,
            bias=bias,
        )
        self.batch_norm = nn.BatchNorm1d(width)
        self.pointwise_conv2 = nn.Conv1d(width, width, kernel_size=1, bias=bias)

    def forward(self, states: Tensor, padding: Tensor) -> Tensor:
        gated = functional.glu(self.pointwise_conv1(states.transpose(1, 2)), dim=1)
        gated = gated.masked_fill(padding.unsqueeze(1), 0.0)
        mixed = functional.silu(self.batch_norm(self.depthwise_conv(gated)))
        out: Tensor = self.pointwise_conv2(mixed).transpose(1, 2)
        return out


class RelativeAttention(nn.Module):
    """Multi-head attention with Transformer-XL's relative positions; padding is never attended."""

    def __init__(self, shape: EncoderShape) -> None:
        super().__init__()
        width, bias = shape.width, shape.use_bias
        self.heads = shape.heads
        self.head_width = width // shape.heads
        self.dropout_probability = shape.dropout_attention
        self.linear_q = nn.Linear(width, width, bias=bias)
        self.linear_k = nn.Linear(width, width, bias=bias)
        self.linear_v = nn.Linear(width, width, bias=bias)
        self.linear_out = nn.Linear(width, width, bias=bias)
        self.linear_pos = nn.Linear(width, width, bias=False)
        self.pos_bias_u = nn.Parameter(torch.zeros(self.heads, self.head_width))
        self.pos_bias_v = nn.Parameter(torch.zeros(self.heads, self.head_width))

    def forward(self, states: Tensor, positions: Tensor, padding: Tensor) -> Tensor:
        batch, time, width = states.shape
        split = (batch, time, self.heads, self.head_width)
        query = self.linear_q(states).view(split)
        key = self.linear_k(states).view(split).transpose(1, 2)
        value = self.linear_v(states).view(split).transpose(1, 2)
        places = self.linear_pos(positions).view(-1, self.heads, self.head_width)
        by_content = (query + self.pos_bias_u).transpose(1, 2)
        by_place = (query + self.pos_bias_v).transpose(1, 2)
        bias = _shift(torch.matmul(by_place, places.permute(1, 2, 0)))
        bias = bias / math.sqrt(self.head_width)
        # A finite floor: a row of a wholly padded utterance must not become NaN.
        bias = bias.masked_fill(padding[:, None, None, :], torch.finfo(bias.dtype).min / 2)
        attended = functional.scaled_dot_product_attention(
            by_content,
            key,
            value,
            attn_mask=bias,
            dropout_p=self.dropout_probability if self.training else 0.0,
        )
        out: Tensor = self.linear_out(attended.transpose(1, 2).reshape(batch, time, width))
        return out


def _shift(scores: Tensor) -> Tensor:
    """(B, H, T, 2T-1) scores by relative position -> (B, H, T, T) scores by absolute key.

    Row t holds positions T-1 ... -(T-1); key s of row t is at distance t-s, column T-1-t+s.
    """
    batch, heads, time, span = scores.shape
    padded = functional.pad(scores, (1, 0)).view(batch, heads, span + 1, time)
    return padded[:, :, 1:].reshape(batch, heads, time, span)[..., :time]


def relative_positions(time: int, width: int) -> Tensor:
    """Sinusoids of the distances time-1 ... -(time-1), (2 time - 1, width), float32."""
    distances = torch.arange(time - 1, -time, -1, dtype=torch.float32).unsqueeze(1)
    rates = torch.exp(
        torch.arange(0, width, 2, dtype=torch.float32) * -(math.log(10_000.0) / width)
    )
    table = torch.empty(2 * time - 1, width)
    table[:, 0::2] = torch.sin(distances * rates)
    table[:, 1::2] = torch.cos(distances * rates)
    return table
