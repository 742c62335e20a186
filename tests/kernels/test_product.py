"""Products equal plain PyTorch, and a row's bits do not depend on the rows beside it."""

import pytest
import torch
from comparing import PRODUCT_DTYPES, assert_close

from parakeet_worker.engine.native.kernels import product
from parakeet_worker.engine.native.kernels.tiles import Tile

TILE = Tile(rows=32, columns=16, depth=16)


@pytest.mark.parametrize("dtype", PRODUCT_DTYPES)
@pytest.mark.parametrize(("depth", "columns"), [(16, 16), (48, 40), (20, 7)])
@pytest.mark.parametrize("rows", [0, 1, 33])
def test_product_equals_the_reference(
    dtype: torch.dtype, depth: int, columns: int, rows: int
) -> None:
    """With and without bias and SiLU, one matrix and a batch of them."""
    torch.manual_seed(depth)
    states, weight = torch.randn(rows, depth).to(dtype), torch.randn(columns, depth).to(dtype)
    bias = torch.randn(columns).to(dtype)
    for added in (None, bias):
        for silu in (False, True):
            result = product.launch(states, weight, added, silu=silu, tile=TILE)
            assert_close(result, product.reference(states, weight, added, silu=silu))
    many = torch.randn(3, rows, depth).to(dtype), torch.randn(3, columns, depth).to(dtype)
    assert_close(product.launch(*many, tile=TILE), product.reference(*many))


def test_a_row_is_the_same_alone() -> None:
    """Bit for bit, at any place and beside any number of others."""
    torch.manual_seed(1)
    states, weight = torch.randn(100, 64), torch.randn(40, 64)
    together = product.launch(states, weight, tile=TILE)
    for row in (0, 31, 32, 99):
        alone = product.launch(states[row : row + 1].clone(), weight, tile=TILE)
        assert torch.equal(alone[0], together[row])
