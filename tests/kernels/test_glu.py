"""The gated linear unit equals plain PyTorch."""

import pytest
import torch
from comparing import DTYPES, assert_close

from parakeet_worker.engine.native.kernels import glu
from parakeet_worker.engine.native.kernels.tiles import Tiles


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [1, 24, 128])
@pytest.mark.parametrize("rows", [0, 1, 9])
def test_output_equals_the_reference(dtype: torch.dtype, width: int, rows: int) -> None:
    """Any number of rows and any width."""
    torch.manual_seed(width + rows)
    states = (4 * torch.randn(rows, 2 * width)).to(dtype)
    assert_close(glu.launch(states, tile=Tiles().glu), glu.reference(states))
