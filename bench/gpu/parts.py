"""The parts by name, in the order in which they run."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Setup:
    """On what a part runs."""

    device: str
    """`cuda` or `cpu`."""
    size: str
    """`full` or `small`: of the random model and of all counts."""
    quick: bool
    """A quarter of the repeats."""
    work: Path
    """Folder of models and caches."""

    @property
    def cuda(self) -> bool:
        return self.device == "cuda"

    @property
    def small(self) -> bool:
        return self.size == "small"

    def count(self, full: int, quick: int, small: int) -> int:
        """The number for this run."""
        if self.small:
            return small
        return quick if self.quick else full

    def document(self) -> dict[str, Any]:
        """As it is handed to a part's process."""
        return {
            "device": self.device, "size": self.size, "quick": self.quick, "work": str(self.work),
        }  # fmt: skip

    @classmethod
    def read(cls, document: dict[str, Any]) -> "Setup":
        """What `document` wrote."""
        return cls(**{**document, "work": Path(document["work"])})


@dataclass(frozen=True, slots=True)
class Part:
    """One module of this package: its `run(setup, report)` in a process of its own."""

    name: str
    limit_seconds: float
    """Its process is killed after this time."""
    quick: bool = False
    """Whether `--quick` runs it."""
    optional: bool = False
    """Whether a run without it is whole: where it is left out for want of time."""


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
"""On an H100 they are expected to take some 470 s together; that has not been tried."""

FAULTS = (Part("crash", 30), Part("hang", 8), Part("wrong", 30))
"""Never run unless they are named: with them a test shows what a failing part does to a run."""
