"""Selected implementation of each operation of a search."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from parakeet_worker.engine.native.kernels import (
    joint_hidden,
    joint_scores,
    lstm,
    product,
    search_step,
)
from parakeet_worker.engine.native.kernels.tiles import Tiles


@dataclass(frozen=True, slots=True)
class SearchKernels:
    """Operations of a search; any of them may be replaced by the reference of its module."""

    product: Callable[..., Tensor]
    """Projects the encoder states, once before all steps."""
    lstm: Callable[..., None]
    joint_hidden: Callable[..., None]
    joint_scores: Callable[..., None]
    search_step: Callable[..., None]
    reproducible: bool = False
    """Whether a row's result is independent of the batch: the same tiles for any batch size."""

    @property
    def capturable(self) -> bool:
        """Whether a CUDA graph can capture the steps: no reference is among them."""
        modules = (lstm, joint_hidden, joint_scores, search_step)
        steps = (self.lstm, self.joint_hidden, self.joint_scores, self.search_step)
        return not any(
            step is module.reference for step, module in zip(steps, modules, strict=True)
        )

    @classmethod
    def triton(cls, tiles: Tiles, *, reproducible: bool = False) -> "SearchKernels":
        """Triton kernels; the product uses cuBLAS unless it must be `reproducible`."""
        return cls(
            partial(product.launch, tile=tiles.product) if reproducible else product.library,
            lstm.launch,
            joint_hidden.launch,
            joint_scores.launch,
            search_step.launch,
            reproducible,
        )

    @classmethod
    def reference(cls) -> "SearchKernels":
        """Plain PyTorch for all operations, on any device."""
        modules = (product, lstm, joint_hidden, joint_scores, search_step)
        return cls(*(module.reference for module in modules))
