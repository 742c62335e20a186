"""The FastConformer encoder in plain PyTorch, with NeMo's parameter names.

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

from parakeet_worker.engine.native.config_section import ConfigSection

Size = TypeVar("Size", int, Tensor)


@dataclass(frozen=True, slots=True)
class EncoderConfig:
    """Hyperparameters of the encoder, from a checkpoint."""

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
    def from_nemo(cls, section: Mapping[str, object]) -> "EncoderConfig":
        """From NeMo's `encoder` section; raises `WeightsUnsupported`."""
        options = ConfigSection("encoder", section)
        options.expect_target("ConformerEncoder")
        width = options.get_int("d_model")
        config = cls(
            mels=options.get_int("feat_in"),
            layers=options.get_int("n_layers"),
            width=width,
            heads=options.get_int("n_heads", 4),
            feed_forward_width=width * options.get_int("ff_expansion_factor", 4),
            conv_kernel=options.get_int("conv_kernel_size", 31),
            subsampling_factor=options.get_int("subsampling_factor", 4),
            subsampling_channels=options.get_int("subsampling_conv_channels", width),
            use_bias=options.get_bool("use_bias", True),
            scale_input=options.get_bool("xscaling", True),
            dropout=options.get_float("dropout", 0.1),
            dropout_attention=options.get_float("dropout_att", 0.0),
        )
        _reject_other_encoders(options)
        return config


def _reject_other_encoders(options: ConfigSection) -> None:
    options.get_choice("subsampling", "dw_striding", default="striding")
    options.get_choice("causal_downsampling", False, default=False)
    options.get_choice("feat_out", -1, default=-1)
    options.get_choice("reduction_factor", 1, default=1)
    options.get_choice("self_attention_model", "rel_pos", default="rel_pos")
    options.get_choice("att_context_style", "regular", default="regular")
    if options.get_ints("att_context_size", (-1, -1)) != (-1, -1):
        options.get_choice("att_context_size", None, default=None)
    options.get_choice("conv_norm_type", "batch_norm", default="batch_norm")
    options.get_choice("conv_context_style", "regular", default="regular")
    options.get_choice("global_tokens", 0, default=0)
    # Tied position biases are stored per layer as well, the position table is as long as needed,
    # and the others select kernels or are used in training only.
    options.ignore("untie_biases", "pos_emb_max_len", "subsampling_conv_chunking_factor")
    options.ignore("global_tokens_spacing", "global_attn_separate", "sync_max_audio_length")
    options.ignore("use_pytorch_sdpa", "use_pytorch_sdpa_backends", "att_context_probs")
    options.ignore("dropout_pre_encoder", "dropout_emb", "stochastic_depth_drop_prob")
    options.ignore("stochastic_depth_mode", "stochastic_depth_start_layer")
    options.reject_unread()


