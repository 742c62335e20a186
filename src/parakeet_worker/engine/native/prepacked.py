"""Prepacked models: folded weights in the serving precision, in one memory-mapped file.

Converted once from a checkpoint and published atomically. Loading maps the file without parsing or
copying, and workers on one machine share its pages.
"""

import json
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from parakeet_worker.engine.native import checkpoint as checkpoints
from parakeet_worker.engine.native.checkpoint import Checkpoint, ModelConfig
from parakeet_worker.engine.native.decoder import Joint, Predictor
from parakeet_worker.engine.native.encoder import Encoder
from parakeet_worker.engine.native.features import Features
from parakeet_worker.engine.native.folding import fold
from parakeet_worker.engine.native.precision import Precision
from parakeet_worker.engine.native.ranges import check_float16
from parakeet_worker.engine.native.tensors import (
    ALIGNMENT,
    Tensors,
    add_prefix,
    aligned,
    strip_prefix,
)
from parakeet_worker.engine.native.tokens import Vocabulary
from parakeet_worker.errors import WeightsCorrupt, WeightsUnsupported

log = logging.getLogger(__name__)

# Increment when the tensors of `fold` or the keys of the configuration change.
_FORMAT = 4
_HEADER = "parakeet_worker"
_DTYPES = {
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int64: "I64",
    torch.int8: "I8",
}

# Weights in derived models that the transducer does not use.
_UNUSED = ("vad_head.", "ctc_decoder.")
_PARTS = ("preprocessor.", "encoder.", "decoder.", "joint.")


@dataclass(frozen=True, slots=True, eq=False)
class Prepacked(ModelConfig):
    """A model with its encoder in the serving precision; the rest is in float32."""

    precision: Precision
    tensors: Tensors


def open_prepacked(source: Path, precision: Precision, folder: Path | None) -> Prepacked:
    """Load the prepacked checkpoint from the cache in `folder`, or convert and cache it.

    If the folder is not writable, a warning is logged and the next start converts again. Raises
    `WeightsCorrupt` and `WeightsUnsupported`.
    """
    cached = None if folder is None else folder / _file_name(source, precision)
    if cached is not None and cached.exists():
        try:
            return load_prepacked(cached)
        except WeightsCorrupt as failure:
            log.warning("converting again: %s", failure)
    model = prepack(checkpoints.read_checkpoint(source), precision)
    if cached is not None:
        try:
            save_prepacked(model, cached)
        except OSError as failure:
            log.warning("cannot cache the converted model: %s", failure)
    return model


def prepack_file(source: Path, precision: Precision, target: Path) -> None:
    """Convert the checkpoint at `source` to the file `target`, which can be loaded instead.

    Raises `OSError`, `WeightsCorrupt` and `WeightsUnsupported`.
    """
    save_prepacked(prepack(checkpoints.read_checkpoint(source), precision), target)


def _file_name(source: Path, precision: Precision) -> str:
    """A cache key of the paths, sizes and modification times of the source, and of the format."""
    files = sorted(source.iterdir()) if source.is_dir() else [source]
    state = [(str(one.resolve()), one.stat().st_size, one.stat().st_mtime_ns) for one in files]
    digest = sha256(json.dumps([_FORMAT, state]).encode()).hexdigest()[:16]
    return f"{source.stem}-{precision}-{digest}.safetensors"


def prepack(checkpoint: Checkpoint, precision: Precision) -> Prepacked:
    """Validate the checkpoint and fold it.

    Raises `WeightsCorrupt` if tensors do not match the configuration, `WeightsUnsupported` if the
    configuration is not implemented.
    """
    with checkpoints.translate_errors(checkpoint.source):
        return _prepack(checkpoint, precision)


def _prepack(checkpoint: Checkpoint, precision: Precision) -> Prepacked:
    _validate(checkpoint)
    features = Features.from_config(checkpoint.preprocessor)
    with torch.device("meta"):
        encoder = Encoder.from_config(checkpoint.encoder).eval()
        predictor = Predictor.from_config(checkpoint.decoder)
        joint = Joint.from_config(checkpoint.joint)
    if strip_prefix("preprocessor", checkpoint.weights):
        _fill(features, checkpoint, "preprocessor")
    _fill(encoder, checkpoint, "encoder")
    _fill(predictor, checkpoint, "decoder")
    _fill(joint, checkpoint, "joint")
    folded = fold(encoder, precision)
    if precision is Precision.FP16:
        check_float16(folded)
    tensors = (
        add_prefix("encoder", folded)
        | add_prefix("preprocessor", features.state_dict())
        | add_prefix("decoder", predictor.state_dict())
        | add_prefix("joint", joint.state_dict())
    )
    return Prepacked(**_config_of(checkpoint), precision=precision, tensors=aligned(tensors))


