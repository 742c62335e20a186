"""Selected implementation of each of the encoder's kernels."""

from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import partial
from types import ModuleType

from torch import Tensor

from parakeet_worker.engine.native.kernels import (
    attention,
    depthwise,
    frames,
    glu,
    mel_norm,
    position_query,
    power,
    product,
    residual_norm,
    subsampling_first,
    subsampling_next,
)
from parakeet_worker.engine.native.kernels.tiles import Tiles

Operation = Callable[..., Tensor]

MODULES: dict[str, ModuleType] = {
    "frames": frames,
    "power": power,
    "mel_norm": mel_norm,
    "subsampling_first": subsampling_first,
    "subsampling_next": subsampling_next,
    "residual_norm": residual_norm,
    "position_query": position_query,
    "attention": attention,
    "glu": glu,
    "depthwise": depthwise,
    "product": product,
}
"""The module of each operation, which contains its `launch` and its `reference`."""


@dataclass(frozen=True, slots=True)
class Kernels:
    """Operations of the packed encoder.

    Any of them may be replaced by the reference of its module, which is slower.
    """

    frames: Operation
    power: Operation
    mel_norm: Operation
    subsampling_first: Operation
    subsampling_next: Operation
    residual_norm: Operation
    position_query: Operation
    attention: Operation
    glu: Operation
    depthwise: Operation
    product: Operation
    reproducible: bool = False
    """Whether a row's result is independent of the batch: no library that selects by shape."""

    @classmethod
    def triton(cls, tiles: Tiles, *, reproducible: bool = False) -> "Kernels":
        """Triton kernels; products use cuBLAS unless they must be `reproducible`."""
        operations = {name: _with_tile(name, tiles) for name in OPERATIONS}
        if not reproducible:
            operations["product"] = product.library
        return cls(**operations, reproducible=reproducible)

    @classmethod
    def reference(cls) -> "Kernels":
        """Plain PyTorch for all operations."""
        return cls(**{name: MODULES[name].reference for name in OPERATIONS})

    @property
    def capturable(self) -> bool:
        """Whether a CUDA graph can capture them: a reference synchronises to read row lengths."""
        return not any(getattr(self, name) is MODULES[name].reference for name in OPERATIONS)


def _with_tile(name: str, tiles: Tiles) -> Operation:
    return partial(MODULES[name].launch, tile=getattr(tiles, name))


OPERATIONS = tuple(field.name for field in fields(Kernels) if field.name in MODULES)
"""Names of the operations in the order of their use."""
