"""The model on disk: finds it, or fetches it once."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Literal, TypeAlias

from parakeet_worker.errors import WeightsMissing

DEMO = "demo"
"""The name of the small checkpoint that comes with the package."""

# RunPod keeps models that an endpoint names in this layout of the Hugging Face cache.
_RUNPOD_CACHE = Path("/runpod-volume/huggingface-cache/hub")
_SAFETENSORS = ("model.safetensors", "config.json", "tokenizer.json")
_EXTRACTOR = ("preprocessor_config.json", "processor_config.json")

# What nvidia/parakeet-tdt-0.6b-v3 held at revision 541d1f99c6b0c3cd0b11a95167540bb8edefd82b, as
# Hugging Face names contents: sha256 of large files, git's sha1 of small ones.
_PUBLISHED: Mapping[str, str] = {
    "model.safetensors": "3a2026366188c8c68598edbbff92f8d11590a08e0ae2e6775544e7b07d6a5e11",
    "config.json": "969c65410a736e4a3922f968b3481b2418aba786",
    "processor_config.json": "7acffca89b7dd12e0ebcd085c7181c91cae6575c",
    "tokenizer.json": "a10a554cf61e38108756650018d5781ae9675c1d",
}
_SHA256_DIGITS = 64

Kind: TypeAlias = Literal["safetensors", "nemo"]
ANY_KIND: tuple[Kind, ...] = ("safetensors", "nemo")


def find(model: str, kinds: Sequence[Kind] = ANY_KIND) -> Path:
    """A checkpoint of one of `kinds`, the first preferred; raises `WeightsMissing`.

    `model` is `demo`, a path, or a Hugging Face name, which is looked for in RunPod's model
    cache, then in the Hugging Face cache, and is downloaded last.
    """
    if model == DEMO:
        return Path(str(files("parakeet_worker") / "checkpoints" / "demo.nemo"))
    named = Path(model).expanduser()
    if named.exists():
        return _inside(model, named, kinds)
    if named.suffix == ".nemo" or named.is_absolute() or model.count("/") != 1:
        raise WeightsMissing(model, [str(named)])
    for snapshot in _snapshots(_RUNPOD_CACHE, model):
        found = _checkpoint_in(snapshot, kinds)
        if found is not None:
            return found
    return _from_hub(model, kinds)


def _inside(model: str, path: Path, kinds: Sequence[Kind]) -> Path:
    if path.is_file():
        return path
    found = _checkpoint_in(path, kinds)
    if found is None:
        raise WeightsMissing(model, [f"{path}/*.nemo", f"{path}/model.safetensors"])
    return found


def _checkpoint_in(folder: Path, kinds: Sequence[Kind]) -> Path | None:
    held: dict[Kind, Path | None] = {
        "safetensors": folder if all((folder / name).exists() for name in _SAFETENSORS) else None,
        "nemo": next(iter(sorted(folder.glob("*.nemo"))), None),
    }
    return next((held[kind] for kind in kinds if held[kind] is not None), None)


def _snapshots(cache: Path, model: str) -> Iterator[Path]:
    """The snapshot that `main` points at, then whatever else is there."""
    folder = cache / f"models--{model.replace('/', '--')}"
    reference = folder / "refs" / "main"
    if reference.is_file():
        yield folder / "snapshots" / reference.read_text().strip()
    if (folder / "snapshots").is_dir():
        yield from sorted((folder / "snapshots").iterdir())


def _from_hub(model: str, kinds: Sequence[Kind]) -> Path:
    import huggingface_hub
    from huggingface_hub import errors

    patterns: dict[Kind, list[str]] = {
        "safetensors": [*_SAFETENSORS, *_EXTRACTOR],
        "nemo": ["*.nemo"],
    }
    for kind in kinds:
        try:
            folder = Path(huggingface_hub.snapshot_download(model, allow_patterns=patterns[kind]))
        except (errors.HfHubHTTPError, errors.LocalEntryNotFoundError, OSError) as failure:
            searched = [str(_RUNPOD_CACHE), "the Hugging Face cache", f"Hugging Face: {failure}"]
            raise WeightsMissing(model, searched) from failure
        found = _checkpoint_in(folder, [kind])
        if found is not None:
            return found
    raise WeightsMissing(model, [f"Hugging Face: {model} holds no checkpoint"])


@dataclass(frozen=True, slots=True)
class FileCheck:
    """A file of a checkpoint, and whether its content is what it should be."""

    path: Path
    size_bytes: int
    digest: str
    verdict: Literal["published", "as the cache names it", "unknown", "corrupt"]
    """`published`: NVIDIA's, byte for byte. `unknown`: nothing to compare with; compare yourself.
    `corrupt`: a cache holds it under another content's name."""


def check_files(checkpoint: Path) -> Iterator[FileCheck]:
    """Each file of a checkpoint that `find` gave, its whole content read."""
    names = (*_SAFETENSORS, *_EXTRACTOR)
    inside = [checkpoint / name for name in names if (checkpoint / name).exists()]
    for path in inside if checkpoint.is_dir() else [checkpoint]:
        yield _check_file(path)


def _check_file(path: Path) -> FileCheck:
    content = path.resolve()
    published = _PUBLISHED.get(path.name)
    # In a cache of Hugging Face's a file is named by what it holds.
    named = content.name if content.parent.name == "blobs" else None
    digest = _digest(content, named or published)
    verdict: Literal["published", "as the cache names it", "unknown", "corrupt"] = "unknown"
    if named is not None and digest != named:
        verdict = "corrupt"
    elif digest == published:
        verdict = "published"
    elif named is not None:
        verdict = "as the cache names it"
    return FileCheck(path, content.stat().st_size, digest, verdict)


def _digest(path: Path, like: str | None) -> str:
    """The sha256 of a file, or git's sha1 where `like` is one."""
    with path.open("rb") as opened:
        if like is None or len(like) == _SHA256_DIGITS:
            return hashlib.file_digest(opened, "sha256").hexdigest()
        header = f"blob {path.stat().st_size}\0".encode()
        return hashlib.sha1(header + opened.read(), usedforsecurity=False).hexdigest()
