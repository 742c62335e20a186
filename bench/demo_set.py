"""Writes utterances that the demo checkpoint never heard as a set for `scripts/bench accuracy`.

`python -m bench.demo_set --pools POOLS --into SET`, in the training's environment
(`training/README.md`), which also tells where pools come from.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import soundfile

from training.clips import SAMPLE_RATE
from training.corpus import MOST_WORDS, Studio, held_out_studio
from training.evaluate import SEED, STRENGTHS
from training.utterances import Utterance


def drawn(studio: Studio, each: int) -> Iterator[Utterance]:
    """`each` utterances of every language, other ones than `training.evaluate` draws."""
    for number, language in enumerate(studio.languages):
        for index in range(each):
            randomness = np.random.default_rng([SEED, 1, number, index])
            yield studio.synthesised((language,), MOST_WORDS, randomness)


def write(studio: Studio, each: int, into: Path) -> float:
    """The recordings and their manifest; returns the seconds of audio."""
    into.mkdir(parents=True, exist_ok=True)
    lines, seconds = [], 0.0
    for index, utterance in enumerate(drawn(studio, each)):
        name = f"{utterance.origin}-{index % each:04}.wav"
        soundfile.write(into / name, utterance.samples, SAMPLE_RATE, subtype="PCM_16")
        lines.append({"audio_filepath": name, "text": utterance.text, "language": utterance.origin})
        seconds += len(utterance.samples) / SAMPLE_RATE
    written = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    (into / "manifest.jsonl").write_text(written, encoding="utf-8")
    return seconds


def main() -> None:
    """Write a set and say how long it is."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pools", type=Path, required=True)
    parser.add_argument("--into", type=Path, required=True)
    parser.add_argument("--each", type=int, default=200, help="utterances per language")
    parser.add_argument("--strength", choices=tuple(STRENGTHS), default="mild")
    arguments = parser.parse_args()
    studio = held_out_studio(arguments.pools, SEED, STRENGTHS[arguments.strength])
    seconds = write(studio, arguments.each, arguments.into)
    print(f"{arguments.each * len(studio.languages)} utterances, {seconds / 3600:.2f} h")


if __name__ == "__main__":
    main()
