"""What the parts report: named values, each with its goal."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Figure:
    """One value; `at_least` and `at_most` are its goal, both None where it has none."""

    name: str
    value: float | None
    unit: str
    at_least: float | None = None
    at_most: float | None = None
    required: bool = False
    """Whether the whole run fails where the goal is not reached: results, not speed."""
    values: tuple[float, ...] = ()
    """Of each repeat, where `value` summarises several."""

    @property
    def holds(self) -> bool | None:
        """Whether the goal is reached; None without one. What is not a number reaches none."""
        if self.at_least is None and self.at_most is None:
            return None
        if self.value is None:
            return False
        above = self.at_least is None or self.value >= self.at_least
        return above and (self.at_most is None or self.value <= self.at_most)

    @property
    def goal(self) -> str | None:
        """As text."""
        if self.at_least is not None:
            return f">= {self.at_least:g}"
        return None if self.at_most is None else f"<= {self.at_most:g}"

    def document(self) -> dict[str, Any]:
        """As it stands in the JSON."""
        return {**asdict(self), "goal": self.goal, "holds": self.holds}

    @classmethod
    def read(cls, document: dict[str, Any]) -> "Figure":
        """What `document` wrote."""
        given = {name: document[name] for name in cls.__dataclass_fields__}
        return cls(**{**given, "values": tuple(given["values"])})


class Report:
    """Takes a part's figures and writes each at once: those before a crash are kept."""

    def __init__(self, write: Callable[[str], object], *, judged: bool) -> None:
        """`write` takes a line; speed has goals only where `judged`, on a GPU at full size."""
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
        """A result that has to be right on every device, at every size."""
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
        """Speed, time or memory, with the goal for an H100."""
        if not self._judged:
            at_least = at_most = None
        kept = tuple(float(f"{each:.6g}") for each in values)
        self._add(Figure(name, value, unit, at_least, at_most, values=kept))

    def _add(self, figure: Figure) -> None:
        # "Infinity" and "NaN" are no JSON; a value that is not finite reaches no goal.
        value = figure.value
        if value is not None and not abs(value) < float("inf"):
            figure = Figure.read({**asdict(figure), "value": None})
        self._write(json.dumps(figure.document(), allow_nan=False) + "\n")
