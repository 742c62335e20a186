"""Word error rates."""

import re
from dataclasses import dataclass

PUNCTUATION = re.compile(r"[^\w\s']")


@dataclass(frozen=True, slots=True)
class WordErrors:
    """Errors and reference words."""

    errors: int = 0
    words: int = 0

    def __add__(self, other: "WordErrors") -> "WordErrors":
        return WordErrors(self.errors + other.errors, self.words + other.words)

    @property
    def rate(self) -> float:
        """Errors per reference word."""
        return self.errors / max(self.words, 1)


def edits(reference: list[str], hypothesis: list[str]) -> int:
    """Return the minimum number of substitutions, insertions and deletions."""
    row = list(range(len(hypothesis) + 1))
    for index, word in enumerate(reference):
        diagonal, row[0] = row[0], index + 1
        for place, other in enumerate(hypothesis):
            above = row[place + 1]
            row[place + 1] = min(above + 1, row[place] + 1, diagonal + (word != other))
            diagonal = above
    return row[-1]


def plain(text: str) -> str:
    """Remove case and punctuation."""
    return PUNCTUATION.sub(" ", text).lower()


def compare(reference: str, hypothesis: str) -> WordErrors:
    """Compare words separated by spaces."""
    return WordErrors(edits(reference.split(), hypothesis.split()), len(reference.split()))
