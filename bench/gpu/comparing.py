"""How far results lie from those that are right."""

from collections.abc import Sequence
from difflib import SequenceMatcher

from torch import Tensor

from bench.gpu.timing import heard
from parakeet_worker.engine.base import Outcome

Said = tuple[tuple[str, int, int], ...]


def relative(found: Tensor, expected: Tensor) -> float:
    """Norm of the difference over the norm of what is right; infinite for another shape."""
    if found.shape != expected.shape:
        return float("inf")
    mine, right = found.double(), expected.double()
    return float((mine - right).norm() / right.norm().clamp(min=1e-12))


def said(outcomes: Sequence[Outcome]) -> list[Said]:
    """Tokens with their places; raises `WrongOutcome` where a chunk has an error."""
    return [
        tuple((token.piece, token.frame, token.duration) for token in heard(outcome).tokens)
        for outcome in outcomes
    ]


def texts(outcomes: Sequence[Outcome]) -> list[str]:
    """Of each chunk; raises `WrongOutcome` where it has an error."""
    return ["".join(token.piece for token in heard(outcome).tokens) for outcome in outcomes]


def per_thousand(found: Sequence[object], expected: Sequence[object]) -> float:
    """How many of a thousand differ."""
    assert len(found) == len(expected)
    different = sum(mine != right for mine, right in zip(found, expected, strict=True))
    return 1000 * different / max(1, len(expected))


def differing_tokens(found: Sequence[Said], expected: Sequence[Said]) -> float:
    """Tokens that were replaced, left out or added, of a thousand."""
    different = 0
    for mine, right in zip(found, expected, strict=True):
        left, other = ([piece for piece, _, _ in row] for row in (mine, right))
        for kind, a, b, c, d in SequenceMatcher(None, left, other, autojunk=False).get_opcodes():
            different += 0 if kind == "equal" else max(b - a, d - c)
    return 1000 * different / max(1, sum(map(len, expected)))
