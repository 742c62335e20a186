"""Word error rates."""

import re
from dataclasses import dataclass

PUNCTUATION = re.compile(r"[^\w\s']")


@dataclass(frozen=True, slots=True)
class WordErrors:
    """Errors among words said."""

    errors: int = 0
    words: int = 0

    def __add__(self, other: "WordErrors") -> "WordErrors":
        return WordErrors(self.errors + other.errors, self.words + other.words)

    @property
    def rate(self) -> float:
        """Errors per word said."""
        return self.errors / max(self.words, 1)


def edits(said: list[str], heard: list[str]) -> int:
    """The fewest substitutions, insertions and deletions between the two."""
    row = list(range(len(heard) + 1))
    for index, word in enumerate(said):
        diagonal, row[0] = row[0], index + 1
        for place, other in enumerate(heard):
            above = row[place + 1]
            row[place + 1] = min(above + 1, row[place] + 1, diagonal + (word != other))
            diagonal = above
    return row[-1]


def plain(text: str) -> str:
    """Without case and punctuation."""
    return PUNCTUATION.sub(" ", text).lower()


def compare(said: str, heard: str) -> WordErrors:
    """Words as separated by spaces."""
    return WordErrors(edits(said.split(), heard.split()), len(said.split()))
