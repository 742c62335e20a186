"""In what numbers the encoder computes, and what the processor is good at."""

from collections.abc import Callable
from enum import StrEnum

import torch
from torch import Tensor
from torch.nn import functional

from parakeet_worker.engine.native import int8
from parakeet_worker.engine.native.tensors import Tensors

Linear = Callable[[Tensor], Tensor]


class Precision(StrEnum):
    """In what the matrices of encoder and decoder are kept; features and norms are in float32.

    Of the decoder only int8 differs from float32.
    """

    FP32 = "fp32"
    BF16 = "bf16"
    FP16 = "fp16"
    INT8 = "int8"

    @property
    def dtype(self) -> torch.dtype:
        """The type of the states that travel between layers."""
        return {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self, torch.float32)


KERNEL_PRECISIONS = (Precision.BF16, Precision.FP16)
"""Those that a GPU has kernels for."""


def fastest(device: torch.device) -> Precision:
    """The precision that wins on `device`.

    On a GPU bfloat16, or float16 where that is emulated (compute capability below 8.0). On a
    processor bfloat16 where it has tiles for that (AMX), int8 where it has AVX2, float32 else.
    """
    if device.type == "cuda":
        major, _ = torch.cuda.get_device_capability(device)
        return Precision.BF16 if major >= 8 else Precision.FP16
    # torch tells this under a private name only; the version is pinned.
    if torch.cpu._is_amx_tile_supported():  # noqa: SLF001
        return Precision.BF16
    has_avx2 = torch.backends.cpu.get_cpu_capability().startswith("AVX")
    if has_avx2 and "onednn" in torch.backends.quantized.supported_engines:
        return Precision.INT8
    return Precision.FP32


def packed(weight: Tensor, bias: Tensor | None, precision: Precision) -> dict[str, Tensor]:
    """A matrix as it is kept for `linear`: `weight`, `bias`, and for int8 a scale per output."""
    kept = {} if bias is None else {"bias": bias.to(precision.dtype)}
    if precision is not Precision.INT8:
        return {"weight": weight.to(precision.dtype), **kept}
    quantised, scales = _quantised(weight)
    return {"weight": int8.blocked(quantised), "scales": scales, **kept}


def _quantised(weight: Tensor) -> tuple[Tensor, Tensor]:
    """(outputs, inputs) in -127 to 127, and a scale per output."""
    scales = weight.abs().amax(dim=1).clamp(min=1e-8) / 127
    return (weight / scales.unsqueeze(1)).round().to(torch.int8), scales


def linear(matrix: Tensors, precision: Precision) -> Linear:
    """The function `x -> x @ weight.T + bias` of a `packed` matrix."""
    weight, bias = matrix["weight"], matrix.get("bias")
    if precision is Precision.INT8:
        return int8.linear(weight, matrix["scales"], bias)
    return lambda states: functional.linear(states, weight, bias)


def linear_by_rows(weight: Tensor, bias: Tensor, precision: Precision) -> Linear:
    """The function `x -> x @ weight.T + bias` for a few rows that must not depend on each other.

    The int8 of `linear` measures all its inputs to quantise them. Here only the weights are
    int8, and the inputs bfloat16.
    """
    if precision is not Precision.INT8:
        return linear(packed(weight, bias, precision), precision)
    quantised, scales = _quantised(weight)
    rounded = scales.bfloat16()

    def product(rows: Tensor) -> Tensor:
        # A private name, of a pinned version, for what torch offers in no other way.
        found: Tensor = torch.ops.aten._weight_int8pack_mm(rows.bfloat16(), quantised, rounded)  # noqa: SLF001
        return found.float() + bias

    return product
