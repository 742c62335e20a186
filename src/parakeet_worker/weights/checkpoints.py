"""Checkpoints on disk: which files form one, in which snapshot of a cache, and whether complete."""

import json
import struct
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, TypeAlias

Kind: TypeAlias = Literal["prepacked", "safetensors", "nemo"]
ANY_KIND: tuple[Kind, ...] = ("prepacked", "safetensors", "nemo")

PREPACKED = "prepacked.safetensors"
"""Name of the file that `parakeet convert` writes into an image."""
SAFETENSORS = ("model.safetensors", "config.json", "tokenizer.json")
EXTRACTOR = ("preprocessor_config.json", "processor_config.json")
RUNPOD_CACHE = Path("/runpod-volume/huggingface-cache/hub")
"""RunPod's model cache, which has the layout of a Hugging Face cache."""
MAIN = "main"
"""Default branch of a model repository."""
_MAX_HEADER_BYTES = 100 << 20
_GZIP = b"\x1f\x8b"


def checkpoint_in(folder: Path, kinds: Sequence[Kind]) -> Path | None:
    """The checkpoint in a folder, of the first of `kinds` that it has."""
    prepacked = folder / PREPACKED
    held: dict[Kind, Path | None] = {
        "prepacked": prepacked if prepacked.exists() else None,
        "safetensors": folder if all((folder / name).exists() for name in SAFETENSORS) else None,
        # A dangling link is listed, and does not exist.
        "nemo": next((path for path in sorted(folder.glob("*.nemo")) if path.exists()), None),
    }
    return next((held[kind] for kind in kinds if held[kind] is not None), None)


def is_complete(checkpoint: Path) -> bool:
    """Whether files are as long as their headers declare; contents are not read."""
    paths = [checkpoint] if checkpoint.is_file() else sorted(checkpoint.glob("*.safetensors"))
    return all(_has_declared_length(path) for path in paths)


def _has_declared_length(path: Path) -> bool:
    try:
        if path.suffix == ".nemo":
            return _tar_has_declared_length(path)
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            tensors = json.loads(file.read(min(length, _MAX_HEADER_BYTES)))
        ends = [each["data_offsets"][1] for name, each in tensors.items() if name[:2] != "__"]
        return bool(path.stat().st_size == 8 + length + max(ends, default=0))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, struct.error):
        return False


def _tar_has_declared_length(path: Path) -> bool:
    with path.open("rb") as file:
        if file.read(2) == _GZIP:
            return True  # unknown without decompressing all of it
    try:
        with tarfile.open(path, "r:") as archive:
            return bool(archive.getmembers())
    except tarfile.TarError:
        return False


def model_folder(cache: Path, model: str) -> Path:
    """Folder of a model repository in a Hugging Face cache."""
    return cache / f"models--{model.replace('/', '--')}"


def snapshots(cache: Path, model: str, revision: str | None = None) -> Iterator[Path]:
    """Yield the snapshot of `revision`, or without one that of `main` and then all others."""
    folder = model_folder(cache, model)
    first = snapshot(folder, revision or MAIN)
    if first is not None:
        yield first
    if revision is None and (folder / "snapshots").is_dir():
        yield from sorted((folder / "snapshots").iterdir())


def snapshot(folder: Path, revision: str) -> Path | None:
    """The snapshot of a branch, tag or commit, if the cache has it."""
    reference = folder / "refs" / revision
    commit = reference.read_text().strip() if reference.is_file() else revision
    path = folder / "snapshots" / commit
    return path if path.is_dir() else None
