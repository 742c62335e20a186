"""How long batches take when as many are in flight as the engine takes."""

import time
from collections import deque
from collections.abc import Sequence

from bench.gpu.sounds import Pcm
from parakeet_worker.engine.base import Engine, Hypothesis, Outcome, Pending


class WrongOutcome(Exception):
    """A chunk was not answered with a hypothesis."""


def pipelined(engine: Engine, batches: Sequence[Sequence[Pcm]]) -> tuple[float, int]:
    """Seconds from the first submission to the last token on the host, and how many tokens."""
    flying: deque[Pending] = deque()
    tokens = 0
    started = time.perf_counter()
    for batch in batches:
        if len(flying) == engine.depth:
            tokens += _counted(flying.popleft().result())
        flying.append(engine.submit(batch))
    while flying:
        tokens += _counted(flying.popleft().result())
    return time.perf_counter() - started, tokens


def _counted(outcomes: Sequence[Outcome]) -> int:
    return sum(len(heard(outcome).tokens) for outcome in outcomes)


def heard(outcome: Outcome) -> Hypothesis:
    """The hypothesis; raises `WrongOutcome` for an error."""
    if isinstance(outcome, Hypothesis):
        return outcome
    raise WrongOutcome(str(outcome)) from outcome
