"""A model as it is served: folded, in one precision, in one file that is read where it lies.

Made once from a checkpoint, aside, and renamed when it is whole. Reading it is mapping it into
memory: no parsing, no copy, and workers on one machine share its pages.
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

# To be raised whenever `fold` gives other tensors, or the description other keys.
_FORMAT = 4
_HEADER = "parakeet_worker"
_DTYPES = {
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int64: "I64",
    torch.int8: "I8",
}

# Weights that relatives of the model carry beside the transducer; they do not change its text.
_LEFT_ASIDE = ("vad_head.", "ctc_decoder.")
_PARTS = ("preprocessor.", "encoder.", "decoder.", "joint.")


@dataclass(frozen=True, slots=True, eq=False)
class Prepacked(ModelConfig):
    """A model in the precision that its encoder is served in; the rest is in float32."""

    precision: Precision
    tensors: Tensors


def open_prepacked(source: Path, precision: Precision, folder: Path | None) -> Prepacked:
    """The checkpoint at `source` converted: from `folder` if it was before, else made and kept.

    A folder that cannot be written to costs the next start its speed and nothing else. Raises
    `WeightsCorrupt` and `WeightsUnsupported`.
    """
    kept = None if folder is None else folder / _name(source, precision)
    if kept is not None and kept.exists():
        try:
            return load_prepacked(kept)
        except WeightsCorrupt as failure:
            log.warning("converting again: %s", failure)
    converted = prepack(checkpoints.read_checkpoint(source), precision)
    if kept is not None:
        try:
            save_prepacked(converted, kept)
        except OSError as failure:
            log.warning("the converted model cannot be kept: %s", failure)
    return converted


def prepack_file(source: Path, precision: Precision, target: Path) -> None:
    """Convert the checkpoint at `source` to a file that can be opened in its place.

    Raises `OSError`, `WeightsCorrupt` and `WeightsUnsupported`.
    """
    save_prepacked(prepack(checkpoints.read_checkpoint(source), precision), target)


def _name(source: Path, precision: Precision) -> str:
    """Another name for another file, another state of it, or another format of ours."""
    files = sorted(source.iterdir()) if source.is_dir() else [source]
    state = [(str(one.resolve()), one.stat().st_size, one.stat().st_mtime_ns) for one in files]
    digest = sha256(json.dumps([_FORMAT, state]).encode()).hexdigest()[:16]
    return f"{source.stem}-{precision}-{digest}.safetensors"


def prepack(checkpoint: Checkpoint, precision: Precision) -> Prepacked:
    """Check the checkpoint as a whole and fold it.

    Raises `WeightsCorrupt` for tensors that do not fit the description, `WeightsUnsupported` for
    a description that the engine does not implement.
    """
    with checkpoints.translate_errors(checkpoint.source):
        return _converted(checkpoint, precision)


def _converted(checkpoint: Checkpoint, precision: Precision) -> Prepacked:
    _check(checkpoint)
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
    return Prepacked(**_described(checkpoint), precision=precision, tensors=aligned(tensors))


def _check(checkpoint: Checkpoint) -> None:
    """The sections must agree with each other before a single weight is copied."""
    named = checkpoint.joint.get("num_extra_outputs", 0)
    if named != len(checkpoint.durations):
        raise WeightsUnsupported("joint", "num_extra_outputs", named)
    if len(checkpoint.vocabulary.pieces) != checkpoint.joint.get("num_classes"):
        raise WeightsUnsupported("joint", "num_classes", checkpoint.joint.get("num_classes"))
    aside = [name for name in checkpoint.weights if name.startswith(_LEFT_ASIDE)]
    if aside:
        log.info("left aside %d weights: %s", len(aside), ", ".join(aside))
    for name in checkpoint.weights:
        if not name.startswith((*_PARTS, *_LEFT_ASIDE)):
            raise WeightsUnsupported("weights", name, "a part that the engine does not have")


def _fill(module: nn.Module, checkpoint: Checkpoint, part: str) -> None:
    """Put the weights of `part` in place; a name or a shape that does not fit is an error."""
    given = strip_prefix(part, checkpoint.weights)
    wanted = module.state_dict()
    for name in sorted(given.keys() | wanted.keys()):
        reason = _misfit(given.get(name), wanted.get(name))
        if reason:
            raise WeightsCorrupt(str(checkpoint.source), reason, key=f"{part}.{name}")
    floats = {
        name: tensor.float() if tensor.is_floating_point() else tensor
        for name, tensor in given.items()
    }
    module.load_state_dict(floats, assign=True)


def _misfit(given: Tensor | None, wanted: Tensor | None) -> str | None:
    if given is None:
        return "is missing"
    if wanted is None:
        return "is not a weight of this architecture"
    if given.shape != wanted.shape:
        return f"has the shape {tuple(given.shape)}, not {tuple(wanted.shape)}"
    return None


def _described(model: ModelConfig) -> dict[str, Any]:
    return {name: getattr(model, name) for name in ModelConfig.__dataclass_fields__}


def save_prepacked(converted: Prepacked, path: Path) -> None:
    """Keep it at `path`, which holds nothing or all of it at any moment; raises `OSError`."""
    described = _described(converted)
    described["vocabulary"] = converted.vocabulary.pieces
    header = {_HEADER: json.dumps({**described, "precision": converted.precision})}
    path.parent.mkdir(parents=True, exist_ok=True)
    with NamedTemporaryFile(dir=path.parent, prefix=f".{path.stem}-", delete=False) as unfinished:
        aside = Path(unfinished.name)
    try:
        _save(converted.tensors, header, aside)
        # A temporary file is its owner's alone; the model is for every worker on the volume.
        aside.chmod(0o644)
        with aside.open("rb") as written:
            os.fsync(written.fileno())
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def _save(tensors: Tensors, metadata: Mapping[str, str], path: Path) -> None:
    """In the safetensors format, with what fills whole cache lines at the beginning of one.

    The library's own writer begins tensors anywhere, and each would be copied when it is read.
    The rest, a few vectors, comes last: the widest types first, as the format aligns by type.
    """

    def place(name: str) -> tuple[bool, int, str]:
        tensor = tensors[name]
        return tensor.nbytes % ALIGNMENT != 0, -tensor.itemsize, name

    entries: dict[str, Any] = {"__metadata__": metadata}
    end = 0
    for name in sorted(tensors, key=place):
        tensor, begin = tensors[name], end
        end += tensor.nbytes
        entries[name] = {
            "dtype": _DTYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [begin, end],
        }
    header = json.dumps(entries).encode()
    header += b" " * (-(8 + len(header)) % ALIGNMENT)
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        for name in sorted(tensors, key=place):
            file.write(tensors[name].contiguous().flatten().view(torch.uint8).numpy().data)


def load_prepacked(path: Path) -> Prepacked:
    """What `write` kept, its tensors mapped into memory; raises `WeightsCorrupt`."""
    try:
        with safe_open(path, framework="pt") as opened:
            described = json.loads(opened.metadata()[_HEADER])
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 (no mapping)
        described["vocabulary"] = Vocabulary(tuple(described["vocabulary"]))
        described["durations"] = tuple(described["durations"])
        precision = Precision(described.pop("precision"))
        return Prepacked(**described, precision=precision, tensors=aligned(tensors))
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as failure:
        raise WeightsCorrupt(str(path), f"{type(failure).__name__}: {failure}") from failure
