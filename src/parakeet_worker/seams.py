"""Words on both sides of a cut that fell into speech, and how they become one sequence."""

from collections.abc import Sequence
from dataclasses import dataclass

from parakeet_worker.transcript import Word

# How far apart the same word may be heard in two windows.
_TOLERANCE_SECONDS = 0.4
# Words nearer to an edge of a window than this were heard without their neighbours.
_EDGE_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class _Match:
    """A word that was heard in both windows: its index in each."""

    left: int
    right: int
    seconds: float
    apart_seconds: float

    def cost(self, best_seconds: float) -> float:
        """Far from the best place is bad; apart in time may be another word that sounds alike."""
        return abs(self.seconds - best_seconds) + 8 * self.apart_seconds


def splice(
    before: Sequence[Word], bridge: Sequence[Word], after: Sequence[Word], *, seam_seconds: float
) -> tuple[tuple[Word, ...], tuple[Word, ...]]:
    """The words before and after a seam, mended by those of the window over it.

    Up to a word that both heard alike, well inside the window, one goes on with `before`, from
    there with `bridge`, and likewise from `bridge` to `after`. Cuts fall between words, so that
    none is halved; where no word matches, the middle of what both heard decides by time.

    Returns what stands before the seam and what stands after it.
    """
    if not bridge:
        return tuple(before), tuple(after)
    first = _handover(before, bridge, until=seam_seconds)
    second = _handover(bridge, after, since=seam_seconds)
    middle = bridge[first.right : max(first.right, second.left)]
    words = (*before[: first.left], *middle, *after[second.right :])
    ordered = _rising(words)
    return (
        tuple(word for word in ordered if word.start_seconds < seam_seconds),
        tuple(word for word in ordered if word.start_seconds >= seam_seconds),
    )


def _handover(
    left: Sequence[Word],
    right: Sequence[Word],
    *,
    until: float = float("inf"),
    since: float = float("-inf"),
) -> _Match:
    """Where to leave `left` and enter `right`: indices of the first word not taken and taken."""
    if not left or not right:
        return _Match(len(left), 0, 0.0, 0.0)
    begin = max(since, right[0].start_seconds)
    end = min(until, left[-1].end_seconds)
    best = (begin + end) / 2
    matches = _matches(left, right, since, until)
    if matches:
        return min(matches, key=lambda match: match.cost(best))
    return _Match(_first_from(left, best), _first_from(right, best), best, 0.0)


def _matches(
    left: Sequence[Word], right: Sequence[Word], since: float, until: float
) -> list[_Match]:
    """Words that both heard, at the same time within the tolerance, between two times."""
    return [
        _Match(index, other, word.start_seconds, abs(word.start_seconds - twin.start_seconds))
        for index, word in enumerate(left)
        if since - _EDGE_SECONDS <= word.start_seconds <= until + _EDGE_SECONDS
        for other, twin in enumerate(right)
        if abs(word.start_seconds - twin.start_seconds) <= _TOLERANCE_SECONDS
        and _bare(word) == _bare(twin)
    ]


def _first_from(words: Sequence[Word], seconds: float) -> int:
    """The index of the first word whose middle lies at or after a time."""
    middles = [(word.start_seconds + word.end_seconds) / 2 for word in words]
    return next((index for index, middle in enumerate(middles) if middle >= seconds), len(words))


def _bare(word: Word) -> str:
    """Windows differ in capitals and marks, since they begin and end elsewhere."""
    return "".join(letter for letter in word.text.casefold() if letter.isalnum())


def _rising(words: Sequence[Word]) -> list[Word]:
    """Without what two windows heard twice: a word that starts before the last one does."""
    kept: list[Word] = []
    for word in words:
        if not kept or word.start_seconds >= kept[-1].start_seconds:
            kept.append(word)
    return kept
