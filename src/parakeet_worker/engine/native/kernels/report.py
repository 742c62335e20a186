"""What a comparison with plain PyTorch found, for logs, metrics and the operator's checks."""

from dataclasses import dataclass


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
