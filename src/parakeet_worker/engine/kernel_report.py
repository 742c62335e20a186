"""What a comparison with plain PyTorch found, for logs, metrics and the operator's checks."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite


class NoKernels(Exception):
    """A model cannot be served by kernels on its device, for the reason given."""


@dataclass(frozen=True, slots=True)
class KernelReport:
    """A kernel, or a chain of them, held against its reference on the device that it runs on."""

    name: str
    error: float
    """Norm of the difference over the norm of the reference; infinite if nothing was computed."""
    tolerance: float
    reason: str | None = None
    """Why nothing was computed: what the compiler or the launch raised."""

    @property
    def replaced(self) -> bool:
        """Whether plain PyTorch serves in its place."""
        return not self.error <= self.tolerance  # NaN is replaced too

    def __str__(self) -> str:
        """One line for a log."""
        verdict = "replaced by plain PyTorch" if self.replaced else "in use"
        facts = self.reason or f"relative error {self.error:.2g}, at most {self.tolerance:.2g}"
        return f"{self.name}: {verdict} ({facts})"

    def document(self) -> dict[str, object]:
        """For JSON, which has no infinity."""
        error = self.error if isfinite(self.error) else None
        facts = {"name": self.name, "error": error, "tolerance": self.tolerance}
        return {**facts, "reason": self.reason, "replaced": self.replaced}


def summary(reports: Sequence[KernelReport]) -> str:
    """In one line, how many were compared; those that were replaced say it themselves."""
    replaced = [report.name for report in reports if report.replaced]
    if not replaced:
        return f"{len(reports)} compared with plain PyTorch, all in use"
    names = ", ".join(replaced)
    return f"{len(replaced)} of {len(reports)} replaced by plain PyTorch: {names}"
