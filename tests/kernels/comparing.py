"""How a kernel's result is held against its reference's."""

import torch
from torch import Tensor

DTYPES = (torch.float32, torch.float16, torch.bfloat16)

_ROUNDINGS = 4
"""Roundings of the result's type that a kernel may differ by: sums are taken in another order."""


def assert_close(result: Tensor, expected: Tensor) -> None:
    """Same shape and type, and equal within a few roundings of the largest value."""
    assert result.dtype == expected.dtype
    assert result.shape == expected.shape
    if not expected.numel():
        return
    largest = float(expected.float().abs().max())
    allowed = _ROUNDINGS * torch.finfo(expected.dtype).eps * max(largest, 1e-3)
    difference = (result.float() - expected.float()).abs().max()
    assert float(difference) <= allowed
