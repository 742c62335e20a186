"""Tensors by name, as checkpoints hold them: `part.part.name`."""

from collections.abc import Mapping
from typing import TypeAlias

from torch import Tensor

Tensors: TypeAlias = Mapping[str, Tensor]

ALIGNMENT = 64
"""Bytes: where torch begins the memory of a new tensor, and where a cache line does."""


def strip_prefix(part: str, tensors: Tensors) -> dict[str, Tensor]:
    """Those whose name begins with `part.`, without that beginning."""
    prefix = part + "."
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }


def add_prefix(part: str, tensors: Tensors) -> dict[str, Tensor]:
    """All of them with `part.` before their names."""
    return {f"{part}.{name}": tensor for name, tensor in tensors.items()}


def aligned(tensors: Tensors) -> dict[str, Tensor]:
    """All of them on memory that begins as torch's own does; what does not is copied.

    MKL adds up in another order where a matrix begins in the middle of a cache line, so tensors
    that are mapped from a file would not compute the bits of the ones that it was written from.
    """
    return {
        name: tensor.clone() if tensor.data_ptr() % ALIGNMENT else tensor
        for name, tensor in tensors.items()
    }
