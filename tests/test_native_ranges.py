"""Non-finite states are found in valid frames only, and weights beyond float16 are refused."""

import pytest
import torch

from parakeet_worker.engine.native.ranges import check_float16, finite_rows
from parakeet_worker.errors import WeightsUnsupported


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_only_valid_frames_make_a_row_non_finite(value, dtype):
    states = torch.randn(5, 7, 3).to(dtype)
    states[1, 2, 0] = value  # a valid frame
    states[2, 3, 1] = value  # the first padding frame
    states[3, 2, 2] = value  # the last valid frame
    states[4, 0, 0] = value  # a row without valid frames
    finite = finite_rows(states, torch.tensor([7, 7, 3, 3, 0]))
    assert finite.tolist() == [True, False, True, False, True]


def test_rows_without_frames_are_finite():
    assert finite_rows(torch.zeros(2, 0, 3), torch.tensor([0, 0])).tolist() == [True, True]


def test_weights_within_the_range_of_float16_are_accepted():
    check_float16(
        {
            "most": torch.tensor([65_503.0, -65_503.0]),
            "half": torch.tensor([65_472.0]).half(),
            "none": torch.zeros(0),
            "count": torch.tensor([1 << 40]),
        }
    )


@pytest.mark.parametrize("value", [65_504.0, -65_504.0, 1e30, float("inf"), float("nan")])
def test_a_weight_beyond_the_range_of_float16_is_refused_by_name(value):
    weights = {"a": torch.zeros(3), "b.weight": torch.tensor([[1.0, value]])}
    for tensors in (weights, {name: tensor.half() for name, tensor in weights.items()}):
        with pytest.raises(WeightsUnsupported, match=r"weights\.b\.weight"):
            check_float16(tensors)
