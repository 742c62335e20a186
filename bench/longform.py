"""Word errors caused by cutting: long recordings with known words, cut by several strategies.

Recordings are built from utterances with word times: pauses of 0.1 to 3 s, noise or music under
some spans, and occasionally a minute without a pause to cut in, because words follow each other or
other speakers talk in the pauses. Errors of the separately transcribed utterances are subtracted.
"""

import argparse
import json
import multiprocessing
import os
import sys
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, get_args

from bench import harness, spoken
from bench.alignment import Alignment, Counts, aligned, counted
from bench.cutting import ALONE, STRATEGIES, HypothesisWord, Run, RunRequest, StrategyResult, run
from bench.spoken import Kind as SpeechKind
from bench.spoken import LongRecording, Voices
from parakeet_worker.recognition.chunks import Span

SAMPLES = harness.ROOT / "samples" / "manifest.json"
NEAR_CUT_SECONDS = 3.0
"""Words that start within this distance of a cut in speech count as near it."""


@dataclass(frozen=True, slots=True)
class Place:
    """Errors of a selection of words, compared with the utterances transcribed separately."""

    counts: Counts
    errors_alone: int
    right_alone: int
    lost: int
    """Wrong here and right separately."""
    won: int
    """Right here and wrong separately."""


@dataclass(frozen=True, slots=True)
class Kind:
    """Spans of one kind: with pauses, packed or crowded."""

    near_cuts: Place
    """Near a cut in speech."""
    elsewhere: Place


@dataclass(frozen=True, slots=True)
class Figure:
    """One strategy on one recording."""

    minutes: float
    strategy: str
    everywhere: Place
    near_cuts: Place
    """Near a cut in speech."""
    kinds: dict[str, Kind]
    against_alone: Counts
    """With the separately transcribed utterances as the reference."""
    added_percent: float
    """Errors beyond those of the separate utterances, in percent of all words."""
    added_near_cuts_percent: float
    start_error_median_seconds: float
    start_error_p95_seconds: float
    cuts_in_speech: int
    cuts_in_pauses: int
    audio_seconds: float
    wall_seconds: float
    processor_seconds: float
    rtfx: float
    idle_mebibytes: float
    peak_over_idle_mebibytes: float
    account: dict[str, float] | None
    uncovered_seconds: float


@dataclass(frozen=True, slots=True, eq=False)
class Measured:
    """A figure and the data it is computed from."""

    figure: Figure
    run: Run
    alignment: Alignment


