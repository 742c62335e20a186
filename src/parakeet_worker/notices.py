"""Warnings in an answer: missing or damaged parts of a recording, and choices made."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

MAX_PER_CODE = 50
"""Maximum number of warnings per code in one answer; one more counts the omitted ones."""


@dataclass(frozen=True, slots=True)
class Notice:
    """One warning: a stable code, one sentence, and the part of the recording that it concerns."""

    code: str
    """Stable identifier."""
    message: str
    """One sentence."""
    start_seconds: float | None = None
    """Start of the part, if the warning concerns one."""
    end_seconds: float | None = None
    """End of the part."""
    damage: bool = False
    """Whether audio is missing or damaged, an error with `on_damage: refuse`."""

    def __str__(self) -> str:
        return self.message

    def document(self) -> dict[str, object]:
        """The JSON of an answer."""
        times = {"start": self.start_seconds, "end": self.end_seconds}
        known = {name: round(time, 3) for name, time in times.items() if time is not None}
        return {"code": self.code, "message": self.message, **known}


def messages(warnings: object) -> tuple[str, ...]:
    """The messages of an answer's `warnings`, which were strings in earlier versions."""
    if not isinstance(warnings, list):
        return ()
    return tuple(
        str(each.get("message", "")) if isinstance(each, Mapping) else str(each)
        for each in warnings
    )


def limited(notices: Sequence[Notice]) -> tuple[Notice, ...]:
    """At most `MAX_PER_CODE` notices of each code, and the number of omitted ones."""
    kept: list[Notice] = []
    counts: dict[str, int] = {}
    for notice in notices:
        counts[notice.code] = counts.get(notice.code, 0) + 1
        if counts[notice.code] <= MAX_PER_CODE:
            kept.append(notice)
    return (*kept, *_left_out(counts, notices))


def _left_out(counts: Mapping[str, int], notices: Sequence[Notice]) -> Iterable[Notice]:
    for code, count in counts.items():
        if count > MAX_PER_CODE:
            last = [notice for notice in notices if notice.code == code]
            yield Notice(
                code,
                f"{count - MAX_PER_CODE} more warnings of this kind",
                last[MAX_PER_CODE].start_seconds,
                last[-1].end_seconds,
            )
