"""State dicts: tensors by dotted name, as in checkpoints."""

from collections.abc import Mapping
from typing import TypeAlias

from torch import Tensor

Tensors: TypeAlias = Mapping[str, Tensor]

ALIGNMENT = 64
"""Alignment in bytes of memory that torch allocates; the size of a cache line."""


def strip_prefix(prefix: str, tensors: Tensors) -> dict[str, Tensor]:
    """The tensors whose name starts with `prefix.`, under the rest of their name."""
    return {
        name.removeprefix(f"{prefix}."): tensor
        for name, tensor in tensors.items()
        if name.startswith(f"{prefix}.")
    }


def add_prefix(prefix: str, tensors: Tensors) -> dict[str, Tensor]:
    """The tensors under `prefix.name`."""
    return {f"{prefix}.{name}": tensor for name, tensor in tensors.items()}


def aligned(tensors: Tensors) -> dict[str, Tensor]:
    """The tensors with `ALIGNMENT`; unaligned ones are copied.

    MKL sums in another order if a matrix starts in the middle of a cache line. Unaligned tensors
    that are mapped from a file would then not reproduce the results of the original tensors.
    """
    return {
        name: tensor.clone() if tensor.data_ptr() % ALIGNMENT else tensor
        for name, tensor in tensors.items()
    }