def _validate(checkpoint: Checkpoint) -> None:
    """Check that the sections are consistent and that every weight belongs to a known module."""
    durations = checkpoint.joint.get("num_extra_outputs", 0)
    if durations != len(checkpoint.durations):
        raise WeightsUnsupported("joint", "num_extra_outputs", durations)
    if len(checkpoint.vocabulary.pieces) != checkpoint.joint.get("num_classes"):
        raise WeightsUnsupported("joint", "num_classes", checkpoint.joint.get("num_classes"))
    unused = [name for name in checkpoint.weights if name.startswith(_UNUSED)]
    if unused:
        log.info("ignoring %d unused weights: %s", len(unused), ", ".join(unused))
    for name in checkpoint.weights:
        if not name.startswith((*_PARTS, *_UNUSED)):
            raise WeightsUnsupported("weights", name, "unknown module")


def _fill(module: nn.Module, checkpoint: Checkpoint, part: str) -> None:
    """Load the weights of `part`; raises `WeightsCorrupt` if a name or shape does not match."""
    weights = strip_prefix(part, checkpoint.weights)
    expected = module.state_dict()
    for name in sorted(weights.keys() | expected.keys()):
        reason = _mismatch(weights.get(name), expected.get(name))
        if reason:
            raise WeightsCorrupt(str(checkpoint.source), reason, key=f"{part}.{name}")
    floats = {
        name: tensor.float() if tensor.is_floating_point() else tensor
        for name, tensor in weights.items()
    }
    module.load_state_dict(floats, assign=True)


def _mismatch(tensor: Tensor | None, expected: Tensor | None) -> str | None:
    if tensor is None:
        return "is missing"
    if expected is None:
        return "is not a weight of this architecture"
    if tensor.shape != expected.shape:
        return f"has the shape {tuple(tensor.shape)}, not {tuple(expected.shape)}"
    return None


def _config_of(model: ModelConfig) -> dict[str, Any]:
    return {name: getattr(model, name) for name in ModelConfig.__dataclass_fields__}


def save_prepacked(model: Prepacked, path: Path) -> None:
    """Write `model` to `path` atomically; raises `OSError`."""
    config = _config_of(model)
    config["vocabulary"] = model.vocabulary.pieces
    header = {_HEADER: json.dumps({**config, "precision": model.precision})}
    path.parent.mkdir(parents=True, exist_ok=True)
    with NamedTemporaryFile(dir=path.parent, prefix=f".{path.stem}-", delete=False) as opened:
        temporary = Path(opened.name)
    try:
        _write_tensors(model.tensors, header, temporary)
        # Temporary files are private to their owner; all workers on a volume read the model.
        temporary.chmod(0o644)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _write_tensors(tensors: Tensors, metadata: Mapping[str, str], path: Path) -> None:
    """Write a safetensors file in which tensors of whole cache lines are aligned to them.

    The library's writer does not align, so that every tensor would be copied on load. The other
    tensors, a few vectors, come last, widest types first, as the format requires.
    """

    def order(name: str) -> tuple[bool, int, str]:
        tensor = tensors[name]
        return tensor.nbytes % ALIGNMENT != 0, -tensor.itemsize, name

    entries: dict[str, Any] = {"__metadata__": metadata}
    end = 0
    for name in sorted(tensors, key=order):
        tensor, start = tensors[name], end
        end += tensor.nbytes
        entries[name] = {
            "dtype": _DTYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    header = json.dumps(entries).encode()
    header += b" " * (-(8 + len(header)) % ALIGNMENT)
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        for name in sorted(tensors, key=order):
            file.write(tensors[name].contiguous().flatten().view(torch.uint8).numpy().data)


def load_prepacked(path: Path) -> Prepacked:
    """Map a file of `save_prepacked` into memory; raises `WeightsCorrupt`."""
    try:
        with safe_open(path, framework="pt") as opened:
            config = json.loads(opened.metadata()[_HEADER])
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118  # not a mapping
        config["vocabulary"] = Vocabulary(tuple(config["vocabulary"]))
        config["durations"] = tuple(config["durations"])
        precision = Precision(config.pop("precision"))
        return Prepacked(**config, precision=precision, tensors=aligned(tensors))
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as failure:
        raise WeightsCorrupt(str(path), f"{type(failure).__name__}: {failure}") from failure
