"""Products equal plain PyTorch, and a row is bitwise independent of the other rows."""

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
    """With and without bias and SiLU, for a single matrix and a batch of matrices."""
    torch.manual_seed(depth)
    states, weight = torch.randn(rows, depth).to(dtype), torch.randn(columns, depth).to(dtype)
    bias = torch.randn(columns).to(dtype)
    for optional_bias in (None, bias):
        for silu in (False, True):
            actual = product.launch(states, weight, optional_bias, silu=silu, tile=TILE)
            assert_close(actual, product.reference(states, weight, optional_bias, silu=silu))
    batch = torch.randn(3, rows, depth).to(dtype), torch.randn(3, columns, depth).to(dtype)
    assert_close(product.launch(*batch, tile=TILE), product.reference(*batch))


def test_a_row_is_bitwise_equal_alone_and_in_a_batch() -> None:
    """At any index and among any number of rows."""
    torch.manual_seed(1)
    states, weight = torch.randn(100, 64), torch.randn(40, 64)
    together = product.launch(states, weight, tile=TILE)
    for row in (0, 31, 32, 99):
        alone = product.launch(states[row : row + 1].clone(), weight, tile=TILE)
        assert torch.equal(alone[0], together[row])
