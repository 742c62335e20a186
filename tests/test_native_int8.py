import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from parakeet_worker.engine.native import int8

_GREATEST = 127


def matrix(outputs: int, inputs: int, kind: str) -> torch.Tensor:
    """Weights as they are kept, or the ones that saturate first."""
    if kind == "random":
        return torch.randint(-_GREATEST, _GREATEST + 1, (outputs, inputs), dtype=torch.int8)
    weight = torch.full((outputs, inputs), _GREATEST, dtype=torch.int8)
    weight[1::2] = -_GREATEST
    return weight


def exact(states: torch.Tensor, weight: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """The product of the quantised inputs in double precision, where no sum is rounded."""
    low, high = min(float(states.min()), 0.0), max(float(states.max()), 0.0)
    scale = max((high - low) / 255, 1e-30)
    zero = round(-low / scale)
    quantised = torch.quantize_per_tensor(states, scale, zero, torch.quint8).int_repr()
    return (quantised.double() - zero) * scale @ (weight.double() * scales.double()[:, None]).T


@pytest.mark.parametrize("kind", ["random", "extreme"])
@pytest.mark.parametrize("rows", [1, 3, 17, 375])
@pytest.mark.parametrize("sides", [(64, 128), (192, 64), (24, 48), (77, 1024), (1024, 4096)])
def test_no_sum_loses_a_bit(kind: str, rows: int, sides: tuple[int, int]) -> None:
    torch.manual_seed(0)
    weight, scales = matrix(*sides, kind), torch.rand(sides[0]) + 0.5
    states = torch.rand(rows, sides[1]) if kind == "random" else torch.ones(rows, sides[1])
    kept, kept_scales = int8.narrowed(weight, scales) if int8.saturates() else (weight, scales)
    expected = exact(states, kept, kept_scales)
    product = int8.linear(weight, scales, None)(states).double()
    assert (product - expected).abs().max() <= 2e-6 * expected.abs().max()


@pytest.mark.parametrize("sides", [(64, 64), (256, 128), (40, 24)])
def test_the_second_matrix_of_a_shape_is_laid_out_as_the_first(sides: tuple[int, int]) -> None:
    torch.manual_seed(0)
    scales, bias, states = torch.rand(sides[0]), torch.randn(sides[0]), torch.randn(2, 9, sides[1])
    weights = [matrix(*sides, "random") for _ in range(3)]
    laid_out = [int8.linear(weight, scales, bias)(states) for weight in weights]
    for weight, product in zip(weights, laid_out, strict=True):
        int8._layouts.descriptions.clear()
        by_onednn_alone = int8.linear(weight, scales, bias)(states)
        assert torch.equal(product, by_onednn_alone)


@pytest.mark.skipif("ONEDNN_MAX_CPU_ISA" in os.environ, reason="the library is limited")
def test_the_layout_of_avx_512_and_avx_vnni_is_known() -> None:
    int8._layouts.descriptions.clear()
    int8.linear(matrix(128, 64, "random"), torch.ones(128), None)
    known = int8._layouts.descriptions[torch.Size((128, 64))] is not None
    flags = Path("/proc/cpuinfo").read_text()
    assert known is ("avx512bw" in flags or "avx_vnni" in flags)


@pytest.mark.parametrize("sides", [(64, 64), (192, 128), (24, 64), (64, 24)])
def test_a_blocked_matrix_is_the_same_matrix(sides: tuple[int, int]) -> None:
    torch.manual_seed(0)
    weight, scales = matrix(*sides, "random"), torch.rand(sides[0])
    states = torch.randn(3, sides[1])
    kept = int8.blocked(weight)
    assert torch.equal(int8.plain(kept, sides[0]), weight)
    for _ in range(2):
        product = int8.linear(kept, scales, None)(states)
        assert torch.equal(product, int8.linear(weight, scales, None)(states))


def test_where_torch_makes_no_tensor_of_foreign_memory_onednn_does_it_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.manual_seed(0)
    scales, states, weight = torch.rand(64), torch.randn(5, 64), matrix(64, 64, "random")
    wanted = int8.linear(weight, scales, None)(states)
    int8._layouts.descriptions.clear()
    monkeypatch.setattr(int8, "_tensor_maker", lambda: None)
    for _ in range(2):
        assert torch.equal(int8.linear(weight, scales, None)(states), wanted)
    int8._layouts.descriptions.clear()


def test_a_layout_that_is_not_known_is_left_to_onednn(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    scales, states, weight = torch.rand(64), torch.randn(5, 64), matrix(64, 64, "random")
    wanted = int8.linear(weight, scales, None)(states)
    int8._layouts.descriptions.clear()
    monkeypatch.setattr(int8._mkldnn, "_nbytes", lambda _: 64)
    for _ in range(2):
        assert torch.equal(int8.linear(weight, scales, None)(states), wanted)
    int8._layouts.descriptions.clear()


def test_narrow_weights_are_the_nearest_of_at_most_64() -> None:
    weight, scales = torch.arange(-127, 128, dtype=torch.int8)[None], torch.tensor([0.5])
    narrow, wider = int8.narrowed(weight, scales)
    assert narrow.dtype is torch.int8
    assert (narrow.min(), narrow.max()) == (-64, 64)
    error = narrow.double() * wider.double() - weight.double() * 0.5
    assert error.abs().max() <= 0.5 * wider.item()
    assert error.mean().abs() < 1e-6
    # What makes 64 the greatest that two products of the greatest input fit with.
    assert 2 * 255 * 64 < 2**15 < 2 * 255 * 65


@pytest.mark.parametrize("constant", [0.0, 1e-38, 3.5, -2e30])
def test_inputs_without_a_range_are_products_like_others(constant: float) -> None:
    weight, scales = matrix(64, 64, "random").abs(), torch.ones(64)
    product = int8.linear(weight, scales, None)(torch.full((3, 64), constant))
    wanted = weight.double().sum(dim=1) * constant
    assert torch.allclose(product.double(), wanted.expand(3, 64), rtol=0.01, atol=1e-25)


@pytest.mark.parametrize("odd", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_makes_no_number_and_no_error(odd: float) -> None:
    states = torch.randn(2, 5, 64)
    states[1, 2, 3] = odd
    product = int8.linear(matrix(32, 64, "random"), torch.ones(32), torch.zeros(32))(states)
    assert product.shape == (2, 5, 32)
    assert product.isnan().all()


PROBE = """
import torch
from parakeet_worker.engine.native import int8
weight = torch.full((64, 128), 127, dtype=torch.int8)
saturates = int8.saturates()
right = int8.linear(weight, torch.ones(64), None)(torch.ones(8, 128))
int8.saturates = lambda: False
careless = int8.linear(weight, torch.ones(64), None)(torch.ones(8, 128))
print(saturates, *((product / (127 * 128) - 1).abs().max().item() < 0.01 for product in (right, careless)))
"""  # noqa: E501


@pytest.mark.parametrize("limit", [None, "AVX512_CORE", "AVX2"])
def test_saturation_is_found_by_computing(limit: str | None) -> None:
    """Whatever the library is allowed to use: what is found out is what it does."""
    limited = {} if limit is None else {"ONEDNN_MAX_CPU_ISA": limit}
    told = subprocess.run(
        [sys.executable, "-c", PROBE], env=os.environ | limited,
        capture_output=True, text=True, check=True,
    ).stdout.split()  # fmt: skip
    saturates, right, careless = (word == "True" for word in told)
    assert right
    assert careless is not saturates
    flags = Path("/proc/cpuinfo").read_text()
    if limit is not None:
        assert saturates
    elif "ONEDNN_MAX_CPU_ISA" not in os.environ:
        assert saturates is not ("avx512_vnni" in flags or "avx_vnni" in flags)
