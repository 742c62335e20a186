"""A kernel is in use only if its error is a number within the tolerance."""

from math import inf, nan

import pytest

from parakeet_worker.engine.kernel_report import KernelReport


@pytest.mark.parametrize(
    ("error", "replaced"), [(0.0, False), (0.1, False), (0.11, True), (inf, True), (nan, True)]
)
def test_a_kernel_beyond_the_tolerance_is_replaced(error: float, *, replaced: bool) -> None:
    """NaN counts as beyond the tolerance."""
    assert KernelReport("attention", error, 0.1).replaced is replaced


def test_a_report_has_status_and_reason_in_one_line() -> None:
    """The figures, or the exception that was raised."""
    assert str(KernelReport("glu", 0.001, 0.01)) == (
        "glu: in use (relative error 0.001, at most 0.01)"
    )
    assert str(KernelReport("glu", inf, 0.01, "no compiler")) == (
        "glu: replaced by plain PyTorch (no compiler)"
    )
