"""Words on both sides of a cut that fell into speech, and how they become one sequence."""

from collections.abc import Sequence

from parakeet_worker.recognition.chunks import Span
from parakeet_worker.recognition.transcript import Word, bare, not_before

# How far apart the same word may be heard in two windows.
_TOLERANCE_SECONDS = 0.4

Handover = tuple[int, int]
"""Where to leave one window and enter the next: the first word not taken, and the first taken."""


def splice(
    before: Sequence[Word],
    bridge: Sequence[Word],
    after: Sequence[Word],
    *,
    seam_seconds: float,
    window: Span,
) -> tuple[tuple[Word, ...], tuple[Word, ...]]:
    """The words before and after a seam, mended by those of the bridge, which lies in `window`.

    At a word that both heard alike, far from the edge of either, one goes on from `before` with
    `bridge`, and likewise from `bridge` with `after`. So none is lost, doubled or halved. Where
    no word is alike, the middle of what both heard decides by time.

    Returns what stands before the seam and what stands after it.
    """
    left, entered = _handover(before, bridge, (window.start_seconds + seam_seconds) / 2)
    rest = bridge[entered:]
    left_again, right = _handover(rest, after, (seam_seconds + window.end_seconds) / 2)
    words = _rising((*before[:left], *rest[:left_again], *after[right:]))
    return (
        tuple(word for word in words if word.start_seconds < seam_seconds),
        tuple(word for word in words if word.start_seconds >= seam_seconds),
    )


def _handover(left: Sequence[Word], right: Sequence[Word], best_seconds: float) -> Handover:
    if not left or not right:
        return len(left), 0
    twins = _twins(left, right)
    if twins:
        return min(twins, key=lambda twin: abs(left[twin[0]].start_seconds - best_seconds))
    leaves = _first_from(left, best_seconds)
    last = left[leaves - 1].end_seconds if leaves else best_seconds
    following = left[leaves].start_seconds if leaves < len(left) else best_seconds
    return leaves, _first_from(right, (last + following) / 2)


def _twins(left: Sequence[Word], right: Sequence[Word]) -> list[Handover]:
    """Pairs of words that both heard, in order: as many as can be, and as near in time.

    It is a common subsequence and not the nearest word for each, so that of a word said three
    times in a row each finds itself.
    """
    best: list[list[float]] = [[0.0] * (len(right) + 1) for _ in range(len(left) + 1)]
    for row, word in enumerate(left):
        for column, other in enumerate(right):
            best[row + 1][column + 1] = max(
                best[row][column] + _likeness(word, other),
                best[row][column + 1],
                best[row + 1][column],
            )
    twins = []
    row, column = len(left), len(right)
    while row and column:
        if best[row][column] == best[row - 1][column]:
            row -= 1
        elif best[row][column] == best[row][column - 1]:
            column -= 1
        else:
            row, column = row - 1, column - 1
            twins.append((row, column))
    return twins


def _likeness(word: Word, other: Word) -> float:
    """Zero for words that are not the same; for the same from 1 up to 2, if it is at one time."""
    apart = abs(word.start_seconds - other.start_seconds) / _TOLERANCE_SECONDS
    return 2 - apart if apart < 1 and bare(word) == bare(other) else 0.0


def _first_from(words: Sequence[Word], seconds: float) -> int:
    """The index of the first word whose middle lies at or after a time."""
    middles = [(word.start_seconds + word.end_seconds) / 2 for word in words]
    return next((index for index, middle in enumerate(middles) if middle >= seconds), len(words))


def _rising(words: Sequence[Word]) -> list[Word]:
    """No word begins before the one that it follows: windows differ by a frame or two."""
    risen: list[Word] = []
    for word in words:
        earliest = risen[-1].start_seconds if risen else word.start_seconds
        risen.append(word if word.start_seconds >= earliest else not_before(word, earliest))
    return risen
