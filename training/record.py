"""Renders the pools of clips: `python -m training.record --into POOLS`."""

import argparse
import logging
import time
from pathlib import Path

import numpy as np

from training import clips, digits
from training.espeak import Synthesiser
from training.voices import HELD_OUT_VARIANTS, TRAINING_VARIANTS, random_setting
from training.words import lexicons

log = logging.getLogger(__name__)

TRAINING_SEED, HELD_OUT_SEED = 1, 2


def record_language(
    synthesiser: Synthesiser,
    language: str,
    variants: tuple[str, ...],
    sessions: int,
    breaths: int,
    seed: int,
) -> list[clips.Session]:
    """Synthesise sessions of one language, each with a random setting."""
    randomness = np.random.default_rng([seed, *language.encode()])
    return [
        clips.record_session(
            synthesiser,
            lexicons()[language],
            random_setting(language, variants, randomness),
            breaths,
            randomness,
        )
        for _ in range(sessions)
    ]


def record_pool(
    synthesiser: Synthesiser,
    path: Path,
    variants: tuple[str, ...],
    sessions: int,
    breaths: int,
    seed: int,
) -> None:
    """Write all languages to one file; English has three times the sessions for its accents."""
    started = time.monotonic()
    pool: list[clips.Session] = []
    for language in lexicons():
        count = sessions * 3 if language == "en" else sessions
        pool += record_language(synthesiser, language, variants, count, breaths, seed)
    clips.save(pool, path)
    hours = clips.seconds(pool) / 3600
    log.info("%s: %.2f h of speech in %.0f s", path.name, hours, time.monotonic() - started)


def main() -> None:
    """Write both pools of synthesised speech, and the recorded digits."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--into", type=Path, required=True)
    parser.add_argument("--digits", type=Path, default=digits.DEFAULT_FOLDER)
    parser.add_argument("--sessions", type=int, default=48, help="per language, for training")
    arguments = parser.parse_args()
    synthesiser = Synthesiser()
    record_pool(
        synthesiser,
        arguments.into / "training.pool",
        TRAINING_VARIANTS,
        arguments.sessions,
        14,
        TRAINING_SEED,
    )
    record_pool(
        synthesiser, arguments.into / "held_out.pool", HELD_OUT_VARIANTS, 6, 10, HELD_OUT_SEED
    )
    for speaker, session in digits.read_speakers(arguments.digits).items():
        clips.save([session], arguments.into / f"{speaker}.pool")


if __name__ == "__main__":
    main()
