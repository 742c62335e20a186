"""The whole chain on the kernels themselves gives the states of the plain encoder."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from packed import LENGTHS, assert_same, chunks, packed_states, parts, plain_states
from parakeet_worker.engine.native.kernels.kernel_set import Kernels
from parakeet_worker.engine.native.kernels.tiles import Tile, Tiles

# Large ones: the interpreter's time is the number of programs.
TILES = replace(
    Tiles(),
    frames=Tile(rows=256),
    power=Tile(rows=1 << 16),
    subsampling_first=Tile(rows=1024),
    subsampling_next=Tile(rows=256),
    attention=Tile(rows=32, columns=16),
    product=Tile(rows=256, columns=64, depth=32),
)


def by_rows(
    states: Tensor, weight: Tensor, bias: Tensor | None = None, *, silu: bool = False
) -> Tensor:
    product = (states.unsqueeze(-2) * weight.unsqueeze(-3)).sum(-1)
    product = product if bias is None else product + bias
    return functional.silu(product) if silu else product


@pytest.mark.parametrize("reproducible", [False, True])
@torch.inference_mode()
def test_kernels_give_the_states_of_the_plain_encoder(*, reproducible: bool) -> None:
    """With cuBLAS's products and with those of the kernels."""
    features, encoder = parts(use_bias=True)
    batch = chunks(LENGTHS[3])
    kernels = Kernels.triton(TILES, reproducible=reproducible)
    found = packed_states(features, encoder, batch, kernels, 20)
    assert_same(found, plain_states(features, encoder, batch))


@torch.inference_mode()
def test_reproducible_rows_are_the_same_alone_in_a_batch_and_shuffled() -> None:
    """Bit for bit, from samples to states.

    Products are summed row by row here: numpy, which the interpreter multiplies with, takes rows
    at the edge of its blocks in another order. test_product.py has the kernel's own rows.
    """
    features, encoder = parts()
    batch = chunks((2_600, 1_280, 3_801))
    kernels = replace(Kernels.triton(TILES, reproducible=True), product=by_rows)
    together = packed_states(features, encoder, batch, kernels)
    backwards = packed_states(features, encoder, batch[::-1], kernels)[::-1]
    for chunk, mine, other in zip(batch, together, backwards, strict=True):
        (alone,) = packed_states(features, encoder, [chunk], kernels)
        assert torch.equal(alone, mine)
        assert torch.equal(other, mine)
