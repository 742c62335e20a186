"""How a recording ended, for logs and metrics."""

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
    """Status of a finished recording, and the seconds per stage."""

    stage_seconds: Mapping[str, float]
    """By stage, and the `total`."""
    transcript: Transcript | None = None
    """None on failure."""
    code: str | None = None
    """Error code, `cancelled`, or `internal_error` for a bug; None on success."""


Observe: TypeAlias = Callable[[Outcome], None]


def ignore_outcome(_: Outcome) -> None:
    """An `Observe` without effect."""


class Observation:
    """A recording in progress: its stopwatch, and its transcript once that is complete."""

    def __init__(self) -> None:
        self.watch = Stopwatch()
        self.transcript: Transcript | None = None


@contextmanager
def observing(observe: Observe) -> Iterator[Observation]:
    """Call `observe` exactly once, with the outcome of the block."""
    observation = Observation()
    code: str | None = CANCELLED
    try:
        yield observation
        code = None
    except ParakeetError as error:
        code = error.code
        raise
    except Exception:
        code = BUG
        raise
    finally:
        transcript = observation.transcript if code is None else None
        observe(Outcome(observation.watch.seconds, transcript, code))
