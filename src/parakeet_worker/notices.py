"""Warnings in an answer: what of a recording is missing, damaged or was chosen."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

MOST = 50
"""Warnings of one kind in one answer; the last one counts those left out."""


@dataclass(frozen=True, slots=True)
class Notice:
    """One warning: a stable code, one sentence, and the part of the recording it is about."""

    code: str
    message: str
    start_seconds: float | None = None
    end_seconds: float | None = None
    damage: bool = False
    """Whether audio is missing or damaged, which `on_damage: refuse` refuses."""

    def __str__(self) -> str:
        return self.message

    def document(self) -> dict[str, object]:
        """As it is sent."""
        places = {"start": self.start_seconds, "end": self.end_seconds}
        found = {name: round(place, 3) for name, place in places.items() if place is not None}
        return {"code": self.code, "message": self.message, **found}


def messages(warnings: object) -> tuple[str, ...]:
    """The sentences of an answer's `warnings`, which were strings in earlier versions."""
    if not isinstance(warnings, list):
        return ()
    return tuple(
        str(each.get("message", "")) if isinstance(each, Mapping) else str(each)
        for each in warnings
    )


def limited(notices: Sequence[Notice]) -> tuple[Notice, ...]:
    """At most `MOST` of each code, in order; the last of a code says how many were left out."""
    kept: list[Notice] = []
    counts: dict[str, int] = {}
    for notice in notices:
        counts[notice.code] = counts.get(notice.code, 0) + 1
        if counts[notice.code] <= MOST:
            kept.append(notice)
    return (*kept, *_left_out(counts, notices))


def _left_out(counts: Mapping[str, int], notices: Sequence[Notice]) -> Iterable[Notice]:
    for code, count in counts.items():
        if count > MOST:
            last = [notice for notice in notices if notice.code == code]
            yield Notice(
                code,
                f"{count - MOST} more warnings of this kind",
                last[MOST].start_seconds,
                last[-1].end_seconds,
            )
