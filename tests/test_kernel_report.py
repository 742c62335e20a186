"""A kernel serves only where its error is a number within the tolerance."""

from math import inf, nan

import pytest

from parakeet_worker.engine.kernel_report import KernelReport


@pytest.mark.parametrize(
    ("error", "replaced"), [(0.0, False), (0.1, False), (0.11, True), (inf, True), (nan, True)]
)
def test_what_is_not_within_the_tolerance_is_replaced(error: float, *, replaced: bool) -> None:
    """An error that is no number counts as one that is too large."""
    assert KernelReport("attention", error, 0.1).replaced is replaced


def test_a_report_says_what_serves_and_why() -> None:
    """One line, with the figures or with what was raised."""
    assert str(KernelReport("glu", 0.001, 0.01)) == (
        "glu: in use (relative error 0.001, at most 0.01)"
    )
    assert str(KernelReport("glu", inf, 0.01, "no compiler")) == (
        "glu: replaced by plain PyTorch (no compiler)"
    )
