"""Measures a checkpoint with the project's engine: `python -m training.evaluate demo.nemo`."""

import argparse
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from training.augment import CLEAN, FULL, MILD
from training.corpus import MOST_WORDS, MOST_WORDS_LONG, Studio, held_out_studio
from training.errors import WordErrors, compare, plain
from training.listener import Listener
from training.utterances import Utterance

SEED = 4242
BATCH = 16
STRENGTHS = {"clean": CLEAN, "mild": MILD, "hard": FULL}
"""`clean`: unchanged. `mild`: SNR from 15 dB, little else. `hard`: as
training, SNR from 5 dB, phone lines, rooms."""


@dataclass(slots=True)
class Tally:
    """Word errors without and with case and punctuation."""

    plain: WordErrors = field(default_factory=WordErrors)
    as_written: WordErrors = field(default_factory=WordErrors)

    def add(self, reference: str, hypothesis: str) -> None:
        """Count one utterance."""
        self.plain += compare(plain(reference), plain(hypothesis))
        self.as_written += compare(reference, hypothesis)

    def summary(self) -> dict[str, float]:
        """For the JSON document."""
        return {
            "wer": round(self.plain.rate, 5),
            "wer_as_written": round(self.as_written.rate, 5),
            "words": self.plain.words,
        }


Drawn = Callable[[np.random.Generator], Utterance]


def measure(
    listener: Listener, draw: Drawn, count: int, salt: int, wrong: list[dict[str, str]]
) -> Tally:
    """Count errors over `count` utterances; append those with errors to `wrong`."""
    tally = Tally()
    utterances = [draw(np.random.default_rng([SEED, salt, index])) for index in range(count)]
    for first in range(0, count, BATCH):
        batch = utterances[first : first + BATCH]
        for one, text in zip(batch, listener.texts([u.samples for u in batch]), strict=True):
            tally.add(one.text, text)
            if one.text != text:
                wrong.append({"origin": one.origin, "reference": one.text, "hypothesis": text})
    return tally


def false_texts(listener: Listener, studio: Studio, count: int) -> int:
    """Count utterances without speech (silence, noise, 0.1 s) that result in text."""
    draws = [studio.silence(np.random.default_rng([SEED, index])) for index in range(count)]
    return sum(bool(listener.text(one.samples)) for one in draws)


def conditions(studio: Studio, each: int) -> Iterator[tuple[str, Drawn, int]]:
    """Yield every language, long utterances of all, and the held-out speaker."""
    for language in studio.languages:
        yield language, _of(studio, language, MOST_WORDS), each
    for language in studio.languages:
        yield f"long {language}", _of(studio, language, MOST_WORDS_LONG), max(1, each // 8)
    yield "human", studio.human, each * 4


def _of(studio: Studio, language: str, most_words: int) -> Drawn:
    return lambda randomness: studio.synthesised((language,), most_words, randomness)


def report(listener: Listener, pools: Path, each: int) -> dict[str, object]:
    """Return the complete document."""
    document: dict[str, object] = {"utterances_per_language": each}
    wrong: list[dict[str, str]] = []
    for name, strength in STRENGTHS.items():
        studio = held_out_studio(pools, SEED, strength)
        tallies: dict[str, Tally] = {}
        for salt, (condition, draw, count) in enumerate(conditions(studio, each)):
            tallies[condition] = measure(listener, draw, count, salt, wrong)
        document[name] = summarised(tallies)
    document["nothing_with_text"] = false_texts(listener, held_out_studio(pools, SEED), each * 4)
    document["nothing"] = each * 4
    document["errors"] = wrong
    return document


def summarised(tallies: dict[str, Tally]) -> dict[str, object]:
    """Return errors per language, and one figure each for all languages, long and human."""
    languages = {name: tally for name, tally in tallies.items() if len(name) == 2}
    long = [tally for name, tally in tallies.items() if name.startswith("long")]
    return {
        "languages": {name: tally.summary() for name, tally in languages.items()},
        "synthesised": together(list(languages.values())).summary(),
        "long": together(long).summary(),
        "human": tallies["human"].summary(),
    }


def together(tallies: list[Tally]) -> Tally:
    """Sum errors and words."""
    whole = Tally()
    for tally in tallies:
        whole.plain += tally.plain
        whole.as_written += tally.as_written
    return whole


def table(document: dict[str, object]) -> str:
    """Format a Markdown table, WER in percent: plain / as written."""
    columns = list(STRENGTHS)
    lines = [f"| | {' | '.join(columns)} |", "|---|" + "--:|" * len(columns)]
    sections = {name: document[name] for name in columns}
    first = sections[columns[0]]
    assert isinstance(first, dict)
    rows = [*(("languages", name) for name in first["languages"]), "synthesised", "long", "human"]
    for row in rows:
        figures = []
        for section in sections.values():
            assert isinstance(section, dict)
            entry = section["languages"][row[1]] if isinstance(row, tuple) else section[row]
            figures.append(f"{entry['wer']:.2%} / {entry['wer_as_written']:.2%}")
        lines.append(f"| {row[1] if isinstance(row, tuple) else row} | {' | '.join(figures)} |")
    return "\n".join(lines)


def main() -> None:
    """Print the table and write the document."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--pools", type=Path, required=True)
    parser.add_argument("--json", type=Path, default=Path("training/evaluation.json"))
    parser.add_argument("--each", type=int, default=60, help="utterances per language")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    document = report(Listener(arguments.checkpoint), arguments.pools, arguments.each)
    arguments.json.write_text(json.dumps(document, ensure_ascii=False, indent=1) + "\n")
    print(table(document))
    print(f"text without speech: {document['nothing_with_text']} of {document['nothing']}")


if __name__ == "__main__":
    main()
