"""Tensors by name, as checkpoints hold them: `part.part.name`."""

from collections.abc import Mapping
from typing import TypeAlias

from torch import Tensor

Tensors: TypeAlias = Mapping[str, Tensor]


def below(part: str, tensors: Tensors) -> dict[str, Tensor]:
    """Those whose name begins with `part.`, without that beginning."""
    prefix = part + "."
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }


def under(part: str, tensors: Tensors) -> dict[str, Tensor]:
    """All of them with `part.` before their names."""
    return {f"{part}.{name}": tensor for name, tensor in tensors.items()}
