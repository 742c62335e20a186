"""Find a model on disk, or download it once."""

import logging
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

from parakeet_worker.errors import InvalidSetting, WeightsMissing
from parakeet_worker.weights.checkpoints import (
    ANY_KIND,
    RUNPOD_CACHE,
    Kind,
    checkpoint_in,
    is_complete,
    snapshots,
)
from parakeet_worker.weights.hub import FETCH_TIMEOUT_SECONDS, find_or_download

__all__ = ["ANY_KIND", "DEMO", "Kind", "find"]

log = logging.getLogger(__name__)

DEMO = "demo"
"""Name of the small checkpoint in the package."""


def find(
    model: str,
    kinds: Sequence[Kind] = ANY_KIND,
    *,
    revision: str | None = None,
    timeout_seconds: float = FETCH_TIMEOUT_SECONDS,
    platform_cache: Path = RUNPOD_CACHE,
) -> Path:
    """Find a checkpoint of one of `kinds`, in order of preference; raises `SetupError`.

    `model` is `demo`, a path, or a Hugging Face name with an optional `@revision`. A name is
    searched in `platform_cache`, which is only read, and in the Hugging Face cache, then downloaded
    within `timeout_seconds`.
    """
    if model == DEMO:
        return Path(str(files("parakeet_worker") / "checkpoints" / "demo.nemo"))
    path = Path(model).expanduser()
    if path.exists():
        return _at_path(model, path, kinds)
    name, _, suffix = model.partition("@")
    if path.suffix == ".nemo" or path.is_absolute() or name.count("/") != 1:
        raise WeightsMissing(model, [str(path)])
    if suffix and revision and suffix != revision:
        reason = f"is {revision}, but PARAKEET_MODEL names {suffix}; remove one of the two"
        raise InvalidSetting("PARAKEET_MODEL_REVISION", reason)
    chosen = suffix or revision
    for snapshot in snapshots(platform_cache, name, chosen):
        checkpoint = checkpoint_in(snapshot, kinds)
        if checkpoint is None:
            continue
        if is_complete(checkpoint):
            return checkpoint
        log.warning("%s is incomplete; searching elsewhere", checkpoint)
    return find_or_download(name, chosen, kinds, timeout_seconds)


def _at_path(model: str, path: Path, kinds: Sequence[Kind]) -> Path:
    if path.is_file():
        return path
    checkpoint = checkpoint_in(path, kinds)
    if checkpoint is None:
        raise WeightsMissing(model, [f"{path}/*.nemo", f"{path}/model.safetensors"])
    return checkpoint
