"""Writes utterances that the demo checkpoint was not trained on, for `accuracy` and `longform`.

`python -m bench.demo_set --pools POOLS --into SET`, in the training's environment
(`training/README.md`), which also names the source of each pool.
"""

import argparse
import json
from collections import defaultdict
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import numpy as np
import soundfile

from training.augment import Strength
from training.clips import SAMPLE_RATE
from training.corpus import MOST_WORDS, Studio, held_out_studio
from training.evaluate import SEED, STRENGTHS
from training.utterances import Utterance


def drawn(studio: Studio, each: int, human: int, strength: Strength) -> Iterator[Utterance]:
    """`each` utterances of every language, other ones than `training.evaluate` draws; `human` of
    the recorded digits.
    """
    for number, language in enumerate(studio.languages):
        for index in range(each):
            randomness = np.random.default_rng([SEED, 1, number, index])
            yield studio.synthesised((language,), MOST_WORDS, randomness)
    for index in range(human):
        yield studio.human(np.random.default_rng([SEED, 2, index]), strength)


def write(utterances: Iterator[Utterance], into: Path) -> float:
    """The recordings and their manifest; returns the seconds of audio."""
    into.mkdir(parents=True, exist_ok=True)
    lines, seconds = [], 0.0
    numbers: defaultdict[str, Iterator[int]] = defaultdict(count)
    for utterance in utterances:
        name = f"{utterance.origin}-{next(numbers[utterance.origin]):04}.wav"
        soundfile.write(into / name, utterance.samples, SAMPLE_RATE, subtype="PCM_16")
        lines.append({
            "audio_filepath": name,
            "text": utterance.text,
            "language": "en" if utterance.origin == "human" else utterance.origin,
            "words": [
                {"word": word.written, "start": round(word.start, 3), "end": round(word.end, 3)}
                for word in utterance.words
            ],
        })  # fmt: skip
        seconds += len(utterance.samples) / SAMPLE_RATE
    written = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    (into / "manifest.jsonl").write_text(written, encoding="utf-8")
    return seconds


def main() -> None:
    """Write a set and print its length."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pools", type=Path, required=True)
    parser.add_argument("--into", type=Path, required=True)
    parser.add_argument("--each", type=int, default=200, help="utterances per language")
    parser.add_argument("--human", type=int, default=0, help="utterances of recorded digits")
    parser.add_argument("--strength", choices=tuple(STRENGTHS), default="mild")
    arguments = parser.parse_args()
    strength = STRENGTHS[arguments.strength]
    studio = held_out_studio(arguments.pools, SEED, strength)
    utterances = drawn(studio, arguments.each, arguments.human, strength)
    print(f"{write(utterances, arguments.into) / 3600:.2f} h")


if __name__ == "__main__":
    main()
