"""Word error rate per language, computed as by the Open ASR Leaderboard.

Every SET is a folder or manifest of recordings with transcripts (`bench/utterances.py` lists the
layouts); the default is the project's own recordings. Several precisions are compared with the
first one.
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
# Texts that sets use for utterances without a reference.
_NOT_COMPARED = ("", "ignore time segment in scoring")


@dataclass(frozen=True, slots=True)
class Reference:
    """An utterance of a set, with its normalised text."""

    of: str
    """The set's name."""
    utterance: Utterance
    language: str
    words: str


@dataclass(frozen=True, slots=True)
class Transcription:
    """The hypothesis for one reference."""

    reference: Reference
    text: str
    seconds: float
    refusal: str | None
    """Why the worker rejected the recording, e.g. as too short; counted as silence."""
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
    """The result of one precision."""

    precision: str
    pooled: Errors
    pooled_wer_percent: float
    mean_wer_percent: float
    """Unweighted mean over the rows, as on the leaderboard."""
    audio_seconds: float
    wall_seconds: float
    rtfx: float
    refused: int
    rows: tuple[Row, ...]
    difference: Difference | None = None


@dataclass(frozen=True, slots=True)
class Measured:
    """The result of a precision, and the utterances it is computed from."""

    figure: Figure
    transcriptions: list[Transcription]


def collected(sets: Sequence[Path], language: str) -> list[Reference]:
    """All utterances with a reference; `language` is the default for sets without one."""
    references = []
    for place in sets:
        for utterance in utterances.read(place):
            spoken = utterance.language or language
            words = normalised(utterance.text, spoken)
            if words not in _NOT_COMPARED:
                references.append(Reference(_name(place), utterance, spoken, words))
    if not references:
        raise utterances.Unreadable("no words to compare in any of the sets")
    return references


def _name(place: Path) -> str:
    """The name of a folder, or of a manifest with its folder."""
    path = place.absolute()
    return path.name if path.is_dir() else f"{path.parent.name}/{path.stem}"


def transcribed(
    model: Model, references: Sequence[Reference], together: int
) -> list[Transcription]:
    """Transcribe every utterance, `together` of them concurrently."""
    with ThreadPoolExecutor(together) as threads:
        transcriptions = threads.map(lambda one: _transcribe(model, one), references)
        return list(
            tqdm(
                transcriptions,
                total=len(references),
                unit="utterance",
                disable=None,
                file=sys.stderr,
            )
        )


def _transcribe(model: Model, reference: Reference) -> Transcription:
    text, seconds, refusal = "", 0.0, None
    try:
        transcript = model.transcribe(reference.utterance.audio)
        text, seconds = transcript.text, transcript.seconds
    except RequestError as refused:
        refusal = f"{refused}"
    errors = compared(reference.words, normalised(text, reference.language))
    return Transcription(reference, text, seconds, refusal, errors)


def figure(precision: str, transcriptions: Sequence[Transcription], wall_seconds: float) -> Figure:
    """Summarise one precision."""
    rows = tuple(_rows(transcriptions))
    pooled = sum((one.errors for one in transcriptions), Errors())
    audio_seconds = sum(one.seconds for one in transcriptions)
    return Figure(
        precision=precision,
        pooled=pooled,
        pooled_wer_percent=pooled.percent,
        mean_wer_percent=sum(row.wer_percent for row in rows) / len(rows),
        audio_seconds=audio_seconds,
        wall_seconds=wall_seconds,
        rtfx=audio_seconds / wall_seconds,
        refused=sum(one.refusal is not None for one in transcriptions),
        rows=rows,
    )


def _rows(transcriptions: Sequence[Transcription]) -> Iterator[Row]:
    """One row per set and language: sets in command line order, languages by code."""
    names = list(dict.fromkeys(one.reference.of for one in transcriptions))
    for name in names:
        of_set = [one for one in transcriptions if one.reference.of == name]
        for language in sorted({one.reference.language for one in of_set}):
            of_row = [one.errors for one in of_set if one.reference.language == language]
            errors = sum(of_row, Errors())
            yield Row(name, language, len(of_row), errors, errors.percent)


def _each(transcriptions: Sequence[Transcription]) -> list[Errors]:
    return [one.errors for one in transcriptions]


