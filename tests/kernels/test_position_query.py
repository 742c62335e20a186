"""The queries of position scores equal plain PyTorch."""

import pytest
import torch
from comparing import DTYPES, assert_close

from parakeet_worker.engine.native.kernels import position_query
from parakeet_worker.engine.native.kernels.tiles import Tiles


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("heads", "head_width"), [(1, 8), (4, 32), (3, 20)])
@pytest.mark.parametrize("tokens", [0, 1, 11])
def test_queries_equal_the_reference(
    dtype: torch.dtype, heads: int, head_width: int, tokens: int
) -> None:
    """Any number of tokens and heads."""
    torch.manual_seed(tokens)
    width = heads * head_width
    qkv, bias = torch.randn(tokens, 3 * width).to(dtype), torch.randn(width).to(dtype)
    actual = position_query.launch(qkv, bias, heads, tile=Tiles().position_query)
    assert_close(actual, position_query.reference(qkv, bias, heads))
