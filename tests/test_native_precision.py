import pytest
import torch

from parakeet_worker.engine.native.precision import (
    Precision,
    fastest,
    linear,
    linear_by_rows,
    packed,
)


@pytest.mark.parametrize(
    ("precision", "error"), [("fp32", 1e-6), ("bf16", 0.01), ("fp16", 0.002), ("int8", 0.02)]
)
@pytest.mark.parametrize("biased", [True, False])
def test_every_precision_computes_the_product(precision: str, error: float, biased: bool) -> None:
    torch.manual_seed(0)
    chosen = Precision(precision)
    weight, states = torch.randn(64, 48), torch.randn(2, 5, 48)
    bias = torch.randn(64) if biased else None
    exact = torch.nn.functional.linear(states, weight, bias)
    product = linear(packed(weight, bias, chosen), chosen)(states.to(chosen.dtype)).float()
    assert (product - exact).norm() / exact.norm() < error


def test_an_all_zero_int8_matrix_gives_zeros() -> None:
    weight = torch.zeros(4, 8)
    assert not linear(packed(weight, None, Precision.INT8), Precision.INT8)(torch.randn(1, 8)).any()


def test_the_fastest_precision_is_supported_by_this_cpu() -> None:
    chosen = fastest(torch.device("cpu"))
    assert chosen in (Precision.FP32, Precision.BF16, Precision.INT8)
    if chosen is Precision.INT8:
        assert "onednn" in torch.backends.quantized.supported_engines


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_a_row_is_independent_of_the_other_rows(precision: str) -> None:
    torch.manual_seed(0)
    chosen = Precision(precision)
    weight, bias, rows = torch.randn(77, 64), torch.randn(77), torch.randn(9, 64)
    rows[3] *= 1000
    product = linear_by_rows(weight, bias, chosen)
    together = product(rows)
    for number, row in enumerate(rows):
        exact = torch.nn.functional.linear(row, weight, bias)
        alone = product(row[None])[0]
        if chosen is Precision.INT8:
            assert torch.equal(alone, together[number])
        assert (alone - together[number]).norm() <= 1e-6 * exact.norm()
        assert (alone - exact).norm() < 0.01 * exact.norm()
