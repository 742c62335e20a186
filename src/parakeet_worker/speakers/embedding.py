"""Speaker embeddings: 192 numbers for how a voice sounds, close by cosine for the same speaker.

The features are Kaldi's log-mel filterbank; the network is CAM++ (H. Wang, S. Zheng, Y. Chen,
L. Cheng and Q. Chen, "CAM++: a fast and efficient network for speaker verification using
context-aware masking", Interspeech 2023).
"""

import math
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_eval

from parakeet_worker.errors import WeightsCorrupt
from parakeet_worker.speakers import weights
from parakeet_worker.speakers.windows import EMBEDDING_SIZE, FEATURE_SAMPLES, SAMPLE_RATE

_FRAME_SAMPLES = 400  # under one frame of features

_MELS = 80
_FFT_SAMPLES = 512
_LOWEST_HZ = 20.0
_PREEMPHASIS = 0.97
_FLOOR = 1.1920928955078125e-07  # the spacing of float32 at one, as in Kaldi
_CONTEXT_FRAMES = 100
_WIDTH = 32
# Of each dense block, how many layers, and the dilation of their convolutions.
_BLOCKS = ((12, 1), (24, 2), (16, 2))


class Filterbank(nn.Module):
    """Kaldi's log-mel features without dither."""

    window: Tensor
    mels: Tensor

    def __init__(self) -> None:
        super().__init__()
        window = torch.hann_window(_FRAME_SAMPLES, periodic=False, dtype=torch.float64) ** 0.85
        self.register_buffer("window", window.float(), persistent=False)
        self.register_buffer("mels", _mel_filters().float(), persistent=False)

    def forward(self, samples: Tensor) -> Tensor:
        """(B, N) samples -> (B, T, 80) log-mel powers, one frame every 10 ms."""
        frames = samples.unfold(1, _FRAME_SAMPLES, FEATURE_SAMPLES)
        frames = frames - frames.mean(dim=-1, keepdim=True)
        before = functional.pad(frames, (1, 0), mode="replicate")[..., :-1]
        frames = (frames - _PREEMPHASIS * before) * self.window
        spectrum = torch.view_as_real(torch.fft.rfft(frames, n=_FFT_SAMPLES))
        mels: Tensor = spectrum.square().sum(dim=-1) @ self.mels
        return mels.clamp_min(_FLOOR).log()


