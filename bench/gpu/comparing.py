"""How far results lie from those that are right."""

from collections.abc import Sequence
from difflib import SequenceMatcher

import torch
from torch import Tensor

from bench.gpu.timing import heard
from parakeet_worker.engine.base import Outcome

_COARSEST = 2.0**-17
"""Sums of thousands of float32 differ by this much if they are taken in another order."""

Said = tuple[tuple[str, int, int], ...]


def roundings(found: Tensor, expected: Tensor) -> float:
    """The largest difference, in roundings of the largest value in the type of `expected`.

    Infinite where one has other values that are not finite, another shape or another type.
    """
    if (found.shape, found.dtype) != (expected.shape, expected.dtype):
        return float("inf")
    if not expected.numel():
        return 0.0
    if not expected.is_floating_point():
        return 0.0 if torch.equal(found, expected) else float("inf")
    mine, right = found.float(), expected.float()
    if not bool(mine.isfinite().all()):
        return float("inf")
    rounding = max(torch.finfo(expected.dtype).eps, _COARSEST) * float(right.abs().max())
    return float((mine - right).abs().max()) / max(rounding, 1e-12)


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
