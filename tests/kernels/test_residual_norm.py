"""The residual sum with its layer norms equals plain PyTorch."""

import pytest
import torch
from comparing import DTYPES, assert_close

from parakeet_worker.engine.native.kernels import residual_norm
from parakeet_worker.engine.native.kernels.tiles import Tiles


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [1, 32, 100, 1024])
@pytest.mark.parametrize("rows", [0, 1, 7])
def test_sum_and_norms_equal_the_reference(dtype: torch.dtype, width: int, rows: int) -> None:
    """Every combination of update and second norm, in place and returned."""
    torch.manual_seed(width + rows)
    states, update = ((3 * torch.randn(rows, width)).to(dtype) for _ in range(2))
    affines = [(torch.randn(width).to(dtype), torch.randn(width).to(dtype)) for _ in range(2)]
    for added in (None, update):
        for then in (None, affines[1]):
            mine, theirs = states.clone(), states.clone()
            result = residual_norm.launch(mine, added, affines[0], then, tile=Tiles().residual_norm)
            expected = residual_norm.reference(theirs, added, affines[0], then)
            assert_close(result, expected)
            assert_close(mine, theirs)
