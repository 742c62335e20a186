"""Runs kernels in Triton's interpreter, which must be selected before Triton is imported."""

import os

os.environ["TRITON_INTERPRET"] = "1"

from typing import Any

from triton.runtime import interpreter

_patch_lang_tensor = interpreter._patch_lang_tensor


def _patch_with_index(tensor: Any) -> None:
    """A loop bound is an array of one element, which numpy 2.4 does not convert to int."""
    _patch_lang_tensor(tensor)
    tensor.__index__ = lambda self: int(self.handle.data.item())


interpreter._patch_lang_tensor = _patch_with_index
