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
    norms = [(torch.randn(width).to(dtype), torch.randn(width).to(dtype)) for _ in range(2)]
    for optional_update in (None, update):
        for next_norm in (None, norms[1]):
            in_place, in_place_expected = states.clone(), states.clone()
            actual = residual_norm.launch(
                in_place, optional_update, norms[0], next_norm, tile=Tiles().residual_norm
            )
            expected = residual_norm.reference(
                in_place_expected, optional_update, norms[0], next_norm
            )
            assert_close(actual, expected)
            assert_close(in_place, in_place_expected)
