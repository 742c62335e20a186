"""The whole chain on the kernels themselves gives the states of the plain encoder."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from packed import (
    assert_states_close,
    packed_states,
    plain_states,
    random_chunks,
    tiny_modules,
)
from parakeet_worker.engine.native.kernels.kernel_set import Kernels
from parakeet_worker.engine.native.kernels.tiles import Tile, Tiles

# Large tiles: the interpreter's time is proportional to the number of programs.
TILES = replace(
    Tiles(),
    frames=Tile(rows=256),
    power=Tile(rows=1 << 16),
    subsampling_first=Tile(rows=1024),
    subsampling_next=Tile(rows=256),
    attention=Tile(rows=16, columns=16),
    product=Tile(rows=256, columns=64, depth=32),
)


def row_by_row_product(
    states: Tensor, weight: Tensor, bias: Tensor | None = None, *, silu: bool = False
) -> Tensor:
    product = (states.unsqueeze(-2) * weight.unsqueeze(-3)).sum(-1)
    product = product if bias is None else product + bias
    return functional.silu(product) if silu else product


@pytest.mark.parametrize("reproducible", [False, True])
@torch.inference_mode()
def test_kernels_give_the_states_of_the_plain_encoder(*, reproducible: bool) -> None:
    """With the library's products and with those of the kernels."""
    features, encoder = tiny_modules(use_bias=True)
    batch = random_chunks((12_799, 1_280, 6_401, 5, 25_000))
    kernels = Kernels.triton(TILES, reproducible=reproducible)
    actual = packed_states(features, encoder, batch, kernels, 10)
    assert_states_close(actual, plain_states(features, encoder, batch))


@torch.inference_mode()
def test_reproducible_rows_are_bitwise_equal_alone_in_a_batch_and_shuffled() -> None:
    """From samples to states.

    Products are summed row by row here: numpy, which the interpreter multiplies with, sums rows
    at the edge of its blocks in another order. test_product.py tests the rows of the kernel itself.
    """
    features, encoder = tiny_modules()
    batch = random_chunks((2_600, 1_280, 3_801))
    kernels = replace(Kernels.triton(TILES, reproducible=True), product=row_by_row_product)
    together = packed_states(features, encoder, batch, kernels)
    reversed_order = packed_states(features, encoder, batch[::-1], kernels)[::-1]
    for chunk, row, other in zip(batch, together, reversed_order, strict=True):
        (alone,) = packed_states(features, encoder, [chunk], kernels)
        assert torch.equal(alone, row)
        assert torch.equal(other, row)
