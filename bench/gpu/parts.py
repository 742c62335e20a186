"""The parts by name, in order of execution."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Setup:
    """Device, size and folder for a part."""

    device: str
    """`cuda` or `cpu`."""
    size: str
    """`full` or `small`, for the random model and all counts."""
    quick: bool
    """Run a quarter of the repeats."""
    work: Path
    """Folder for models and caches."""

    @property
    def cuda(self) -> bool:
        return self.device == "cuda"

    @property
    def small(self) -> bool:
        return self.size == "small"

    def count(self, full: int, quick: int, small: int) -> int:
        """Select the count for this run."""
        if self.small:
            return small
        return quick if self.quick else full

    def document(self) -> dict[str, Any]:
        """Fields for the JSON argument of a part's process."""
        return {
            "device": self.device, "size": self.size, "quick": self.quick, "work": str(self.work),
        }  # fmt: skip

    @classmethod
    def read(cls, document: dict[str, Any]) -> "Setup":
        """Parse the result of `document`."""
        return cls(**{**document, "work": Path(document["work"])})


@dataclass(frozen=True, slots=True)
class Part:
    """One module of this package, whose `run(setup, report)` is called in a separate process."""

    name: str
    limit_seconds: float
    """Time after which its process is killed."""
    quick: bool = False
    """Whether `--quick` includes it."""
    optional: bool = False
    """Whether a run is complete if the part was skipped for lack of time."""


PARTS = (
    Part("model", 150, quick=True),
    Part("kernels", 75, quick=True),
    Part("self_check", 60),
    Part("chain", 60),
    Part("searching", 60),
    Part("words", 120, quick=True),
    Part("batches", 150),
    Part("throughput", 75, quick=True),
    Part("mix", 60),
    Part("stages", 45),
    Part("latency", 45, quick=True),
    Part("reproducible", 75),
    Part("memory", 45, quick=True),
    Part("cold_start", 120),
    Part("nemo", 90, optional=True),
    Part("transformers", 75, optional=True),
)
"""Estimated total on an H100: 470 s; not measured."""

FAULTS = (Part("crash", 30), Part("hang", 8), Part("wrong", 30))
"""Run only if selected by name: a test uses them to show the effect of a failing part."""
