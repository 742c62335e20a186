"""English words in Flite's four voices: `python -m training.flite --into POOLS/flite.pool`.

Their voices were cut from recordings of people, so they teach more of native English than
espeak-ng's formants do; the three humans that are trained on are not native speakers.
"""

import argparse
import subprocess
import tempfile
from pathlib import Path

import numpy as np

from training import clips, digits
from training.words import lexicons

VOICES = {"awb": 130, "kal16": 105, "rms": 100, "slt": 170}
"""Flite's voices with their natural pitch in hertz."""
MARKS = (".", ",", "?")
SEED = 5


def spoken(voice: str, word: str, mark: str, slowness: float, hertz: float) -> clips.Clip | None:
    """Synthesise one word with the intonation of the mark after it."""
    with tempfile.NamedTemporaryFile(suffix=".wav") as wave:
        subprocess.run(
            [
                *("flite", "-voice", voice, "-t", word + mark, "-o", wave.name),
                *("--setf", f"duration_stretch={slowness:.3f}"),
                *("--setf", f"int_f0_target_mean={hertz:.1f}"),
            ],
            check=True,
        )
        return digits.read_clip(Path(wave.name), word)


def session(voice: str, randomness: np.random.Generator) -> clips.Session:
    """Synthesise every digit with every mark, and the other words once, in one voice."""
    words = lexicons()["en"].words
    slowness = float(randomness.uniform(0.8, 1.3))
    hertz = VOICES[voice] * float(randomness.uniform(0.8, 1.25))
    marked = [(word, mark) for word in words[:10] for mark in MARKS] + [
        (w, ".") for w in words[10:]
    ]
    spoken_words = [spoken(voice, word, mark, slowness, hertz) for word, mark in marked]
    return clips.Session("en", tuple(clip for clip in spoken_words if clip), ())


def main() -> None:
    """Synthesise the sessions of every voice."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--into", type=Path, required=True)
    parser.add_argument("--sessions", type=int, default=8, help="per voice")
    arguments = parser.parse_args()
    randomness = np.random.default_rng(SEED)
    clips.save(
        [session(voice, randomness) for voice in VOICES for _ in range(arguments.sessions)],
        arguments.into,
    )


if __name__ == "__main__":
    main()
