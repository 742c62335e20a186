"""Merges the words on both sides of a cut in speech."""

from collections.abc import Sequence

from parakeet_worker.recognition.chunks import Span
from parakeet_worker.recognition.transcript import Word, bare, not_before

# Largest distance between the times of one word in two windows.
_TOLERANCE_SECONDS = 0.4

Handover = tuple[int, int]
"""Where to switch windows: index of the first word left out, and of the first word used."""


def merge(
    before: Sequence[Word],
    overlap: Sequence[Word],
    after: Sequence[Word],
    *,
    cut_seconds: float,
    window: Span,
) -> tuple[tuple[Word, ...], tuple[Word, ...]]:
    """Merge the words on both sides of a cut by those of the overlap, decoded over `window`.

    Switches from `before` to `overlap`, and from `overlap` to `after`, at a word that both
    windows contain, far from the edges of either, so that no word is lost, doubled or truncated.
    Without a common word, it switches in the middle of the time that both windows cover.

    Returns the words before the cut and the words after it.
    """
    left, entered = _handover(before, overlap, (window.start_seconds + cut_seconds) / 2)
    rest = overlap[entered:]
    rest_end, right = _handover(rest, after, (cut_seconds + window.end_seconds) / 2)
    words = _monotonic((*before[:left], *rest[:rest_end], *after[right:]))
    return (
        tuple(word for word in words if word.start_seconds < cut_seconds),
        tuple(word for word in words if word.start_seconds >= cut_seconds),
    )


def _handover(left: Sequence[Word], right: Sequence[Word], best_seconds: float) -> Handover:
    if not left or not right:
        return len(left), 0
    common = _common_words(left, right)
    if common:
        return min(common, key=lambda pair: abs(left[pair[0]].start_seconds - best_seconds))
    leaves = _first_from(left, best_seconds)
    last = left[leaves - 1].end_seconds if leaves else best_seconds
    following = left[leaves].start_seconds if leaves < len(left) else best_seconds
    return leaves, _first_from(right, (last + following) / 2)


def _common_words(left: Sequence[Word], right: Sequence[Word]) -> list[Handover]:
    """Index pairs of the longest common subsequence, nearest in time.

    Matching each word with its nearest equal would confuse a word that is repeated in a row.
    """
    best: list[list[float]] = [[0.0] * (len(right) + 1) for _ in range(len(left) + 1)]
    for row, word in enumerate(left):
        for column, other in enumerate(right):
            best[row + 1][column + 1] = max(
                best[row][column] + _similarity(word, other),
                best[row][column + 1],
                best[row + 1][column],
            )
    pairs = []
    row, column = len(left), len(right)
    while row and column:
        if best[row][column] == best[row - 1][column]:
            row -= 1
        elif best[row][column] == best[row][column - 1]:
            column -= 1
        else:
            row, column = row - 1, column - 1
            pairs.append((row, column))
    return pairs


def _similarity(word: Word, other: Word) -> float:
    """Zero for different words; 1 to 2 for the same word, 2 at the same time."""
    distance = abs(word.start_seconds - other.start_seconds) / _TOLERANCE_SECONDS
    return 2 - distance if distance < 1 and bare(word) == bare(other) else 0.0


def _first_from(words: Sequence[Word], seconds: float) -> int:
    """The index of the first word whose middle is at or after `seconds`."""
    middles = [(word.start_seconds + word.end_seconds) / 2 for word in words]
    return next((index for index, middle in enumerate(middles) if middle >= seconds), len(words))


def _monotonic(words: Sequence[Word]) -> list[Word]:
    """Words with non-decreasing start times: windows differ by a frame or two."""
    ordered: list[Word] = []
    for word in words:
        earliest = ordered[-1].start_seconds if ordered else word.start_seconds
        ordered.append(word if word.start_seconds >= earliest else not_before(word, earliest))
    return ordered