class Encoder(nn.Module):
    """Subsampling followed by conformer layers with full attention."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.pre_encode = Subsampling(config)
        self.layers = nn.ModuleList(ConformerLayer(config) for _ in range(config.layers))
        self.dropout = nn.Dropout(config.dropout)

    @classmethod
    def from_config(cls, section: Mapping[str, object]) -> "Encoder":
        return cls(EncoderConfig.from_nemo(section))

    def forward(self, mels: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """(B, mels, T) frames and (B,) lengths -> (B, T', width) states and (B,) lengths."""
        states, lengths = self.pre_encode(mels, lengths)
        if self.config.scale_input:
            states = states * math.sqrt(self.config.width)
        states = self.dropout(states)
        positions = relative_positions(states.shape[1], self.config.width).to(states)
        padding = torch.arange(states.shape[1], device=states.device) >= lengths.unsqueeze(1)
        for layer in self.layers:
            states = layer(states, positions, padding)
        return states, lengths


class Subsampling(nn.Module):
    """Strided depthwise-separable convolutions; each stage halves time and mel bands.

    Padding is zeroed before every convolution, so that it does not affect valid frames.
    """

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        channels = config.subsampling_channels
        halvings = int(math.log2(config.subsampling_factor))
        layers: list[nn.Module] = [_halving_conv(1, channels, groups=1), nn.ReLU()]
        for _ in range(halvings - 1):
            layers.append(_halving_conv(channels, channels, groups=channels))
            layers += [nn.Conv2d(channels, channels, kernel_size=1), nn.ReLU()]
        self.conv = nn.Sequential(*layers)
        mels = config.mels
        for _ in range(halvings):
            mels = _halved(mels)
        self.out = nn.Linear(channels * mels, config.width)

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
    """Zero the frames of (B, C, T, F) beyond the (B,) lengths."""
    padding = torch.arange(planes.shape[2], device=planes.device) >= lengths.unsqueeze(1)
    return planes.masked_fill(padding[:, None, :, None], 0.0)


class ConformerLayer(nn.Module):
    """Half feed-forward, attention, convolution, half feed-forward, each with a layer norm."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.norm_feed_forward1 = nn.LayerNorm(config.width)
        self.feed_forward1 = FeedForward(config)
        self.norm_self_att = nn.LayerNorm(config.width)
        self.self_attn = RelativeAttention(config)
        self.norm_conv = nn.LayerNorm(config.width)
        self.conv = Convolution(config)
        self.norm_feed_forward2 = nn.LayerNorm(config.width)
        self.feed_forward2 = FeedForward(config)
        self.norm_out = nn.LayerNorm(config.width)
        self.dropout = nn.Dropout(config.dropout)

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
    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.linear1 = nn.Linear(config.width, config.feed_forward_width, bias=config.use_bias)
        self.linear2 = nn.Linear(config.feed_forward_width, config.width, bias=config.use_bias)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, states: Tensor) -> Tensor:
        fed: Tensor = self.linear2(self.dropout(functional.silu(self.linear1(states))))
        return fed


class Convolution(nn.Module):
    """Pointwise GLU, depthwise convolution, batch norm, SiLU, pointwise."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        width, bias = config.width, config.use_bias
        self.pointwise_conv1 = nn.Conv1d(width, 2 * width, kernel_size=1, bias=bias)
        self.depthwise_conv = nn.Conv1d(
            width,
            width,
            kernel_size=config.conv_kernel,
            padding=(config.conv_kernel - 1) // 2,
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
    """Multi-head attention with Transformer-XL relative positions; padding is masked."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        width, bias = config.width, config.use_bias
        self.heads = config.heads
        self.head_width = width // config.heads
        self.dropout_probability = config.dropout_attention
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
        relative_keys = self.linear_pos(positions).view(-1, self.heads, self.head_width)
        content_query = (query + self.pos_bias_u).transpose(1, 2)
        position_query = (query + self.pos_bias_v).transpose(1, 2)
        bias = _shift(torch.matmul(position_query, relative_keys.permute(1, 2, 0)))
        bias = bias / math.sqrt(self.head_width)
        # Finite, so that the rows of a fully padded utterance do not become NaN.
        bias = bias.masked_fill(padding[:, None, None, :], torch.finfo(bias.dtype).min / 2)
        attended = functional.scaled_dot_product_attention(
            content_query,
            key,
            value,
            attn_mask=bias,
            dropout_p=self.dropout_probability if self.training else 0.0,
        )
        out: Tensor = self.linear_out(attended.transpose(1, 2).reshape(batch, time, width))
        return out


def _shift(scores: Tensor) -> Tensor:
    """(B, H, T, 2T-1) scores by relative position -> (B, H, T, T) scores by absolute key.

    Row t has positions T-1 ... -(T-1); key s of row t has distance t-s, column T-1-t+s.
    """
    batch, heads, time, span = scores.shape
    padded = functional.pad(scores, (1, 0)).view(batch, heads, span + 1, time)
    return padded[:, :, 1:].reshape(batch, heads, time, span)[..., :time]


def relative_positions(time: int, width: int) -> Tensor:
    """Sinusoidal encoding of distances time-1 ... -(time-1), (2 time - 1, width), float32."""
    distances = torch.arange(time - 1, -time, -1, dtype=torch.float32).unsqueeze(1)
    rates = torch.exp(
        torch.arange(0, width, 2, dtype=torch.float32) * -(math.log(10_000.0) / width)
    )
    table = torch.empty(2 * time - 1, width)
    table[:, 0::2] = torch.sin(distances * rates)
    table[:, 1::2] = torch.cos(distances * rates)
    return table
