"""Full-size models with random weights, calibrated to emit tokens at a realistic rate.

The sizes and the computation are those of parakeet-tdt-0.6b-v3, except for the number of tokens,
each of which costs a decoder step. It is set by the output biases of the joint network.
"""

import io
import json
import shutil
import struct
import subprocess
import sys
import tarfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench import harness
from bench.harness import ROOT

if TYPE_CHECKING:
    from parakeet_worker.engine.base import Samples

_SEED = 20251124
_TOKENS_PER_SECOND = 3.5
"""Approximate rate of read speech in 25 languages with a vocabulary of 8,192 pieces."""
# In speech, few tokens share a frame, and short durations are more frequent than long ones.
_DURATION_BIASES = (-2.0, 0.5, 0.5, 0.25, 0.0)
CALIBRATION_SECONDS = 30.0
CALIBRATION_PIECES = 2

_SMALL = {"n_layers": 2, "d_model": 128, "n_heads": 4, "subsampling_conv_channels": 32}
_SMALL_HIDDEN, _SMALL_PIECES = 64, 256


@dataclass(frozen=True, slots=True)
class Files:
    """One model in every engine's own format."""

    folder: Path

    @property
    def nemo(self) -> Path:
        return self.folder / "random.nemo"

    @property
    def transformers(self) -> Path:
        return self.folder / "transformers"

    @property
    def onnx(self) -> Path:
        return self.folder / "onnx"

    @property
    def converted(self) -> Path:
        """Where the native engine caches the prepacked model."""
        return self.folder / "converted"

    @property
    def facts(self) -> dict[str, Any]:
        """How the weights were made, and their token rate."""
        facts: dict[str, Any] = json.loads((self.folder / "facts.json").read_text())
        return facts


@dataclass(frozen=True, slots=True)
class Facts:
    """How the weights were made."""

    size: str
    seed: int
    parameters: int
    blank_bias: float
    duration_biases: tuple[float, ...]
    calibrated_tokens_per_second: float
    calibrated_steps_per_second: float


def made(size: str, work: Path, kinds: Sequence[str]) -> Files:
    """The model of `size` in the formats of `kinds`; each is made once, in its own process.

    A process of its own gives back the memory that the making took.
    """
    files = Files(work / size)
    targets = {"nemo": files.nemo, "transformers": files.transformers, "onnx": files.onnx}
    for kind in ("nemo", *(kind for kind in targets if kind in kinds and kind != "nemo")):
        if not targets[kind].exists():
            print(f"making {targets[kind].name} ({size})", file=sys.stderr, flush=True)
            command = [sys.executable, "-m", "bench.random_model", kind, size, str(files.folder)]
            subprocess.run(command, check=True, cwd=ROOT, stdout=sys.stderr)
    return files


def config(size: str) -> dict[str, Any]:
    """`model_config.yaml`: the published sizes, or toy ones to try the harness itself."""
    from published import nemo_config

    sections: dict[str, Any] = nemo_config("parakeet-tdt-0.6b-v3")
    if size == "small":
        names = _pieces(_SMALL_PIECES)
        sections["encoder"] |= _SMALL
        sections["decoder"]["vocab_size"] = sections["joint"]["num_classes"] = len(names)
        sections["decoder"]["prednet"]["pred_hidden"] = _SMALL_HIDDEN
        network = {"joint_hidden": _SMALL_HIDDEN, "pred_hidden": _SMALL_HIDDEN}
        sections["joint"]["jointnet"] |= {**network, "encoder_hidden": _SMALL["d_model"]}
        sections["model_defaults"] |= {**network, "enc_hidden": _SMALL["d_model"]}
        sections["joint"]["vocabulary"] = sections["labels"] = names
    return sections


def _pieces(count: int) -> list[str]:
    return ["<unk>", *(f"▁{number}" for number in range(count - 1))]


def write_nemo(size: str, folder: Path, pieces: "Sequence[Samples]") -> None:
    """Draw the weights, set how often they speak of `pieces`, and write them as NeMo's file."""
    import torch
    import yaml

    sections = config(size)
    weights, facts = _weights(size, sections, pieces)
    tokenizer = _tokenizer(sections["labels"])
    folder.mkdir(parents=True, exist_ok=True)
    saved = io.BytesIO()
    torch.save(weights, saved)
    with tarfile.open(folder / "random.partial", "w:") as archive:
        _add(archive, "model_config.yaml", yaml.safe_dump(sections).encode())
        for name, content in tokenizer.items():
            _add(archive, name, content)
        _add(archive, "model_weights.ckpt", saved.getvalue())
    (folder / "facts.json").write_text(json.dumps(asdict(facts), indent=1))
    (folder / "random.partial").rename(Files(folder).nemo)


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(f"./{name}")
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))