def _mel_filters() -> Tensor:
    """(257, 80): triangles that are even on the mel scale, from 20 Hz to 8 kHz."""
    edges = torch.linspace(_mel(_LOWEST_HZ), _mel(SAMPLE_RATE / 2), _MELS + 2, dtype=torch.float64)
    hertz = torch.arange(_FFT_SAMPLES // 2 + 1, dtype=torch.float64) * SAMPLE_RATE / _FFT_SAMPLES
    mels = 1127.0 * torch.log1p(hertz / 700.0)[:, None]
    left, centre, right = edges[:-2], edges[1:-1], edges[2:]
    upward, downward = (mels - left) / (centre - left), (right - mels) / (right - centre)
    return torch.minimum(upward, downward).clamp_min(0.0)


def _mel(hertz: float) -> float:
    return 1127.0 * math.log1p(hertz / 700.0)


class Embedding(nn.Module):
    """CAM++: two-dimensional convolutions, dense blocks with masks by context, and statistics.

    Modules are named as in the checkpoint; `fuse` replaces them by faster ones that compute the
    same.
    """

    def __init__(self) -> None:
        super().__init__()
        self.head = _Head()
        channels = 4 * _WIDTH
        self.xvector = nn.Sequential()
        self.xvector.add_module("tdnn", _Stem(_WIDTH * _MELS // 8, channels))
        for number, (layers, dilation) in enumerate(_BLOCKS, start=1):
            self.xvector.add_module(f"block{number}", _DenseBlock(channels, layers, dilation))
            channels += layers * _WIDTH
            self.xvector.add_module(f"transit{number}", _Transition(channels))
            channels //= 2
        self.xvector.add_module("out_nonlinear", _Norm(channels))
        self.xvector.add_module("dense", _Output(channels))

    def forward(self, features: Tensor) -> Tensor:
        """(B, T, 80) features, T at least 3, -> (B, 192) embeddings of any length."""
        centred = features - features.mean(dim=1, keepdim=True)
        result: Tensor = self.xvector(self.head(centred.transpose(1, 2)[:, None]))
        return result

    def fuse(self) -> None:
        for module in self.modules():
            if isinstance(module, _Residual | _Head | _Stem | _DenseLayer):
                module.fuse()
        self.head = self.head.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        for name, module in self.xvector.named_children():
            if isinstance(module, _DenseBlock):
                self.xvector.set_submodule(name, _FusedBlock(module))
            elif isinstance(module, _Transition):
                self.xvector.set_submodule(name, _FusedTransition(module))


class _Norm(nn.Module):
    """Batch norm and a rectifier."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.batchnorm = nn.BatchNorm1d(channels)

    def forward(self, states: Tensor) -> Tensor:
        return functional.relu(self.batchnorm(states))


class _Residual(nn.Module):
    """Two convolutions and a shortcut, on (B, C, mel, T)."""

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = _convolution(_WIDTH, stride), nn.BatchNorm2d(_WIDTH)
        self.conv2, self.bn2 = _convolution(_WIDTH, 1), nn.BatchNorm2d(_WIDTH)
        self.shortcut = nn.Sequential()
        if stride > 1:
            narrow = nn.Conv2d(_WIDTH, _WIDTH, 1, stride=(stride, 1), bias=False)
            self.shortcut = nn.Sequential(narrow, nn.BatchNorm2d(_WIDTH))

    def forward(self, states: Tensor) -> Tensor:
        inner = functional.relu(self.bn1(self.conv1(states)), inplace=True)
        sums = self.bn2(self.conv2(inner)) + self.shortcut(states)
        return functional.relu(sums, inplace=True)

    def fuse(self) -> None:
        _fold(self, "conv1", "bn1")
        _fold(self, "conv2", "bn2")
        if len(self.shortcut):
            _fold(self, "shortcut.0", "shortcut.1")


class _Head(nn.Module):
    """(B, 1, 80, T) features -> (B, 320, T), an eighth as fine in frequency."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, _WIDTH, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(_WIDTH)
        self.layer1 = nn.Sequential(_Residual(2), _Residual(1))
        self.layer2 = nn.Sequential(_Residual(2), _Residual(1))
        self.conv2, self.bn2 = _convolution(_WIDTH, 2), nn.BatchNorm2d(_WIDTH)

    def forward(self, features: Tensor) -> Tensor:
        states = functional.relu(self.bn1(self.conv1(features)), inplace=True)
        states = self.bn2(self.conv2(self.layer2(self.layer1(states))))
        return functional.relu(states, inplace=True).flatten(1, 2)

    def fuse(self) -> None:
        _fold(self, "conv1", "bn1")
        _fold(self, "conv2", "bn2")


class _Stem(nn.Module):
    """The first convolution over time, which halves the frames."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        self.linear = nn.Conv1d(channels, out_channels, 5, stride=2, padding=2, bias=False)
        self.nonlinear = _Norm(out_channels)

    def forward(self, states: Tensor) -> Tensor:
        result: Tensor = self.nonlinear(self.linear(states))
        return result

    def fuse(self) -> None:
        _fold(self, "linear", "nonlinear.batchnorm")


class _ContextMask(nn.Module):
    """A convolution, masked by the averages of the span and of each 100 frames of it."""

    def __init__(self, dilation: int) -> None:
        super().__init__()
        channels = 4 * _WIDTH
        self.linear_local = nn.Conv1d(
            channels, _WIDTH, 3, padding=dilation, dilation=dilation, bias=False
        )
        self.linear1 = nn.Conv1d(channels, channels // 2, 1)
        self.linear2 = nn.Conv1d(channels // 2, _WIDTH, 1)

    def forward(self, states: Tensor) -> Tensor:
        frames = states.shape[-1]
        parts = functional.avg_pool1d(states, _CONTEXT_FRAMES, _CONTEXT_FRAMES, ceil_mode=True)
        context = parts + states.mean(dim=-1, keepdim=True)
        # What is the same in 100 frames is computed once for them.
        mask = torch.sigmoid(self.linear2(functional.relu(self.linear1(context))))
        mask = mask.repeat_interleave(_CONTEXT_FRAMES, dim=-1)[..., :frames]
        result: Tensor = self.linear_local(states) * mask
        return result


class _DenseLayer(nn.Module):
    def __init__(self, channels: int, dilation: int) -> None:
        super().__init__()
        self.nonlinear1 = _Norm(channels)
        self.linear1 = nn.Conv1d(channels, 4 * _WIDTH, 1, bias=False)
        self.nonlinear2 = _Norm(4 * _WIDTH)
        self.cam_layer = _ContextMask(dilation)

    def forward(self, states: Tensor) -> Tensor:
        result: Tensor = self.cam_layer(self.nonlinear2(self.linear1(self.nonlinear1(states))))
        return result

    def fuse(self) -> None:
        _fold(self, "linear1", "nonlinear2.batchnorm")


class _DenseBlock(nn.Module):
    """Layers that each see what all before them result."""

    def __init__(self, channels: int, layers: int, dilation: int) -> None:
        super().__init__()
        for number in range(layers):
            layer = _DenseLayer(channels + number * _WIDTH, dilation)
            self.add_module(f"tdnnd{number + 1}", layer)

    def forward(self, states: Tensor) -> Tensor:
        for layer in self.children():
            states = torch.cat((states, layer(states)), dim=1)
        return states


class _Transition(nn.Module):
    """Half as many channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.nonlinear = _Norm(channels)
        self.linear = nn.Conv1d(channels, channels // 2, 1, bias=False)

    def forward(self, states: Tensor) -> Tensor:
        result: Tensor = self.linear(self.nonlinear(states))
        return result


class _Output(nn.Module):
    """(B, C, T) states -> (B, 192), from their means and standard deviations over time."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.linear = nn.Conv1d(2 * channels, EMBEDDING_SIZE, 1, bias=False)
        self.nonlinear = nn.ModuleDict({"batchnorm": nn.BatchNorm1d(EMBEDDING_SIZE, affine=False)})

    def forward(self, states: Tensor) -> Tensor:
        statistics = torch.cat((states.mean(dim=-1), states.std(dim=-1)), dim=1)
        result: Tensor = self.nonlinear["batchnorm"](self.linear(statistics[..., None])[..., 0])
        return result


class _ClampedLinear(nn.Module):
    """A batch norm, a rectifier and a convolution over one frame, on (B, T, C).

    max(0, a x + b) is a clamp(x) + b with one limit of -b / a, above or below by the sign of a; the
    convolution absorbs a and b, so that one pass over the states is left.
    """

    low: Tensor
    high: Tensor

    def __init__(self, norm: nn.BatchNorm1d, convolution: nn.Conv1d) -> None:
        super().__init__()
        assert norm.running_var is not None
        assert norm.running_mean is not None
        scale = norm.weight / (norm.running_var + norm.eps).sqrt()
        shift = norm.bias - norm.running_mean * scale
        limit = -shift / scale
        self.register_buffer("low", limit.where(scale > 0, -torch.inf))
        self.register_buffer("high", limit.where(scale < 0, torch.inf))
        self.linear = _linear(convolution)
        bias = 0.0 if convolution.bias is None else convolution.bias
        self.linear.bias = nn.Parameter(bias + self.linear.weight @ shift)
        self.linear.weight = nn.Parameter(self.linear.weight * scale)

    def forward(self, states: Tensor) -> Tensor:
        result: Tensor = self.linear(states.clamp(self.low, self.high))
        return result


class _FusedLayer(nn.Module):
    """A dense layer on (B, T, C), in products of matrices."""

    taps: Tensor

    def __init__(self, layer: _DenseLayer) -> None:
        super().__init__()
        local = layer.cam_layer.linear_local
        self.dilation = local.dilation[0]
        self.narrow = _ClampedLinear(layer.nonlinear1.batchnorm, layer.linear1)
        self.register_buffer("taps", local.weight.permute(2, 0, 1).flatten(0, 1).contiguous())
        self.linear1 = _linear(layer.cam_layer.linear1)
        self.linear2 = _linear(layer.cam_layer.linear2)

    def forward(self, states: Tensor) -> Tensor:
        inner = functional.relu(self.narrow(states), inplace=True)
        # The three taps of the convolution in one product.
        before, result, after = functional.linear(inner, self.taps).chunk(3, dim=-1)
        result[:, self.dilation :] += before[:, : -self.dilation]
        result[:, : -self.dilation] += after[:, self.dilation :]
        return result * self._mask(inner)

    def _mask(self, states: Tensor) -> Tensor:
        parts = [each.mean(dim=1) for each in states.split(_CONTEXT_FRAMES, dim=1)]
        context = torch.stack(parts, dim=1) + states.mean(dim=1, keepdim=True)
        mask = torch.sigmoid(self.linear2(functional.relu(self.linear1(context))))
        if len(parts) == 1:
            return mask
        return mask.repeat_interleave(_CONTEXT_FRAMES, dim=1)[:, : states.shape[1]]


class _FusedBlock(nn.Module):
    """A dense block whose layers write to one tensor."""

    def __init__(self, block: _DenseBlock) -> None:
        super().__init__()
        layers = [layer for layer in block.children() if isinstance(layer, _DenseLayer)]
        self.layers = nn.ModuleList(_FusedLayer(layer) for layer in layers)

    def forward(self, states: Tensor) -> Tensor:
        """(B, C, T) states -> (B, C + 32 layers, T)."""
        batch, channels, frames = states.shape
        wide = states.new_empty(batch, frames, channels + len(self.layers) * _WIDTH)
        wide[..., :channels] = states.transpose(1, 2)
        for layer in self.layers:
            wide[..., channels : channels + _WIDTH] = layer(wide[..., :channels])
            channels += _WIDTH
        return wide.transpose(1, 2)


class _FusedTransition(nn.Module):
    def __init__(self, transition: _Transition) -> None:
        super().__init__()
        self.narrow = _ClampedLinear(transition.nonlinear.batchnorm, transition.linear)

    def forward(self, states: Tensor) -> Tensor:
        result: Tensor = self.narrow(states.transpose(1, 2)).transpose(1, 2)
        return result


def _linear(convolution: nn.Conv1d) -> nn.Linear:
    """A convolution over one frame as a layer on (B, T, C)."""
    weight = convolution.weight[..., 0]
    result = nn.Linear(weight.shape[1], weight.shape[0], bias=convolution.bias is not None)
    result.weight = nn.Parameter(weight.contiguous())
    if convolution.bias is not None:
        result.bias = nn.Parameter(convolution.bias)
    return result


def _convolution(channels: int, stride: int) -> nn.Conv2d:
    return nn.Conv2d(channels, channels, 3, stride=(stride, 1), padding=1, bias=False)


def _fold(inside: nn.Module, convolution: str, norm: str) -> None:
    """Let the convolution of that name do what the norm after it does, and the norm nothing."""
    first, second = inside.get_submodule(convolution), inside.get_submodule(norm)
    assert isinstance(first, nn.Conv1d | nn.Conv2d)
    assert isinstance(second, nn.BatchNorm1d | nn.BatchNorm2d)
    inside.set_submodule(convolution, fuse_conv_bn_eval(first, second))
    inside.set_submodule(norm, nn.Identity())


def load(device: str = "cpu", folder: Path | None = None) -> Embedding:
    """The network on `device`; raises `ExtraMissing`, `WeightsMissing` or `WeightsCorrupt`."""
    stored = weights.load(weights.EMBEDDING, folder)
    network = Embedding()
    try:
        network.load_state_dict(stored)
    except RuntimeError as failure:
        path = str(weights.EMBEDDING.path)
        raise WeightsCorrupt(path, f"{type(failure).__name__}: {failure}") from failure
    network.eval()
    with torch.no_grad():
        network.fuse()
    return network.requires_grad_(requires_grad=False).to(device)
