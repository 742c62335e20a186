"""Differences between results and their references."""

from collections.abc import Sequence
from difflib import SequenceMatcher

from torch import Tensor

from bench.gpu.timing import hypothesis_of
from parakeet_worker.engine.base import Outcome

Tokens = tuple[tuple[str, int, int], ...]


def relative(actual: Tensor, expected: Tensor) -> float:
    """Norm of the difference over the norm of the reference; infinite for another shape."""
    if actual.shape != expected.shape:
        return float("inf")
    reference = expected.double()
    return float((actual.double() - reference).norm() / reference.norm().clamp(min=1e-12))


def tokens_of(outcomes: Sequence[Outcome]) -> list[Tokens]:
    """Tokens with frames and durations. Raises `WrongOutcome` if a chunk has an error."""
    return [
        tuple((token.piece, token.frame, token.duration) for token in hypothesis_of(outcome).tokens)
        for outcome in outcomes
    ]


def texts(outcomes: Sequence[Outcome]) -> list[str]:
    """Text of each chunk. Raises `WrongOutcome` if it has an error."""
    return ["".join(token.piece for token in hypothesis_of(outcome).tokens) for outcome in outcomes]


def per_thousand(actual: Sequence[object], expected: Sequence[object]) -> float:
    """Number per thousand that differ."""
    assert len(actual) == len(expected)
    different = sum(one != other for one, other in zip(actual, expected, strict=True))
    return 1000 * different / max(1, len(expected))


def differing_tokens(actual: Sequence[Tokens], expected: Sequence[Tokens]) -> float:
    """Substituted, deleted and inserted tokens per thousand."""
    different = 0
    for rows in zip(actual, expected, strict=True):
        left, right = ([piece for piece, _, _ in row] for row in rows)
        for kind, a, b, c, d in SequenceMatcher(None, left, right, autojunk=False).get_opcodes():
            different += 0 if kind == "equal" else max(b - a, d - c)
    return 1000 * different / max(1, sum(map(len, expected)))
