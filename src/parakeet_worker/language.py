"""Language identification and the script of each of the 25 languages."""

import unicodedata
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from threading import Lock
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal, TypeAlias

if TYPE_CHECKING:
    from py3langid.langid import LanguageIdentifier

Script: TypeAlias = Literal["Latin", "Cyrillic", "Greek"]

LANGUAGES: Mapping[str, str] = MappingProxyType(
    {
        "bg": "Bulgarian",
        "cs": "Czech",
        "da": "Danish",
        "de": "German",
        "el": "Greek",
        "en": "English",
        "es": "Spanish",
        "et": "Estonian",
        "fi": "Finnish",
        "fr": "French",
        "hr": "Croatian",
        "hu": "Hungarian",
        "it": "Italian",
        "lt": "Lithuanian",
        "lv": "Latvian",
        "mt": "Maltese",
        "nl": "Dutch",
        "pl": "Polish",
        "pt": "Portuguese",
        "ro": "Romanian",
        "ru": "Russian",
        "sk": "Slovak",
        "sl": "Slovenian",
        "sv": "Swedish",
        "uk": "Ukrainian",
    }
)
"""The languages of Parakeet TDT 0.6B v3: ISO 639-1 code to English name."""

_ISO_639_2: Mapping[str, str] = MappingProxyType(
    {
        "bul": "bg", "ces": "cs", "cze": "cs", "dan": "da", "deu": "de", "ger": "de", "ell": "el",
        "gre": "el", "eng": "en", "spa": "es", "est": "et", "fin": "fi", "fra": "fr", "fre": "fr",
        "hrv": "hr", "hun": "hu", "ita": "it", "lit": "lt", "lav": "lv", "mlt": "mt", "nld": "nl",
        "dut": "nl", "pol": "pl", "por": "pt", "ron": "ro", "rum": "ro", "rus": "ru", "slk": "sk",
        "slo": "sk", "slv": "sl", "swe": "sv", "ukr": "uk",
    }
)  # fmt: skip
# Native names, and other English names.
_NAMES: Mapping[str, str] = MappingProxyType(
    {
        "български": "bg", "čeština": "cs", "cestina": "cs", "dansk": "da", "deutsch": "de",
        "ελληνικά": "el", "modern greek": "el", "español": "es", "espanol": "es",
        "castilian": "es", "castellano": "es", "eesti": "et", "suomi": "fi", "français": "fr",
        "francais": "fr", "hrvatski": "hr", "magyar": "hu", "italiano": "it", "lietuvių": "lt",
        "latviešu": "lv", "malti": "mt", "nederlands": "nl", "flemish": "nl", "polski": "pl",
        "português": "pt", "portugues": "pt", "română": "ro", "romana": "ro", "moldavian": "ro",
        "moldovan": "ro", "русский": "ru", "slovenčina": "sk", "slovenščina": "sl",
        "slovene": "sl", "svenska": "sv", "українська": "uk",
    }
)  # fmt: skip
AUTOMATIC = frozenset({"auto", "automatic", "detect", "und"})
"""Values that request language detection."""


def code(value: str) -> str | None:
    """The ISO 639-1 code of a language of `LANGUAGES`; None for another one.

    Accepts ISO 639-1 and 639-2 with an optional region (`pt-BR`, `deu`), English and native names,
    in upper or lower case.
    """
    value = value.strip().casefold()
    names = {name.casefold(): tag for tag, name in LANGUAGES.items()}
    named = names.get(value) or _NAMES.get(value)
    if named is not None:
        return named
    tag = value.replace("_", "-").partition("-")[0]
    tag = _ISO_639_2.get(tag, tag)
    return tag if tag in LANGUAGES else None


_NOT_LATIN: Mapping[str, Script] = {
    "bg": "Cyrillic",
    "el": "Greek",
    "ru": "Cyrillic",
    "uk": "Cyrillic",
}
# The first word of a letter's Unicode name: the standard library has no other access to scripts.
_SCRIPTS: Mapping[str, Script] = {"LATIN": "Latin", "CYRILLIC": "Cyrillic", "GREEK": "Greek"}
# Letters by category that occur in every script: ª, º, µ and the apostrophe of Ukrainian.
_SIGNS = ("FEMININE", "MASCULINE", "MICRO", "MODIFIER")

_loading = Lock()


@dataclass(frozen=True, slots=True)
class Spoken:
    """The most probable language of a text."""

    language: str
    """ISO 639-1 code."""
    probability: float
    """0 to 1, normalized over `LANGUAGES`; low for one or two words."""

    @property
    def name(self) -> str:
        """The English name in lower case, as OpenAI's `verbose_json` has it."""
        return LANGUAGES[self.language].lower()


def find(text: str) -> Spoken | None:
    """The language of `text`; None if it has no letter of a supported script."""
    scripts = Counter(filter(None, map(_script_of, text)))
    if not scripts:
        return None
    (most, _), *_ = scripts.most_common(1)
    ranked = [(code, score) for code, score in load().rank(text) if script(code) == most]
    language, score = ranked[0]
    return Spoken(language, score / sum(score for _, score in ranked))


def load() -> "LanguageIdentifier":
    """Load the library with its data: 0.5 s and 80 MB on the first call."""
    with _loading:
        return _identifier()


@cache
def _identifier() -> "LanguageIdentifier":
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    identifier.set_languages(LANGUAGES)
    return identifier


def script(language: str) -> Script:
    """The script of a language of `LANGUAGES`. Raises KeyError for another one."""
    if language not in LANGUAGES:
        raise KeyError(language)
    return _NOT_LATIN.get(language, "Latin")


def allowed(piece: str, script: Script) -> bool:
    """Whether every letter of a token's piece is of the script.

    Digits, marks, spaces and control pieces such as `<unk>` belong to no script and pass.
    """
    if len(piece) > 2 and piece.startswith("<") and piece.endswith(">"):
        return True
    return all(_script_of(letter) == script for letter in piece if _is_letter(letter))


def _is_letter(character: str) -> bool:
    return character.isalpha() and not unicodedata.name(character, "").startswith(_SIGNS)


@cache
def _script_of(character: str) -> Script | None:
    """The script of a letter; None for other scripts and for characters that are not letters."""
    if not _is_letter(character):
        return None
    return _SCRIPTS.get(unicodedata.name(character, "").partition(" ")[0])
