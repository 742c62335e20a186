"""Numeric precision of encoder and decoder, and the fastest one of a device."""

from collections.abc import Callable
from enum import StrEnum

import torch
from torch import Tensor
from torch.nn import functional

from parakeet_worker.engine.native import int8, torch_int8
from parakeet_worker.engine.native.tensors import Tensors

Linear = Callable[[Tensor], Tensor]


class Precision(StrEnum):
    """Storage format of the encoder's and decoder's matrices; features and norms are float32.

    The decoder uses int8 for INT8 and float32 for all others.
    """

    FP32 = "fp32"
    BF16 = "bf16"
    FP16 = "fp16"
    INT8 = "int8"

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the states between layers."""
        return {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self, torch.float32)


KERNEL_PRECISIONS = (Precision.BF16, Precision.FP16)
"""Precisions with kernels for a GPU."""


def fastest(device: torch.device) -> Precision:
    """The fastest precision on `device`.

    On a GPU bfloat16, or float16 if bfloat16 is emulated (compute capability below 8.0). On a
    CPU bfloat16 with AMX tiles, int8 with AVX2, float32 otherwise.
    """
    if device.type == "cuda":
        major, _ = torch.cuda.get_device_capability(device)
        return Precision.BF16 if major >= 8 else Precision.FP16
    # torch has no public name for this.
    has_amx = getattr(torch.cpu, "_is_amx_tile_supported", None)
    if has_amx is not None and has_amx():
        return Precision.BF16
    has_avx2 = torch.backends.cpu.get_cpu_capability().startswith("AVX")
    if has_avx2 and "onednn" in torch.backends.quantized.supported_engines:
        return Precision.INT8
    return Precision.FP32


def packed(weight: Tensor, bias: Tensor | None, precision: Precision) -> dict[str, Tensor]:
    """A matrix stored for `linear`: `weight`, `bias`, and for int8 the `scales` per output."""
    bias_tensors = {} if bias is None else {"bias": bias.to(precision.dtype)}
    if precision is not Precision.INT8:
        return {"weight": weight.to(precision.dtype), **bias_tensors}
    quantised, scales = _quantised(weight)
    return {"weight": int8.blocked(quantised), "scales": scales, **bias_tensors}


def _quantised(weight: Tensor) -> tuple[Tensor, Tensor]:
    """(outputs, inputs) int8 from -127 to 127, and the (outputs,) float32 scales."""
    scales = weight.abs().amax(dim=1).clamp(min=1e-8) / 127
    return (weight / scales.unsqueeze(1)).round().to(torch.int8), scales


def linear(matrix: Tensors, precision: Precision) -> Linear:
    """The function `x -> x @ weight.T + bias` for a matrix from `packed`."""
    weight, bias = matrix["weight"], matrix.get("bias")
    if precision is Precision.INT8:
        return int8.linear(weight, matrix["scales"], bias)
    return lambda states: functional.linear(states, weight, bias)


def linear_by_rows(weight: Tensor, bias: Tensor, precision: Precision) -> Linear:
    """The function `x -> x @ weight.T + bias` for a few rows that must be independent.

    The int8 product of `linear` quantises its inputs by the range of all rows. Here only the
    weights are int8; the inputs are bfloat16.
    """
    if precision is not Precision.INT8:
        return linear(packed(weight, bias, precision), precision)
    quantised, scales = _quantised(weight)
    bfloat16_scales = scales.bfloat16()
    multiply = torch_int8.load().weight_only_linear

    def product(rows: Tensor) -> Tensor:
        return multiply(rows.bfloat16(), quantised, bfloat16_scales).float() + bias

    return product
