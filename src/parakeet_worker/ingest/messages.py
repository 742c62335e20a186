"""What a worker and an ingest process send each other about one recording.

The worker sends `Next`; the process answers with a chunk, `Ended` or `Failed`. At any time the
process may send `Infer`, which the worker answers with an `Inference` the next time it waits.
"""

from dataclasses import dataclass

from parakeet_worker.engine.base import Samples
from parakeet_worker.ingest.cutting import Cutting, Decoded
from parakeet_worker.vad.base import NetworkState


@dataclass(frozen=True, slots=True)
class Task:
    """The first message of a recording, with its link, over the control socket."""

    cutting: Cutting
    has_network: bool
    """Whether the worker computes Silero's network."""


@dataclass(frozen=True, slots=True)
class Next:
    """Send the next chunk."""


@dataclass(frozen=True, slots=True, eq=False)
class Infer:
    """Compute the speech probabilities of a block."""

    block: Samples
    state: NetworkState | None


@dataclass(frozen=True, slots=True)
class Ended:
    """There are no more chunks."""

    decoded: Decoded


@dataclass(frozen=True, slots=True, eq=False)
class Failed:
    """The exception that ended the recording."""

    failure: Exception
