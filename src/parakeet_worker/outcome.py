"""What became of one recording: for logs and figures, never for the caller."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeAlias

from parakeet_worker.errors import ParakeetError
from parakeet_worker.recognition.transcript import Transcript
from parakeet_worker.stopwatch import Stopwatch

CANCELLED = "cancelled"
BUG = "internal_error"


@dataclass(frozen=True, slots=True)
class Outcome:
    """How it ended, and how long each stage took."""

    stage_seconds: Mapping[str, float]
    """By stage, and the `total`."""
    transcript: Transcript | None = None
    """What was heard; None where it failed."""
    code: str | None = None
    """The error's code, `cancelled`, or `internal_error` for what has none; None if all is well."""


Observe: TypeAlias = Callable[[Outcome], None]


def unobserved(_: Outcome) -> None:
    """Nobody wants to know."""


class Observation:
    """A recording on its way: its stopwatch, and what was heard once that is there."""

    def __init__(self) -> None:
        self.watch = Stopwatch()
        self.transcript: Transcript | None = None


@contextmanager
def observed(observe: Observe) -> Iterator[Observation]:
    """Tell `observe`, exactly once, how the block ended."""
    seen = Observation()
    code: str | None = CANCELLED
    try:
        yield seen
        code = None
    except ParakeetError as error:
        code = error.code
        raise
    except Exception:
        code = BUG
        raise
    finally:
        observe(Outcome(seen.watch.seconds, seen.transcript if code is None else None, code))
