"""How a kernel's result is held against its reference's."""

import torch
from torch import Tensor

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
PRODUCT_DTYPES = (torch.float32, torch.float16)
"""The interpreter multiplies the bits of bfloat16 as integers."""


def assert_close(result: Tensor, expected: Tensor, roundings: float = 4) -> None:
    """Same shape and type, and equal within a few roundings of the largest value.

    Sums are taken in another order, and exponentials by another function.
    """
    assert result.dtype == expected.dtype
    assert result.shape == expected.shape
    if not expected.numel():
        return
    largest = float(expected.float().abs().max())
    allowed = roundings * torch.finfo(expected.dtype).eps * max(largest, 1e-3)
    difference = (result.float() - expected.float()).abs().max()
    assert float(difference) <= allowed
