"""Kernels in Triton's interpreter: it must be chosen before Triton is imported."""

import os

os.environ["TRITON_INTERPRET"] = "1"

from typing import Any

from triton.runtime import interpreter

_patch_lang_tensor = interpreter._patch_lang_tensor


def _patch_with_bounds(tensor: Any) -> None:
    """A loop's bound is an array of one element, which numpy 2.4 does not convert to int."""
    _patch_lang_tensor(tensor)
    tensor.__index__ = lambda self: int(self.handle.data.item())


interpreter._patch_lang_tensor = _patch_with_bounds
