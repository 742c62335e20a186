"""Word error rate per language, counted as the Open ASR Leaderboard counts it.

Every SET is a folder or a manifest of recordings with transcripts (`bench/utterances.py` lists the
layouts); without one, the project's own recordings. With several precisions they are compared with
the first, fp32 by default.
"""

import argparse
import json
import re
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from tqdm import tqdm

from bench import harness, utterances
from bench.normalisation import normalised
from bench.utterances import Utterance
from bench.word_errors import Difference, Errors, compared, difference
from parakeet_worker import Model, open_model
from parakeet_worker.errors import RequestError
from parakeet_worker.language import LANGUAGES

SAMPLES = harness.ROOT / "samples" / "manifest.json"
# What a set has in place of words that are not to be compared.
_NOT_COMPARED = ("", "ignore time segment in scoring")


@dataclass(frozen=True, slots=True)
class Said:
    """An utterance of a set, with its text as it is compared."""

    of: str
    """The set's name."""
    utterance: Utterance
    language: str
    words: str


@dataclass(frozen=True, slots=True)
class Heard:
    """What the model made of it."""

    said: Said
    text: str
    seconds: float
    refusal: str | None
    """Why the worker would not hear it, as with a tenth of a second; counted as silence."""
    errors: Errors


@dataclass(frozen=True, slots=True)
class Row:
    """One language of one set."""

    set: str
    language: str
    utterances: int
    errors: Errors
    wer_percent: float


@dataclass(frozen=True, slots=True)
class Figure:
    """One precision."""

    precision: str
    pooled: Errors
    pooled_wer_percent: float
    mean_wer_percent: float
    """Of the rows, each counting the same: the leaderboard's average."""
    audio_seconds: float
    wall_seconds: float
    rtfx: float
    refused: int
    rows: tuple[Row, ...]
    difference: Difference | None = None


@dataclass(frozen=True, slots=True)
class Measured:
    """A precision's figure, and the utterances that it counts."""

    figure: Figure
    heard: list[Heard]


def collected(sets: Sequence[Path], language: str) -> list[Said]:
    """All utterances with something to compare; `language` is that of sets that tell none."""
    said = []
    for place in sets:
        for utterance in utterances.read(place):
            spoken = utterance.language or language
            words = normalised(utterance.text, spoken)
            if words not in _NOT_COMPARED:
                said.append(Said(_name(place), utterance, spoken, words))
    if not said:
        raise utterances.Unreadable("no words to compare in any of the sets")
    return said


def _name(place: Path) -> str:
    """A folder's own name; a manifest's folder with it where the manifest's says little."""
    path = place.absolute()
    return path.name if path.is_dir() else f"{path.parent.name}/{path.stem}"


def transcribed(model: Model, said: Sequence[Said], together: int) -> list[Heard]:
    """What is heard of every utterance, `together` of them at once."""
    with ThreadPoolExecutor(together) as threads:
        heard = threads.map(lambda one: _heard(model, one), said)
        return list(tqdm(heard, total=len(said), unit="utterance", disable=None, file=sys.stderr))


def _heard(model: Model, said: Said) -> Heard:
    text, seconds, refusal = "", 0.0, None
    try:
        transcript = model.transcribe(said.utterance.audio)
        text, seconds = transcript.text, transcript.seconds
    except RequestError as refused:
        refusal = f"{refused}"
    errors = compared(said.words, normalised(text, said.language))
    return Heard(said, text, seconds, refusal, errors)


def figure(precision: str, heard: Sequence[Heard], wall_seconds: float) -> Figure:
    """The counts of one precision."""
    rows = tuple(_rows(heard))
    pooled = sum((one.errors for one in heard), Errors())
    audio_seconds = sum(one.seconds for one in heard)
    return Figure(
        precision=precision,
        pooled=pooled,
        pooled_wer_percent=pooled.percent,
        mean_wer_percent=sum(row.wer_percent for row in rows) / len(rows),
        audio_seconds=audio_seconds,
        wall_seconds=wall_seconds,
        rtfx=audio_seconds / wall_seconds,
        refused=sum(one.refusal is not None for one in heard),
        rows=rows,
    )


def _rows(heard: Sequence[Heard]) -> Iterator[Row]:
    """Sets in the order given, the languages of each by code."""
    names = list(dict.fromkeys(one.said.of for one in heard))
    for name in names:
        of_set = [one for one in heard if one.said.of == name]
        for language in sorted({one.said.language for one in of_set}):
            of_row = [one.errors for one in of_set if one.said.language == language]
            errors = sum(of_row, Errors())
            yield Row(name, language, len(of_row), errors, errors.percent)


def _each(heard: Sequence[Heard]) -> list[Errors]:
    return [one.errors for one in heard]


