"""In what numbers the encoder computes, and what the processor is good at."""

from collections.abc import Callable
from enum import StrEnum

import torch
from torch import Tensor
from torch.nn import functional

Linear = Callable[[Tensor], Tensor]


class Precision(StrEnum):
    """The encoder's arithmetic; features, normalisation and decoding are always in float32."""

    FP32 = "fp32"
    BF16 = "bf16"
    FP16 = "fp16"
    INT8 = "int8"

    @property
    def dtype(self) -> torch.dtype:
        """The type of the states that travel between layers."""
        return {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self, torch.float32)


def fastest(device: torch.device) -> Precision:
    """The precision that wins on `device`.

    On a GPU bfloat16, or float16 where that is emulated (compute capability below 8.0). On a
    processor int8 where it multiplies four bytes at once (VNNI), bfloat16 where it has tiles for
    that (AMX), float32 else.
    """
    if device.type == "cuda":
        major, _ = torch.cuda.get_device_capability(device)
        return Precision.BF16 if major >= 8 else Precision.FP16
    # torch tells this under private names only; the version is pinned.
    if torch.cpu._is_amx_tile_supported():  # noqa: SLF001
        return Precision.BF16
    if torch.cpu._is_vnni_supported() and "onednn" in torch.backends.quantized.supported_engines:  # noqa: SLF001
        return Precision.INT8
    return Precision.FP32


def linear(weight: Tensor, bias: Tensor | None, precision: Precision) -> Linear:
    """The function `x -> x @ weight.T + bias`, in `precision`, on the device of `weight`."""
    if precision is Precision.INT8:
        return _int8_linear(weight, bias)
    kept = weight.to(precision.dtype)
    added = None if bias is None else bias.to(precision.dtype)
    return lambda states: functional.linear(states, kept, added)


def _int8_linear(weight: Tensor, bias: Tensor | None) -> Linear:
    """Weights as int8 with a scale per output, inputs quantised per call by their range."""
    torch.backends.quantized.engine = "onednn"
    scales = weight.abs().amax(dim=1).clamp(min=1e-8) / 127
    zeros = torch.zeros(len(scales), dtype=torch.int64)
    quantised = torch.quantize_per_channel(weight.float(), scales.double(), zeros, 0, torch.qint8)
    packed = torch.ops.quantized.linear_prepack(quantised, None if bias is None else bias.float())
    return lambda states: torch.ops.quantized.linear_dynamic(states, packed, reduce_range=False)