class Comparison:
    """Compares a strategy with the reference and with the separately transcribed utterances."""

    def __init__(self, minutes: float, recording: LongRecording, alone: StrategyResult) -> None:
        self.minutes = minutes
        self.recording = recording
        self.alone = alone.words
        self.alone_alignment = aligned(recording.words, alone.words)

    def measured(self, strategy: str, ran: Run) -> Measured:
        """Evaluate one strategy."""
        reference, hypothesis = self.recording.words, ran.output.words
        alignment = aligned(reference, hypothesis)
        cuts = ran.cuts.in_speech
        near = _near(cuts, NEAR_CUT_SECONDS)
        everywhere = self._place(hypothesis, alignment, lambda _: True)
        near_cuts = self._place(hypothesis, alignment, near)
        apart = [
            abs(reference[index].start_seconds - hypothesis[partner].start_seconds)
            for index, partner in enumerate(alignment.partners)
            if partner is not None and alignment.fates[index] == "right"
        ]
        figure = Figure(
            minutes=self.minutes,
            strategy=strategy,
            everywhere=everywhere,
            near_cuts=near_cuts,
            kinds={
                kind: self._split(hypothesis, alignment, kind, near)
                for kind in get_args(SpeechKind)
            },
            against_alone=counted(self.alone, hypothesis, aligned(self.alone, hypothesis)),
            added_percent=_added(everywhere, len(reference)),
            added_near_cuts_percent=_added(near_cuts, len(reference)),
            start_error_median_seconds=harness.median(apart) if apart else 0.0,
            start_error_p95_seconds=harness.percentile(apart, 0.95) if apart else 0.0,
            cuts_in_speech=len(cuts),
            cuts_in_pauses=len(ran.cuts.in_pauses),
            audio_seconds=self.recording.seconds,
            wall_seconds=ran.wall_seconds,
            processor_seconds=ran.processor_seconds,
            rtfx=self.recording.seconds / ran.wall_seconds,
            idle_mebibytes=ran.idle_mebibytes,
            peak_over_idle_mebibytes=ran.peak_over_idle_mebibytes,
            account=ran.output.stats,
            uncovered_seconds=ran.output.uncovered_seconds,
        )
        return Measured(figure, ran, alignment)

    def _split(
        self,
        hypothesis: Sequence[HypothesisWord],
        alignment: Alignment,
        kind: SpeechKind,
        near: Callable[[float], bool],
    ) -> Kind:
        return Kind(
            self._place(hypothesis, alignment, lambda at: self._kind(at) == kind and near(at)),
            self._place(hypothesis, alignment, lambda at: self._kind(at) == kind and not near(at)),
        )

    def _kind(self, at: float) -> SpeechKind:
        if _inside(self.recording.packed, at):
            return "packed"
        return "crowded" if _inside(self.recording.crowded, at) else "with pauses"

    def _place(
        self,
        hypothesis: Sequence[HypothesisWord],
        alignment: Alignment,
        where: Callable[[float], bool],
    ) -> Place:
        reference = self.recording.words
        alone = self.alone_alignment
        fates = [
            (one == "right", other == "right")
            for word, one, other in zip(reference, alone.fates, alignment.fates, strict=True)
            if where(word.start_seconds)
        ]
        return Place(
            counts=counted(reference, hypothesis, alignment, where),
            errors_alone=counted(reference, self.alone, alone, where).errors,
            right_alone=sum(right for right, _ in fates),
            lost=fates.count((True, False)),
            won=fates.count((False, True)),
        )

    def differences(self, one: Measured) -> Iterator[dict[str, Any]]:
        """Words that are right separately only, and words that only this strategy adds."""
        reference, hypothesis = self.recording.words, one.run.output.words
        near = _near(one.run.cuts.in_speech, NEAR_CUT_SECONDS)
        also = {(word.text, round(word.start_seconds)) for word in self.alone}
        rows: list[tuple[float, str, str | None, str | None]] = []
        for index, word in enumerate(reference):
            fate, partner = one.alignment.fates[index], one.alignment.partners[index]
            if fate != "right" and self.alone_alignment.fates[index] == "right":
                instead = None if partner is None else hypothesis[partner].text
                rows.append((word.start_seconds, fate, word.text, instead))
        for index in one.alignment.inserted:
            word_, fate_ = (
                hypothesis[index],
                "doubled" if index in one.alignment.doubled else "added",
            )
            if (word_.text, round(word_.start_seconds)) not in also:
                rows.append((word_.start_seconds, fate_, None, word_.text))
        for at, what, expected, instead in sorted(rows, key=lambda item: item[0]):
            yield {
                "minutes": self.minutes, "strategy": one.figure.strategy, "at": round(at, 2),
                "what": what, "where": self._kind(at), "near_cut": near(at),
                "reference": expected, "hypothesis": instead,
            }  # fmt: skip


def _added(place: Place, words: int) -> float:
    return 100 * (place.counts.errors - place.errors_alone) / max(1, words)


def _near(cuts: Sequence[float], seconds: float) -> Callable[[float], bool]:
    """A predicate: whether a time is near one of the sorted cuts."""

    def near(at: float) -> bool:
        index = bisect_left(cuts, at - seconds)
        return index < len(cuts) and cuts[index] <= at + seconds

    return near


def _inside(spans: Sequence[Span], at: float) -> bool:
    return any(span.start_seconds <= at < span.end_seconds for span in spans)


def ran(request: RunRequest) -> Run:
    """Run in a fresh process, so that strategies do not affect each other."""
    print(f"... {request.strategy}", file=sys.stderr, flush=True)
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn) as processes:
        return processes.submit(run, request).result()


def measured(
    arguments: argparse.Namespace, minutes: float, folder: Path
) -> tuple[Comparison, list[Measured]]:
    """Run every strategy that supports the length of the recording."""
    voices = Voices(arguments.utterances)
    path = folder / f"{minutes:g}-minutes.wav"
    recording = spoken.made(voices, minutes, arguments.seed, path)
    settings = {
        "model": arguments.model,
        "precision": arguments.precision,
        "device": arguments.device,
    }
    alone = ran(RunRequest(ALONE, path, recording, settings))
    comparison = Comparison(minutes, recording, alone.output)
    results = [comparison.measured(ALONE, alone)]
    results += [
        comparison.measured(name, ran(RunRequest(name, path, recording, settings)))
        for name in arguments.strategies
        if recording.seconds <= STRATEGIES[name].longest_seconds
    ]
    return comparison, results


