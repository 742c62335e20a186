"""Figures that parts report: named values, each with an optional goal."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Figure:
    """One value; `at_least` and `at_most` are its goal, both None without a goal."""

    name: str
    value: float | None
    unit: str
    at_least: float | None = None
    at_most: float | None = None
    required: bool = False
    """Whether a missed goal fails the whole run: correctness, not speed."""
    values: tuple[float, ...] = ()
    """Values of the repeats that `value` summarises."""

    @property
    def holds(self) -> bool | None:
        """Whether the goal is reached; None without one. A missing value never reaches it."""
        if self.at_least is None and self.at_most is None:
            return None
        if self.value is None:
            return False
        above = self.at_least is None or self.value >= self.at_least
        return above and (self.at_most is None or self.value <= self.at_most)

    @property
    def goal(self) -> str | None:
        """The goal as text."""
        if self.at_least is not None:
            return f">= {self.at_least:g}"
        return None if self.at_most is None else f"<= {self.at_most:g}"

    def document(self) -> dict[str, Any]:
        """Fields for the JSON file."""
        return {**asdict(self), "goal": self.goal, "holds": self.holds}

    @classmethod
    def read(cls, document: dict[str, Any]) -> "Figure":
        """Parse the result of `document`."""
        fields = {name: document[name] for name in cls.__dataclass_fields__}
        return cls(**{**fields, "values": tuple(fields["values"])})


class Report:
    """Writes each figure of a part immediately: those before a crash are preserved."""

    def __init__(self, write: Callable[[str], object], *, judged: bool) -> None:
        """`write` receives one line; speed has goals only if `judged`, on a GPU at full size."""
        self._write = write
        self._judged = judged

    def check(
        self,
        name: str,
        value: float | None,
        unit: str,
        *,
        at_least: float | None = None,
        at_most: float | None = None,
    ) -> None:
        """Report a result that must be correct on every device and at every size."""
        self._add(Figure(name, value, unit, at_least, at_most, required=True))

    def measure(
        self,
        name: str,
        value: float,
        unit: str,
        *,
        at_least: float | None = None,
        at_most: float | None = None,
        values: Sequence[float] = (),
    ) -> None:
        """Report speed, time or memory, with the goal for an H100."""
        if not self._judged:
            at_least = at_most = None
        rounded = tuple(float(f"{each:.6g}") for each in values)
        self._add(Figure(name, value, unit, at_least, at_most, values=rounded))

    def _add(self, figure: Figure) -> None:
        # "Infinity" and "NaN" are invalid JSON; a non-finite value reaches no goal.
        value = figure.value
        if value is not None and not abs(value) < float("inf"):
            figure = Figure.read({**asdict(figure), "value": None})
        self._write(json.dumps(figure.document(), allow_nan=False) + "\n")
