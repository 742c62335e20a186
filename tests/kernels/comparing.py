"""Compares a kernel's result with its reference's."""

import torch
from torch import Tensor

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
PRODUCT_DTYPES = (torch.float32, torch.float16)
"""The interpreter multiplies the bit patterns of bfloat16 as integers."""


def assert_close(actual: Tensor, expected: Tensor, roundings: float = 4) -> None:
    """Same shape and dtype, and equal within some roundings of the largest value.

    The order of sums and the implementation of exponentials differ.
    """
    assert actual.dtype == expected.dtype
    assert actual.shape == expected.shape
    if not expected.numel():
        return
    largest = float(expected.float().abs().max())
    tolerance = roundings * torch.finfo(expected.dtype).eps * max(largest, 1e-3)
    difference = (actual.float() - expected.float()).abs().max()
    assert float(difference) <= tolerance