def measured(arguments: argparse.Namespace, references: Sequence[Reference]) -> Iterator[Measured]:
    """Measure one precision after another; the first is the baseline."""
    first: list[Transcription] = []
    for precision in arguments.precision:
        settings = {"device": arguments.device, "precision": precision, "engine": arguments.engine}
        with open_model(arguments.model, **settings) as model:
            started = time.monotonic()
            transcriptions = transcribed(model, references, arguments.together)
            wall_seconds = time.monotonic() - started
        first = first or transcriptions
        summary = figure(precision, transcriptions, wall_seconds)
        if transcriptions is not first:
            summary = replace(summary, difference=difference(_each(first), _each(transcriptions)))
        yield Measured(summary, transcriptions)


def print_counts(summary: Figure) -> None:
    """Print one line per set and language, and the pooled counts."""
    rows = [
        *((f"{row.set} {row.language}", row.utterances, row.errors) for row in summary.rows),
        ("pooled", sum(row.utterances for row in summary.rows), summary.pooled),
    ]
    print(f"\n{summary.precision}")
    harness.table(
        ("", "utterances", "words", "substituted", "inserted", "deleted", "WER %"),
        [
            (name, count, e.words, e.substitutions, e.insertions, e.deletions, f"{e.percent:.2f}")
            for name, count, e in rows
        ],
    )
    mean = f"mean of the {len(summary.rows)} rows: {summary.mean_wer_percent:.2f} %"
    print(f"{mean}, RTFx {summary.rtfx:.1f}")
    if summary.refused:
        print(f"refused by the worker, counted as silence: {summary.refused}")


def print_comparison(figures: Sequence[Figure]) -> None:
    """Print the precisions side by side, and their differences in points of WER."""
    names = [f"{row.set} {row.language}" for row in figures[0].rows]
    rows = [
        (name, *(f"{summary.rows[index].wer_percent:.2f}" for summary in figures))
        for index, name in enumerate(names)
    ]
    rows.append(("pooled", *(f"{summary.pooled_wer_percent:.2f}" for summary in figures)))
    rows.append(("mean of the rows", *(f"{summary.mean_wer_percent:.2f}" for summary in figures)))
    rows.append(("RTFx", *(f"{summary.rtfx:.1f}" for summary in figures)))
    print()
    harness.table(("WER %", *(summary.precision for summary in figures)), rows)
    for summary in figures[1:]:
        assert summary.difference is not None
        low, high = summary.difference.interval_points
        print(
            f"{summary.precision} against {figures[0].precision}:"
            f" {summary.difference.points:+.2f} points"
            f" (95 %: {low:+.2f} to {high:+.2f}),"
            f" utterances with more or fewer errors: {summary.difference.utterances}"
        )


def write_errors(path: Path, every: Sequence[Measured]) -> None:
    """Write every utterance with an error as a line of JSON, most errors first."""
    lines = [
        {
            "precision": run.figure.precision,
            "audio": str(one.reference.utterance.audio),
            "language": one.reference.language,
            "errors": one.errors.count,
            "reference": one.reference.utterance.text,
            "hypothesis": one.text,
            "refusal": one.refusal,
        }
        for run in every
        for one in sorted(run.transcriptions, key=lambda one: -one.errors.count)
        if one.errors.count
    ]
    content = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    path.write_text(content, encoding="utf-8")


def main(command_line: Sequence[str] | None = None) -> None:
    """Measure, print and write the results."""
    arguments = _arguments(command_line)
    references = collected(arguments.sets or [SAMPLES], arguments.language)
    every = []
    for one in measured(arguments, references):
        print_counts(one.figure)
        every.append(one)
    figures = [one.figure for one in every]
    if len(figures) > 1:
        print_comparison(figures)
    if arguments.list_errors:
        write_errors(arguments.list_errors, every)
    arguments.sets = list(dict.fromkeys(one.of for one in references))
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
    add("--language", choices=tuple(LANGUAGES), default="en", help="of sets without a language")
    add("--together", type=int, default=16, help="recordings transcribed concurrently")
    add("--list-errors", type=Path, metavar="FILE", help="for the utterances with an error")
    add("--results", type=Path, default=harness.RESULTS, help="folder of the JSON")
    return parser.parse_args(command_line)


def _listed(value: str) -> list[str]:
    return value.split(",")


def _device(choice: str) -> str:
    import torch

    return choice if choice != "auto" else "cuda" if torch.cuda.is_available() else "cpu"


if __name__ == "__main__":
    main()