def show(figures: Sequence[Figure]) -> None:
    """Print three tables: word errors, word errors near cuts, and cost."""
    kinds = get_args(SpeechKind)
    harness.table(
        ("words", "WER %", "subst.", "deleted", "inserted", "doubled", "added %",
         *(f"{kind} %" for kind in kinds), "start median s", "p95 s"),
        [
            (one.strategy, 100 * one.everywhere.counts.errors / max(1, one.everywhere.counts.words),
             *_counts(one.everywhere.counts), f"{one.added_percent:+.2f}",
             *(_added_in(kind) for kind in one.kinds.values()),
             one.start_error_median_seconds, one.start_error_p95_seconds)
            for one in figures
        ],
    )  # fmt: skip
    print()
    harness.table(
        ("near cuts in speech", "cuts", "words", "errors", "alone", "doubled", "added % of all",
         *(f"lost %, {kind}" for kind in kinds), "cuts in pauses"),
        [
            (one.strategy, one.cuts_in_speech, one.near_cuts.counts.words,
             one.near_cuts.counts.errors, one.near_cuts.errors_alone,
             one.near_cuts.counts.doubled, f"{one.added_near_cuts_percent:+.2f}",
             *(f"{_lost(kind.near_cuts)} / {_lost(kind.elsewhere)}" for kind in one.kinds.values()),
             one.cuts_in_pauses)
            for one in figures
        ],
    )  # fmt: skip
    print()
    harness.table(
        ("cost", "RTFx", "wall s", "processor s", "idle MiB", "over idle MiB", "decoded again",
         "uncovered s"),
        [
            (one.strategy, one.rtfx, one.wall_seconds, one.processor_seconds, one.idle_mebibytes,
             one.peak_over_idle_mebibytes, (one.account or {}).get("decoded_again"),
             one.uncovered_seconds)
            for one in figures
        ],
    )  # fmt: skip


def _counts(counts: Counts) -> tuple[int, int, int, int]:
    return counts.substitutions, counts.deletions, counts.insertions, counts.doubled


def _added_in(kind: Kind) -> str:
    """Errors beyond those of the separate utterances, in percent of the words of these spans."""
    places = (kind.near_cuts, kind.elsewhere)
    words = sum(place.counts.words for place in places)
    added = sum(place.counts.errors - place.errors_alone for place in places)
    return f"{100 * added / words:+.1f}" if words else "-"


def _lost(place: Place) -> str:
    """In percent of the words that are right separately."""
    return f"{100 * place.lost / place.right_alone:.1f}" if place.right_alone else "-"


def main(command_line: Sequence[str] | None = None) -> None:
    """Print the tables of each length and write the results."""
    arguments = _arguments(command_line)
    for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[variable] = str(arguments.threads)
    figures: list[Figure] = []
    lines: list[dict[str, Any]] = []
    with TemporaryDirectory() as temporary:
        folder = arguments.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        for minutes in arguments.minutes:
            comparison, results = measured(arguments, minutes, folder)
            added = [one.figure for one in results]
            print(f"\n{minutes:g} minutes: {_described(comparison.recording)}\n")
            show(added)
            figures += added
            lines += [line for one in results for line in comparison.differences(one)]
    if arguments.list_errors:
        content = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        arguments.list_errors.write_text(content, encoding="utf-8")
    _write(arguments, figures)


def _described(recording: LongRecording) -> str:
    packed, crowded = (
        sum(span.seconds for span in spans) for spans in (recording.packed, recording.crowded)
    )
    return f"{len(recording.words)} words, {packed:.0f} s packed, {crowded:.0f} s crowded"


def _write(arguments: argparse.Namespace, figures: Sequence[Figure]) -> None:
    own = arguments.utterances == SAMPLES
    name = "samples" if own else arguments.utterances.parent.name
    model = Path(arguments.model).name.removesuffix(".nemo")
    arguments.model, arguments.keep, arguments.list_errors = model, None, None
    arguments.utterances = name
    harness.write(f"longform-{model}-{name}".lower(), arguments, {"name": model}, figures)


def _arguments(command_line: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    strategies = [name for name in STRATEGIES if name != ALONE]
    add("--minutes", type=float, action="append", help="of a recording, repeatable")
    add("--utterances", type=Path, default=SAMPLES, metavar="MANIFEST", help="with word times")
    add("--model", default="demo", help="a Hugging Face name, a path, or demo")
    add("--precision", default="auto")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto")
    add("--strategies", type=lambda value: value.split("; "), default=strategies,
        help="separated by '; ': " + "; ".join(strategies))  # fmt: skip
    add("--threads", type=int, default=len(os.sched_getaffinity(0)))
    add("--seed", type=int, default=5)
    add("--keep", type=Path, metavar="FOLDER", help="for the recordings")
    add("--list-errors", type=Path, metavar="FILE", help="for words that are right alone only")
    add("--results", type=Path, default=harness.RESULTS, help="folder of the JSON")
    arguments = harness.resolved(parser.parse_args(command_line))
    arguments.minutes = arguments.minutes or [20.0, 30.0, 180.0]
    return arguments


if __name__ == "__main__":
    main()
