"""espeak-ng's voices and variants, and those reserved for evaluation."""

import numpy as np

from training.espeak import Setting

ACCENTS: dict[str, tuple[str, ...]] = {
    "en": (
        "en-us", "en-us", "en", "en", "en-gb-scotland", "en-gb-x-rp", "en-gb-x-gbclan",
        "en-gb-x-gbcwmd", "en-us-nyc", "en-029",
    ),
    "fr": ("fr", "fr", "fr-be", "fr-ch"),
    "es": ("es", "es", "es-419"),
    "pt": ("pt", "pt", "pt-br"),
}  # fmt: skip
"""Languages with more than one voice; every other language has one, named by its code."""

TRAINING_VARIANTS = (
    "", "m1", "m2", "m3", "m4", "m5", "m6", "m8", "f1", "f2", "f4", "f5", "Alex", "Alicia",
    "Andrea", "Andy", "Annie", "Denis", "Diogo", "Gene", "Gene2", "Henrique", "Hugo", "Jacky",
    "Lee", "Marco", "Mario", "Michael", "Mike", "Nguyen", "anika", "antonio", "aunty", "belinda",
    "benjamin", "boris", "caleb", "david", "ed", "edward", "edward2", "grandma", "grandpa",
    "gustave", "iven", "iven2", "john", "kaukovalta", "klatt", "klatt2", "klatt3", "klatt4",
    "marcelo", "max", "michel", "miguel", "norbert", "pablo", "paul", "pedro", "quincy", "robert",
    "sandro", "shelby", "steph", "steph2", "travis", "victor", "zac", "croak", "announcer",
)  # fmt: skip
HELD_OUT_VARIANTS = ("m7", "f3", "adam", "linda", "rob", "steph3")
"""Excluded from training."""

SLOWEST_WORDS_PER_MINUTE, FASTEST_WORDS_PER_MINUTE = 110, 230


def random_setting(
    language: str, variants: tuple[str, ...], randomness: np.random.Generator
) -> Setting:
    """Draw a voice and a variant of the language, with random speed, pitch and intonation."""
    accent = str(randomness.choice(ACCENTS.get(language, (language,))))
    variant = str(randomness.choice(variants))
    return Setting(
        voice=f"{accent}+{variant}" if variant else accent,
        words_per_minute=int(
            randomness.integers(SLOWEST_WORDS_PER_MINUTE, FASTEST_WORDS_PER_MINUTE + 1)
        ),
        pitch=int(randomness.integers(15, 91)),
        pitch_range=int(randomness.integers(5, 96)),
        word_gap=int(randomness.choice((0, 0, 0, 1, 2, 4, 8))),
    )