def measured(arguments: argparse.Namespace, said: Sequence[Said]) -> Iterator[Measured]:
    """Every precision in turn, the first being what others are compared with."""
    first: list[Heard] = []
    for precision in arguments.precision:
        settings = {"device": arguments.device, "precision": precision, "engine": arguments.engine}
        with open_model(arguments.model, **settings) as model:
            started = time.monotonic()
            heard = transcribed(model, said, arguments.together)
            wall_seconds = time.monotonic() - started
        first = first or heard
        told = figure(precision, heard, wall_seconds)
        if heard is not first:
            told = replace(told, difference=difference(_each(first), _each(heard)))
        yield Measured(told, heard)


def print_counts(told: Figure) -> None:
    """Every language of every set, and all of them together."""
    rows = [
        *((f"{row.set} {row.language}", row.utterances, row.errors) for row in told.rows),
        ("pooled", sum(row.utterances for row in told.rows), told.pooled),
    ]
    print(f"\n{told.precision}")
    harness.table(
        ("", "utterances", "words", "substituted", "inserted", "deleted", "WER %"),
        [
            (name, count, e.words, e.substitutions, e.insertions, e.deletions, f"{e.percent:.2f}")
            for name, count, e in rows
        ],
    )
    print(f"mean of the {len(told.rows)} rows: {told.mean_wer_percent:.2f} %, RTFx {told.rtfx:.1f}")
    if told.refused:
        print(f"refused by the worker, counted as silence: {told.refused}")


def print_comparison(figures: Sequence[Figure]) -> None:
    """Precisions side by side, with what each costs in points of WER."""
    names = [f"{row.set} {row.language}" for row in figures[0].rows]
    rows = [
        (name, *(f"{told.rows[index].wer_percent:.2f}" for told in figures))
        for index, name in enumerate(names)
    ]
    rows.append(("pooled", *(f"{told.pooled_wer_percent:.2f}" for told in figures)))
    rows.append(("mean of the rows", *(f"{told.mean_wer_percent:.2f}" for told in figures)))
    rows.append(("RTFx", *(f"{told.rtfx:.1f}" for told in figures)))
    print()
    harness.table(("WER %", *(told.precision for told in figures)), rows)
    for told in figures[1:]:
        assert told.difference is not None
        low, high = told.difference.interval_points
        print(
            f"{told.precision} against {figures[0].precision}: {told.difference.points:+.2f} points"
            f" (95 %: {low:+.2f} to {high:+.2f}),"
            f" utterances heard better or worse: {told.difference.utterances}"
        )


def write_errors(path: Path, every: Sequence[Measured]) -> None:
    """Every utterance with an error as a line of JSON, the most errors first."""
    lines = [
        {
            "precision": one.figure.precision,
            "audio": str(heard.said.utterance.audio),
            "language": heard.said.language,
            "errors": heard.errors.count,
            "said": heard.said.utterance.text,
            "heard": heard.text,
            "refusal": heard.refusal,
        }
        for one in every
        for heard in sorted(one.heard, key=lambda heard: -heard.errors.count)
        if heard.errors.count
    ]
    written = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    path.write_text(written, encoding="utf-8")


def main(command_line: Sequence[str] | None = None) -> None:
    """Measure, print, write."""
    arguments = _arguments(command_line)
    said = collected(arguments.sets or [SAMPLES], arguments.language)
    every = []
    for one in measured(arguments, said):
        print_counts(one.figure)
        every.append(one)
    figures = [one.figure for one in every]
    if len(figures) > 1:
        print_comparison(figures)
    if arguments.list_errors:
        write_errors(arguments.list_errors, every)
    arguments.sets = list(dict.fromkeys(one.of for one in said))
    arguments.device = _device(arguments.device)
    model = Path(arguments.model).name.removesuffix(".nemo")
    name = re.sub(r"[^a-z0-9]+", "-", "-".join((model, *arguments.sets)).lower())
    harness.write(f"accuracy-{name}", arguments, {"name": model}, figures)


def _arguments(command_line: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("sets", nargs="*", type=Path, metavar="SET")
    add("--model", default="demo", help="a Hugging Face name, a path, or demo")
    add("--precision", type=_listed, default=["fp32"], help="comma separated")
    add("--engine", choices=("native", "nemo"), default="native")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto")
    add("--language", choices=tuple(LANGUAGES), default="en", help="of sets that tell none")
    add("--together", type=int, default=16, help="recordings that are transcribed at once")
    add("--list-errors", type=Path, metavar="FILE", help="for the utterances with an error")
    add("--results", type=Path, default=harness.RESULTS, help="folder of the JSON")
    return parser.parse_args(command_line)


def _listed(given: str) -> list[str]:
    return given.split(",")


def _device(choice: str) -> str:
    import torch

    return choice if choice != "auto" else "cuda" if torch.cuda.is_available() else "cpu"


if __name__ == "__main__":
    main()
