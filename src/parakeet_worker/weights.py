"""The model on disk: finds it, or fetches it once."""

from collections.abc import Iterator, Sequence
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
