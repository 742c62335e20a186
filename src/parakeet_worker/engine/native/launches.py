"""Records every kernel launch of a model, without a device.

The engine's own code runs on meta tensors, which have shapes but no memory, so that the recorded
launches are those of the product.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from parakeet_worker.engine.native.checkpoint import ModelConfig
from parakeet_worker.engine.native.decoder import Joint, JointConfig, Predictor, PredictorConfig
from parakeet_worker.engine.native.encoder import Encoder, EncoderConfig
from parakeet_worker.engine.native.features import Features, FeaturesConfig
from parakeet_worker.engine.native.folding import fold
from parakeet_worker.engine.native.kernels.kernel_set import Kernels
from parakeet_worker.engine.native.kernels.launcher import Launch, recording
from parakeet_worker.engine.native.kernels.tiles import Tiles
from parakeet_worker.engine.native.packed_encoder import PackedEncoder
from parakeet_worker.engine.native.packed_features import PackedFeatures
from parakeet_worker.engine.native.precision import Precision
from parakeet_worker.engine.native.rows import Plan, rows_of
from parakeet_worker.engine.native.search import GraphSearch, SearchKernels, SearchModel

_META = torch.device("meta")
_LAYERS = 2  # further layers repeat these launches
_SECONDS = (3, 1)


@dataclass(frozen=True, slots=True)
class ModelShape:
    """The properties of a model that determine its kernels' constants."""

    features: FeaturesConfig
    encoder: EncoderConfig
    predictor: PredictorConfig
    joint: JointConfig
    durations: tuple[int, ...]
    max_symbols: int

    @classmethod
    def of(cls, model: ModelConfig) -> "ModelShape":
        """Reduce a model to these properties. Raises `WeightsUnsupported`."""
        encoder, joint = EncoderConfig.from_nemo(model.encoder), JointConfig.from_nemo(model.joint)
        layers = min(_LAYERS, encoder.layers)
        return cls(
            features=FeaturesConfig.from_nemo(model.preprocessor),
            encoder=replace(encoder, layers=layers, dropout=0.0, dropout_attention=0.0),
            predictor=replace(PredictorConfig.from_nemo(model.decoder), dropout=0.0),
            joint=replace(joint, dropout=0.0),
            durations=tuple(model.durations),
            max_symbols=model.max_symbols,
        )

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> "ModelShape":
        """Parse the result of `dataclasses.asdict`, also after a round trip through JSON."""
        return cls(
            features=FeaturesConfig(**fields["features"]),
            encoder=EncoderConfig(**fields["encoder"]),
            predictor=PredictorConfig(**fields["predictor"]),
            joint=JointConfig(**fields["joint"]),
            durations=tuple(fields["durations"]),
            max_symbols=fields["max_symbols"],
        )


def launches(
    shape: ModelShape, precision: Precision, tiles: Tiles, *, reproducible: bool = False
) -> list[Launch]:
    """Launches of one batch; its size and lengths do not affect the compiled code."""
    recorded: list[Launch] = []
    with recording(recorded.append), torch.inference_mode():
        _encode(shape, precision, Kernels.triton(tiles, reproducible=reproducible))
        _search(shape, tiles, reproducible=reproducible)
    return recorded


def _encode(shape: ModelShape, precision: Precision, kernels: Kernels) -> None:
    features = PackedFeatures.of(Features(shape.features).to(_META), kernels, precision.dtype)
    with _META:
        encoder = Encoder(shape.encoder).eval()
        packed = PackedEncoder(fold(encoder, precision), encoder.config, kernels)
    rate, hop = shape.features.sample_rate, shape.features.hop_samples
    plan = Plan(tuple(seconds * rate for seconds in _SECONDS), hop)
    rows = rows_of(plan, [1.0] * len(_SECONDS), _META)
    samples = torch.empty(sum(plan.samples), dtype=torch.int16, device=_META)
    packed(features(samples, rows), rows)


def _search(shape: ModelShape, tiles: Tiles, *, reproducible: bool) -> None:
    with _META:
        model = SearchModel(
            dict(Predictor(shape.predictor).state_dict()),
            dict(Joint(shape.joint).state_dict()),
            shape.joint.activation,
            shape.durations,
            shape.max_symbols,
        )
        search = GraphSearch(
            model,
            _META,
            kernels=SearchKernels.triton(tiles, reproducible=reproducible),
            tiles=tiles,
        )
        search.record_steps()
