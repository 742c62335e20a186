import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from parakeet_worker.engine.native import int8
from parakeet_worker.engine.native.torch_int8 import load_layout

_MAX_WEIGHT = 127


def matrix(outputs: int, inputs: int, kind: str) -> torch.Tensor:
    """Random weights, or extreme ones, which saturate first."""
    if kind == "random":
        return torch.randint(-_MAX_WEIGHT, _MAX_WEIGHT + 1, (outputs, inputs), dtype=torch.int8)
    weight = torch.full((outputs, inputs), _MAX_WEIGHT, dtype=torch.int8)
    weight[1::2] = -_MAX_WEIGHT
    return weight


def exact(states: torch.Tensor, weight: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """The product of the quantised inputs in float64, where no sum is rounded."""
    low, high = min(float(states.min()), 0.0), max(float(states.max()), 0.0)
    scale = max((high - low) / 255, 1e-30)
    zero = round(-low / scale)
    quantised = torch.quantize_per_tensor(states, scale, zero, torch.quint8).int_repr()
    return (quantised.double() - zero) * scale @ (weight.double() * scales.double()[:, None]).T


@pytest.mark.parametrize("kind", ["random", "extreme"])
@pytest.mark.parametrize("rows", [1, 17, 375])
@pytest.mark.parametrize("sides", [(64, 128), (24, 48), (77, 1024), (1024, 4096)])
def test_products_equal_those_in_float64(kind: str, rows: int, sides: tuple[int, int]) -> None:
    torch.manual_seed(0)
    weight, scales = matrix(*sides, kind), torch.rand(sides[0]) + 0.5
    states = torch.rand(rows, sides[1]) if kind == "random" else torch.ones(rows, sides[1])
    used, used_scales = int8.narrowed(weight, scales) if int8.saturates() else (weight, scales)
    expected = exact(states, used, used_scales)
    product = int8.linear(weight, scales, None)(states).double()
    assert (product - expected).abs().max() <= 2e-6 * expected.abs().max()


@pytest.mark.parametrize("sides", [(64, 64), (256, 128), (40, 24)])
def test_matrices_after_the_first_of_a_shape_are_used_without_reordering(
    sides: tuple[int, int],
) -> None:
    torch.manual_seed(0)
    scales, bias, states = torch.rand(sides[0]), torch.randn(sides[0]), torch.randn(2, 9, sides[1])
    weights = [matrix(*sides, "random") for _ in range(3)]
    prepacker, reordering = int8.Prepacker(load_layout()), int8.Prepacker(None)
    for weight in weights:
        product = int8.linear(weight, scales, bias, prepacker=prepacker)(states)
        expected = int8.linear(weight, scales, bias, prepacker=reordering)(states)
        assert torch.equal(product, expected)
    assert list(prepacker.descriptors) == [torch.Size(sides)]
    assert not reordering.descriptors


@pytest.mark.skipif("ONEDNN_MAX_CPU_ISA" in os.environ, reason="oneDNN is limited")
def test_blocked_is_the_layout_of_avx_512_and_avx_vnni() -> None:
    prepacker = int8.Prepacker(load_layout())
    int8.linear(matrix(128, 64, "random"), torch.ones(128), None, prepacker=prepacker)
    known = prepacker.descriptors[torch.Size((128, 64))] is not None
    flags = Path("/proc/cpuinfo").read_text()
    assert known is ("avx512bw" in flags or "avx_vnni" in flags)


@pytest.mark.parametrize("sides", [(64, 64), (192, 128), (24, 64), (64, 24)])
def test_blocked_and_plain_matrices_give_the_same_product(sides: tuple[int, int]) -> None:
    torch.manual_seed(0)
    weight, scales = matrix(*sides, "random"), torch.rand(sides[0])
    states = torch.randn(3, sides[1])
    blocked = int8.blocked(weight)
    assert torch.equal(int8.plain(blocked, sides[0]), weight)
    for _ in range(2):
        product = int8.linear(blocked, scales, None)(states)
        assert torch.equal(product, int8.linear(weight, scales, None)(states))


def test_onednn_reorders_every_matrix_of_an_unknown_layout() -> None:
    """Another layout than `blocked` has other bytes; here, the bytes are cut off."""
    functions = load_layout()
    assert functions is not None
    unknown = int8.Prepacker(
        replace(functions, memory=lambda tensor: functions.memory(tensor)[:64])
    )
    torch.manual_seed(0)
    scales, states, weight = torch.rand(64), torch.randn(5, 64), matrix(64, 64, "random")
    expected = int8.linear(weight, scales, None)(states)
    for _ in range(2):
        product = int8.linear(weight, scales, None, prepacker=unknown)(states)
        assert torch.equal(product, expected)
    assert unknown.descriptors == {torch.Size((64, 64)): None}


def test_narrowed_weights_are_the_nearest_of_at_most_64() -> None:
    weight, scales = torch.arange(-127, 128, dtype=torch.int8)[None], torch.tensor([0.5])
    narrow, wider = int8.narrowed(weight, scales)
    assert narrow.dtype is torch.int8
    assert (narrow.min(), narrow.max()) == (-64, 64)
    error = narrow.double() * wider.double() - weight.double() * 0.5
    assert error.abs().max() <= 0.5 * wider.item()
    assert error.mean().abs() < 1e-6
    # 64 is the largest weight for which two products fit in 16 bits.
    assert 2 * 255 * 64 < 2**15 < 2 * 255 * 65


@pytest.mark.parametrize("constant", [0.0, 1e-38, 3.5, -2e30])
def test_constant_inputs_are_multiplied_like_others(constant: float) -> None:
    weight, scales = matrix(64, 64, "random").abs(), torch.ones(64)
    product = int8.linear(weight, scales, None)(torch.full((3, 64), constant))
    expected = weight.double().sum(dim=1) * constant
    assert torch.allclose(product.double(), expected.expand(3, 64), rtol=0.01, atol=1e-25)


@pytest.mark.parametrize("odd", [math.nan, math.inf, -math.inf])
def test_inputs_that_are_not_finite_give_nan(odd: float) -> None:
    states = torch.randn(2, 5, 64)
    states[1, 2, 3] = odd
    product = int8.linear(matrix(32, 64, "random"), torch.ones(32), torch.zeros(32))(states)
    assert product.shape == (2, 5, 32)
    assert product.isnan().all()


PROBE = """
import torch
from parakeet_worker.engine.native import int8
weight = torch.full((64, 128), 127, dtype=torch.int8)
by_default = int8.linear(weight, torch.ones(64), None)(torch.ones(8, 128))
wide = int8.linear(weight, torch.ones(64), None, narrow=False)(torch.ones(8, 128))
errors = [(product / (127 * 128) - 1).abs().max().item() for product in (by_default, wide)]
print(int8.saturates(), *(error < 0.01 for error in errors))
"""


@pytest.mark.parametrize("limit", [None, "AVX512_CORE", "AVX2"])
def test_saturation_is_detected_for_every_instruction_set(limit: str | None) -> None:
    limited = {} if limit is None else {"ONEDNN_MAX_CPU_ISA": limit}
    output = subprocess.run(
        [sys.executable, "-c", PROBE], env=os.environ | limited,
        capture_output=True, text=True, check=True,
    ).stdout.split()  # fmt: skip
    saturates, default_is_right, wide_is_right = (word == "True" for word in output)
    assert default_is_right
    assert wide_is_right is not saturates
    flags = Path("/proc/cpuinfo").read_text()
    if limit is not None:
        assert saturates
    elif "ONEDNN_MAX_CPU_ISA" not in os.environ:
        assert saturates is not ("avx512_vnni" in flags or "avx_vnni" in flags)
