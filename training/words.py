"""The demo checkpoint's vocabulary, by language."""

import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

WORDS_FILE = Path(__file__).with_name("words.toml")


@dataclass(frozen=True, slots=True)
class Lexicon:
    """The words of one language; the first ten are its digits, 0 to 9."""

    language: str
    words: tuple[str, ...]


@cache
def lexicons() -> dict[str, Lexicon]:
    """Every language's lexicon by its two-letter code, in the order of the file."""
    tables = tomllib.loads(WORDS_FILE.read_text(encoding="utf-8"))
    return {
        language: Lexicon(language, tuple(table["digits"] + table["everyday"]))
        for language, table in tables.items()
    }


@cache
def word_types() -> tuple[str, ...]:
    """Every distinct written word of all languages, sorted: the classes of the frame-wise head."""
    return tuple(sorted({word for lexicon in lexicons().values() for word in lexicon.words}))


def capitalised(word: str) -> str:
    """Capitalise the first word of a sentence."""
    return word[0].upper() + word[1:]


def sentence(words: tuple[str, ...]) -> str:
    """Format a sentence: a capital first, a full stop last."""
    return " ".join((capitalised(words[0]), *words[1:])) + "."
