"""Which implementation of each of the encoder's kernels is in use."""

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
"""Each operation's module, with its `launch` and its `reference`."""


@dataclass(frozen=True, slots=True)
class Kernels:
    """The operations that the packed encoder is made of.

    Any of them may be replaced by the reference of its module: it computes the same, slower.
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
    """Whether a row has the same result beside any others: no library that chooses by shape."""

    @classmethod
    def triton(cls, tiles: Tiles, *, reproducible: bool = False) -> "Kernels":
        """The Triton kernels; products are cuBLAS's, unless they must be `reproducible`."""
        launched = {name: _launched(name, tiles) for name in OPERATIONS}
        if not reproducible:
            launched["product"] = product.library
        return cls(**launched, reproducible=reproducible)

    @classmethod
    def reference(cls) -> "Kernels":
        """Plain PyTorch for all of them."""
        return cls(**{name: MODULES[name].reference for name in OPERATIONS})

    @property
    def blocks(self) -> bool:
        """Whether a reference is among them: it asks the device for lengths, which no graph can."""
        return any(getattr(self, name) is MODULES[name].reference for name in OPERATIONS)


def _launched(name: str, tiles: Tiles) -> Operation:
    return partial(MODULES[name].launch, tile=getattr(tiles, name))


OPERATIONS = tuple(field.name for field in fields(Kernels) if field.name in MODULES)
"""Names of the operations, in the order in which they are used."""
