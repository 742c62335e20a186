"""Range checks: finite encoder states, weights within the range of float16."""

import torch
from torch import Tensor

from parakeet_worker.engine.native.tensors import Tensors
from parakeet_worker.errors import WeightsUnsupported

_FLOAT16_MAX = torch.finfo(torch.float16).max  # 65504


def finite_rows(states: Tensor, valid: Tensor) -> Tensor:
    """(B, T, width) states, (B,) valid frames -> (B,) whether all valid states are finite."""
    padding = torch.arange(states.shape[1], device=states.device) >= valid[:, None]
    return (torch.isfinite(states).all(dim=2) | padding).all(dim=1)


def check_float16(tensors: Tensors) -> None:
    """Raise `WeightsUnsupported` for a weight at or beyond 65504 in magnitude, or not finite.

    Expects the weights after folding, in any dtype: values beyond float16's range have already
    become infinite there.
    """
    for name, tensor in tensors.items():
        if not tensor.is_floating_point() or not tensor.numel():
            continue
        # NaN fails as well: no comparison with NaN is true.
        greatest = float(tensor.float().abs().max())
        if not greatest < _FLOAT16_MAX:
            raise WeightsUnsupported("weights", name, f"{greatest:g}, beyond the range of fp16")