def _weights(
    size: str, sections: dict[str, Any], pieces: "Sequence[Samples]"
) -> tuple[dict[str, Any], Facts]:
    """NeMo's names to tensors, by torch's own initialisation of our modules."""
    import torch

    from bench import calibration
    from parakeet_worker.engine.native.decoder import Joint, Predictor
    from parakeet_worker.engine.native.encoder import Encoder
    from parakeet_worker.engine.native.features import Features

    torch.manual_seed(_SEED)
    parts = calibration.Parts(
        features=Features.from_config(sections["preprocessor"]).eval(),
        encoder=Encoder.from_config(sections["encoder"]).eval(),
        predictor=Predictor.from_config(sections["decoder"]).eval(),
        joint=Joint.from_config(sections["joint"]).eval(),
    )
    calibration.enliven(parts)
    pace = calibration.set_pace(
        parts,
        tokens_per_second=_TOKENS_PER_SECOND,
        duration_biases=_DURATION_BIASES,
        pieces=pieces,
    )
    weights = parts.state()
    facts = Facts(
        size=size,
        seed=_SEED,
        parameters=sum(tensor.numel() for tensor in weights.values()),
        blank_bias=pace.blank_bias,
        duration_biases=_DURATION_BIASES,
        calibrated_tokens_per_second=pace.tokens_per_second,
        calibrated_steps_per_second=pace.steps_per_second,
    )
    return weights, facts


def _tokenizer(names: Sequence[str]) -> dict[str, bytes]:
    """The three tokenizer files of NeMo: the SentencePiece model, and its pieces twice as text.

    The model is written field by field, since the library can only train one, on text that has
    8,192 pieces in it.
    """
    pieces = [
        _message(1, _message(1, name.encode()) + _single(2, -float(place)) + _number(3, kind))
        for place, name in enumerate(names)
        for kind in [2 if name == "<unk>" else 1]
    ]
    pairs = _number(3, 2) + _number(4, len(names))  # byte-pair encoding, and how many pieces
    rules = _message(1, b"identity") + _number(3, 1) + _number(4, 1)
    return {
        "tokenizer.model": b"".join(pieces) + _message(2, pairs) + _message(3, rules),
        "tokenizer.vocab": "\n".join(f"{name}\t{-i}" for i, name in enumerate(names)).encode(),
        "vocab.txt": "\n".join(names).encode(),
    }


def _message(field: int, content: bytes) -> bytes:
    """A field of bytes in Protocol Buffers' encoding."""
    return _varint(field << 3 | 2) + _varint(len(content)) + content


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _single(field: int, value: float) -> bytes:
    return _varint(field << 3 | 5) + struct.pack("<f", value)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def write_transformers(folder: Path) -> None:
    """The folder that transformers itself saves, from the weights in NeMo's file."""
    from transformers_models import write_folder

    from parakeet_worker.engine.native import checkpoint

    partial = folder / "transformers.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    write_folder(checkpoint.read_checkpoint(Files(folder).nemo), partial)
    partial.rename(Files(folder).transformers)


def write_onnx(folder: Path) -> None:
    """NeMo's own export, its matrices made int8, laid out as onnx-asr looks for them."""
    partial, whole = folder / "onnx.partial", folder / "onnx.float"
    for old in (partial, whole):
        shutil.rmtree(old, ignore_errors=True)
        old.mkdir()
    for step in ("export", "quantise"):
        command = [sys.executable, "-m", "bench.onnx_export", step, str(folder)]
        subprocess.run(command, check=True, cwd=ROOT)
    shutil.rmtree(whole)
    partial.rename(Files(folder).onnx)


def main() -> None:
    harness.die_first()
    kind, size, folder = sys.argv[1:]
    if kind == "nemo":
        from bench import recording

        pieces = recording.pieces(CALIBRATION_SECONDS, CALIBRATION_PIECES)
        write_nemo(size, Path(folder), pieces)
    elif kind == "transformers":
        write_transformers(Path(folder))
    else:
        write_onnx(Path(folder))


if __name__ == "__main__":
    main()
