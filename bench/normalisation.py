"""Text as the Open ASR Leaderboard compares it: without case, punctuation and spelling variants.

English goes through Whisper's normaliser, as it did when the leaderboard's figures for Parakeet v3
were published. The leaderboard has amended its copy since (fillers, clock times, acronyms, names),
so that figures of later rows are a little lower for every model. All other languages lose brackets
and punctuation and keep their diacritics; digits stay digits.
"""

import re
from collections.abc import Callable
from functools import cache

# The package writes out four words that neither Whisper nor the leaderboard does.
_NOT_WHISPERS = (r"\bkinda\b", r"\bsorta\b", r"\bdunno\b", r"\bcause\b")


def normalised(text: str, language: str | None) -> str:
    """The text as it is compared in `language`; English if that is `en`."""
    return (_english() if language == "en" else _multilingual())(text).strip()


@cache
def _english() -> Callable[[str], str]:
    from whisper_normalizer.english import EnglishTextNormalizer

    normaliser = EnglishTextNormalizer()
    for pattern in _NOT_WHISPERS:
        del normaliser.replacers[pattern]
    return normaliser


@cache
def _multilingual() -> Callable[[str], str]:
    from whisper_normalizer.basic import BasicTextNormalizer

    normaliser = BasicTextNormalizer(preserve_marks=True)

    def plain(text: str) -> str:
        # Invisible characters: soft hyphens, directional marks.
        return re.sub(r"\s+", " ", re.sub(r"[^\w\s]", "", normaliser(text)))

    return plain
