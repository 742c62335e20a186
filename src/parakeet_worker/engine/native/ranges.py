"""Whether numbers stay in the range of their type: finite states, weights in float16."""

import torch
from torch import Tensor

from parakeet_worker.engine.native.tensors import Tensors
from parakeet_worker.errors import WeightsUnsupported

_FLOAT16_MAX = torch.finfo(torch.float16).max  # 65504


def finite_rows(states: Tensor, valid: Tensor) -> Tensor:
    """(B,) whether all of a row's (B, T, width) states are finite, up to its (B,) valid frames."""
    behind = torch.arange(states.shape[1], device=states.device) >= valid[:, None]
    return (torch.isfinite(states).all(dim=2) | behind).all(dim=1)


def check_float16(tensors: Tensors) -> None:
    """Raise `WeightsUnsupported` for a weight at or beyond 65504 in magnitude, or not finite.

    To be given weights as they are used, after folding, in whatever type: what float16 cannot
    hold has become infinite there.
    """
    for name, tensor in tensors.items():
        if not tensor.is_floating_point() or not tensor.numel():
            continue
        # Of numbers that are not comparable the greatest is none of them: NaN fails here too.
        greatest = float(tensor.float().abs().max())
        if not greatest < _FLOAT16_MAX:
            raise WeightsUnsupported("weights", name, f"{greatest:g}, beyond the range of fp16")
