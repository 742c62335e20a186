"""Compiled kernels of the tiny model, made once for all tests of a process."""

import atexit
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from parakeet_worker.engine.native.compilation import CompileRequest, Target, compile_kernels
from parakeet_worker.engine.native.launches import ModelShape
from parakeet_worker.engine.native.precision import Precision
from published import described
from tiny_model import config

SHAPE = ModelShape.of(described(config()))
HOPPER = Target(SHAPE, Precision.BF16, (9, 0))


@cache
def compiled_folder() -> Path:
    """A folder with all kernels of the tiny model on Hopper in bf16: copy it, do not change it."""
    folder = TemporaryDirectory(prefix="kernels-")
    atexit.register(folder.cleanup)
    path = Path(folder.name)
    results = compile_kernels(CompileRequest((HOPPER,), (path,), processes=2))
    assert [result.failure for result in results if result.failure] == []
    assert {result.kernel for result in results} >= {"attention", "residual_norm", "frames"}
    return path
