"""Time of batches with as many in flight as the engine supports."""

import time
from collections import deque
from collections.abc import Sequence

from bench.gpu.sounds import Pcm
from parakeet_worker.engine.base import Engine, Hypothesis, Outcome, Pending


class WrongOutcome(Exception):
    """The outcome of a chunk is not a hypothesis."""


def pipelined(engine: Engine, batches: Sequence[Sequence[Pcm]]) -> tuple[float, int]:
    """Seconds from the first submission to the last token on the host; number of tokens."""
    pending: deque[Pending] = deque()
    tokens = 0
    started = time.perf_counter()
    for batch in batches:
        if len(pending) == engine.depth:
            tokens += _counted(pending.popleft().result())
        pending.append(engine.submit(batch))
    while pending:
        tokens += _counted(pending.popleft().result())
    return time.perf_counter() - started, tokens


def _counted(outcomes: Sequence[Outcome]) -> int:
    return sum(len(hypothesis_of(outcome).tokens) for outcome in outcomes)


def hypothesis_of(outcome: Outcome) -> Hypothesis:
    """The hypothesis of a chunk. Raises `WrongOutcome` for an error."""
    if isinstance(outcome, Hypothesis):
        return outcome
    raise WrongOutcome(str(outcome)) from outcome
