"""Every kernel launch that a model makes, recorded without a device."""

from types import ModuleType

import torch

from parakeet_worker.engine.native.checkpoint import Description
from parakeet_worker.engine.native.encoder import EncoderShape
from parakeet_worker.engine.native.features import FeaturesShape
from parakeet_worker.engine.native.kernels import (
    attention,
    depthwise,
    frames,
    glu,
    mel_norm,
    position_query,
    power,
    residual_norm,
    subsampling_first,
    subsampling_next,
)
from parakeet_worker.engine.native.kernels.cases import Widths, cases
from parakeet_worker.engine.native.kernels.launcher import Launch, recording
from parakeet_worker.engine.native.kernels.tiles import Tiles
from parakeet_worker.engine.native.precision import Precision

PRECISIONS = (Precision.BF16, Precision.FP16)
"""Those that kernels serve in."""

_MODULES: dict[str, ModuleType] = {
    "frames": frames,
    "power": power,
    "mel_norm": mel_norm,
    "subsampling_first": subsampling_first,
    "subsampling_next": subsampling_next,
    "residual_norm": residual_norm,
    "position_query": position_query,
    "attention": attention,
    "glu": glu,
    "depthwise": depthwise,
}


def widths_of(model: Description) -> Widths:
    """What its kernels are compiled for; raises `WeightsUnsupported`."""
    features, encoder = FeaturesShape.read(model.preprocessor), EncoderShape.read(model.encoder)
    return Widths(
        fft_samples=features.fft_samples,
        hop_samples=features.hop_samples,
        preemphasis=features.preemphasis,
        log_guard=features.log_guard,
        mels=encoder.mels,
        channels=encoder.subsampling_channels,
        width=encoder.width,
        heads=encoder.heads,
        taps=encoder.conv_kernel,
    )


def launches(widths: Widths, precision: Precision, tiles: Tiles) -> list[Launch]:
    """Of one batch: its size and lengths change nothing that a kernel is compiled for."""
    recorded: list[Launch] = []
    with recording(recorded.append):
        for case in cases(widths, precision.dtype, torch.device("meta")):
            launch, tile = _MODULES[case.kernel].launch, getattr(tiles, case.kernel)
            case.run(
                lambda *given, call=launch, tile=tile, **named: call(*given, tile=tile, **named)
            )
    return recorded
