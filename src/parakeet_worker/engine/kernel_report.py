"""Result of comparing a kernel with plain PyTorch, for logs, metrics and the operator's checks."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite


class NoKernels(Exception):
    """Kernels cannot serve the model on its device; the message is the reason."""


@dataclass(frozen=True, slots=True)
class KernelReport:
    """Comparison of a kernel, or a chain of kernels, with its reference on the serving device."""

    name: str
    error: float
    """Norm of the difference over the norm of the reference; infinite if nothing was computed."""
    tolerance: float
    reason: str | None = None
    """Why nothing was computed: the exception of the compiler or the launch."""

    @property
    def replaced(self) -> bool:
        """Whether plain PyTorch replaces the kernel."""
        return not self.error <= self.tolerance  # true for NaN

    def __str__(self) -> str:
        """One line for a log."""
        status = "replaced by plain PyTorch" if self.replaced else "in use"
        facts = self.reason or f"relative error {self.error:.2g}, at most {self.tolerance:.2g}"
        return f"{self.name}: {status} ({facts})"

    def document(self) -> dict[str, object]:
        """Fields for JSON, which has no infinity: `error` becomes null."""
        error = self.error if isfinite(self.error) else None
        facts = {"name": self.name, "error": error, "tolerance": self.tolerance}
        return {**facts, "reason": self.reason, "replaced": self.replaced}


def summary(reports: Sequence[KernelReport]) -> str:
    """One line with the number of compared and the names of replaced kernels."""
    replaced = [report.name for report in reports if report.replaced]
    if not replaced:
        return f"{len(reports)} compared with plain PyTorch, all in use"
    names = ", ".join(replaced)
    return f"{len(replaced)} of {len(reports)} replaced by plain PyTorch: {names}"
