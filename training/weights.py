"""Weights of runs and checkpoints; `python -m training.weights A B --into C` writes their mean."""

import argparse
import tarfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

CHECKPOINT_WEIGHTS = "./model_weights.ckpt"


def read(path: Path) -> dict[str, Tensor]:
    """Return the averaged weights of a run, or those of a `.nemo` file, which lacks the head."""
    if path.suffix != ".nemo":
        stored: dict[str, Any] = torch.load(path)
        average: dict[str, Tensor] = stored["average"]
        return average
    with tarfile.open(path) as archive:
        content = archive.extractfile(CHECKPOINT_WEIGHTS)
        if content is None:
            raise FileNotFoundError(f"{CHECKPOINT_WEIGHTS} in {path}")
        weights: dict[str, Tensor] = torch.load(content)
    return {name: value for name, value in weights.items() if not name.startswith("preprocessor.")}


def mean(first: dict[str, Tensor], second: dict[str, Tensor], share: float) -> dict[str, Tensor]:
    """Return `share` of `first` and the rest of `second`, where both have floating weights."""
    return {
        name: torch.lerp(second[name], value, share)
        if name in second and value.is_floating_point()
        else value
        for name, value in first.items()
    }


def main() -> None:
    """Write the mean in the format of a run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("first", type=Path, help="a run, whose frame-wise head is kept")
    parser.add_argument("second", type=Path, help="a run or a .nemo file")
    parser.add_argument("--share", type=float, default=0.5, help="of the first")
    parser.add_argument("--into", type=Path, required=True)
    arguments = parser.parse_args()
    weights = mean(read(arguments.first), read(arguments.second), arguments.share)
    torch.save({"average": weights}, arguments.into)


if __name__ == "__main__":
    main()
