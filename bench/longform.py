"""How many words does cutting cost? One long recording with known words, cut in several ways.

It is built from the sentences of the project's own samples, one language for two minutes at a
time: pauses of 0.1 to 3 s, music or noise under a third of
it, and minutes in which word follows word without any pause. What an engine hears in each
utterance by itself is what no way of cutting can be blamed for.
"""

import asyncio
import json
import resource
import time
import wave
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import jiwer
import numpy as np

from bench import harness
from parakeet_worker import transcript
from parakeet_worker.audio import SAMPLE_RATE, Decoding, find_ffmpeg
from parakeet_worker.engine.base import Samples
from parakeet_worker.pipeline import MAX_FULL_ATTENTION_SECONDS, Pipeline
from parakeet_worker.request import FileSource, Request
from parakeet_worker.segments import Segment
from parakeet_worker.settings import Settings
from parakeet_worker.transcript import Transcript, Word
from parakeet_worker.worker import open_pipeline

SAMPLES = harness.ROOT / "samples"
LEVEL_RMS = 0.05
LANGUAGE_SECONDS = 120.0
WINDOW_SECONDS, OVERLAP_SECONDS = 30.0, 15.0


@dataclass(frozen=True, slots=True, eq=False)
class Spoken:
    """Audio with its words, each with where it begins."""

    samples: Samples
    words: tuple[str, ...]
    starts: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Figure:
    """One way of cutting, against what was said."""

    strategy: str
    words: int
    substitutions: int
    deletions: int
    insertions: int
    doubled: int
    """Of the insertions, those that say the word before or after once more."""
    added_percent: float
    """Errors beyond those in the utterances heard alone, of all words."""
    start_error_median_seconds: float
    start_error_p95_seconds: float
    audio_seconds: float
    wall_seconds: float
    grown_megabytes: float
    """How much higher than before the process's memory peaked so far."""
    account: dict[str, float] | None = None
    uncovered_seconds: float = 0.0


def plain(word: str) -> str:
    """Without case and marks."""
    return "".join(letter for letter in word.casefold() if letter.isalnum())


def decoded(path: Path) -> Samples:
    """A sample at 16 kHz mono, by the worker's own decoder."""

    async def collect() -> Samples:
        run = Decoding(path, ffmpeg=find_ffmpeg(), max_seconds=1e4, timeout_seconds=600)
        return np.concatenate([stretch async for stretch in run.samples()])

    return asyncio.run(collect())


def sentences() -> dict[str, list[Spoken]]:
    """Every sentence of the samples of one language, at one level, by language."""
    found: dict[str, list[Spoken]] = {}
    for entry in json.loads((SAMPLES / "manifest.json").read_text(encoding="utf-8")):
        if len(entry["language"] or "") != 2:
            continue
        samples = decoded(SAMPLES / entry["file"])
        samples = samples * np.float32(LEVEL_RMS / np.sqrt(np.mean(np.square(samples))))
        begun: list[dict[str, Any]] = []
        for word in entry["words"]:
            begun.append(word)
            if word["word"].endswith("."):
                found.setdefault(entry["language"], []).append(_sentence(samples, begun))
                begun = []
    return found


def _sentence(samples: Samples, words: list[dict[str, Any]]) -> Spoken:
    """From 0.15 s before its first word to 0.15 s after its last."""
    first = max(0.0, words[0]["start"] - 0.15)
    last = words[-1]["end"] + 0.15
    kept = samples[round(first * SAMPLE_RATE) : round(last * SAMPLE_RATE)]
    return Spoken(
        kept,
        tuple(plain(word["word"]) for word in words),
        tuple(word["start"] - first for word in words),
    )


def dense(spoken: Spoken, gap_seconds: float = 0.0) -> Spoken:
    """The same words without the pauses between its sentences."""
    pieces: list[Samples] = []
    starts: list[float] = []
    count = 0
    bounds = [*spoken.starts, len(spoken.samples) / SAMPLE_RATE]
    for start, following in pairwise(bounds):
        end = min(following, start + 0.45)
        piece = spoken.samples[round(start * SAMPLE_RATE) : round(end * SAMPLE_RATE)]
        starts.append(count / SAMPLE_RATE)
        pieces += [piece, np.zeros(round(gap_seconds * SAMPLE_RATE), np.float32)]
        count += len(pieces[-1]) + len(piece)
    return Spoken(np.concatenate(pieces), spoken.words, tuple(starts))


def music(count: int, chance: np.random.Generator) -> Samples:
    """Chords that change every second, over a beat."""
    clock = np.arange(count) / SAMPLE_RATE
    root = 110 * 2 ** (chance.integers(0, 12, int(clock[-1]) + 1)[clock.astype(int)] / 12)
    phase = np.cumsum(2 * np.pi * root / SAMPLE_RATE)
    chord = np.sin(phase) + np.sin(1.25 * phase) + np.sin(1.5 * phase)
    return (chord * (0.4 + 0.6 * np.exp(-6 * (clock % 0.5)))).astype(np.float32)


def recording(minutes: float, seed: int) -> tuple[list[Spoken], list[float]]:
    """Utterances and where each begins, for `minutes`; backgrounds are in the utterances."""
    chance = np.random.default_rng(seed)
    by_language = sentences()
    languages = sorted(by_language)
    choices: list[Spoken] = []
    parts: list[Spoken] = []
    begins: list[float] = []
    clock, dense_until, language_until = 1.0, -1.0, 0.0
    while clock < minutes * 60:
        if clock >= language_until:
            choices = by_language[languages[int(chance.integers(len(languages)))]]
            language_until = clock + LANGUAGE_SECONDS
        if clock > dense_until and chance.random() < 0.02:
            dense_until = clock + 60.0
        spoken = choices[int(chance.integers(len(choices)))]
        packed = clock <= dense_until
        spoken = dense(spoken) if packed else spoken
        parts.append(_with_background(spoken, chance))
        begins.append(clock)
        pause = 0.0 if packed else float(chance.uniform(0.1, 3.0))
        clock += len(spoken.samples) / SAMPLE_RATE + pause
    return parts, begins


def _with_background(spoken: Spoken, chance: np.random.Generator) -> Spoken:
    """A third has noise or music, 15 to 25 dB below the speech."""
    if chance.random() > 1 / 3:
        return spoken
    count = len(spoken.samples)
    made = music(count, chance) if chance.random() < 0.5 else chance.standard_normal(count)
    level = LEVEL_RMS * 10 ** (-chance.uniform(15, 25) / 20)
    background = np.asarray(made * (level / np.sqrt(np.mean(np.square(made)))), np.float32)
    return Spoken(spoken.samples + background, spoken.words, spoken.starts)


def joined(parts: Sequence[Spoken], begins: Sequence[float]) -> Spoken:
    """All of it as one, over the faint hiss of a room."""
    length = round((begins[-1] + 2.0) * SAMPLE_RATE) + len(parts[-1].samples)
    samples = np.random.default_rng(1).standard_normal(length).astype(np.float32) * 1e-4
    words: list[str] = []
    starts: list[float] = []
    for part, begin in zip(parts, begins, strict=True):
        first = round(begin * SAMPLE_RATE)
        samples[first : first + len(part.samples)] += part.samples
        words += part.words
        starts += [begin + start for start in part.starts]
    return Spoken(samples, tuple(words), tuple(starts))


def write_wav(path: Path, samples: Samples) -> None:
    """16 bit mono, block by block."""
    with wave.open(str(path), "wb") as opened:
        opened.setnchannels(1)
        opened.setsampwidth(2)
        opened.setframerate(SAMPLE_RATE)
        for block in np.array_split(samples, len(samples) // (60 * SAMPLE_RATE) + 1):
            opened.writeframes((np.clip(block, -1, 1) * 32767).astype("<i2").tobytes())


Heard = list[tuple[str, float]]
"""Words without case and marks, and where each begins."""


def listed(words: Sequence[Word]) -> Heard:
    return [(plain(word.text), word.start_seconds) for word in words if plain(word.text)]


def alone(pipeline: Pipeline, parts: Sequence[Spoken], begins: Sequence[float]) -> Heard:
    """Every utterance by itself."""
    answers = [pipeline.batcher.submit([part.samples])[0] for part in parts]
    heard: Heard = []
    for part, begin, answer in zip(parts, begins, answers, strict=True):
        segment = Segment(begin, part.samples)
        heard += listed(transcript.stitch(segment, answer.result()).words)
    return heard


def worker(pipeline: Pipeline, path: Path, **options: object) -> Transcript:
    """As a job would hear it."""
    request = Request(source=FileSource(path), **options)  # type: ignore[arg-type]
    return asyncio.run(pipeline.transcribe(request))


def fixed(pipeline: Pipeline, samples: Samples) -> Heard:
    """Cut every 30 s, wherever that falls."""
    size = round(WINDOW_SECONDS * SAMPLE_RATE)
    pieces = [
        Segment(first / SAMPLE_RATE, samples[first : first + size])
        for first in range(0, len(samples), size)
    ]
    return [word for heard in _all(pipeline, pieces) for word in listed(heard.words)]


def overlapping(pipeline: Pipeline, samples: Samples) -> Heard:
    """Windows of 30 s every 15 s; each gives the words of its middle half.

    Words are joined where two windows agree on one, nearest to the middle of what they share.
    """
    size = round(WINDOW_SECONDS * SAMPLE_RATE)
    step = round((WINDOW_SECONDS - OVERLAP_SECONDS) * SAMPLE_RATE)
    pieces = [
        Segment(first / SAMPLE_RATE, samples[first : first + size])
        for first in range(0, max(1, len(samples) - step), step)
    ]
    merged: Heard = []
    for piece, heard in zip(pieces, _all(pipeline, pieces), strict=True):
        words = listed(heard.words)
        middle = piece.start_seconds + OVERLAP_SECONDS / 2
        pairs = (
            [
                (left, right)
                for left, (text, start) in enumerate(merged)
                for right, (other, begins) in enumerate(words)
                if text == other and abs(start - begins) < 0.4
            ]
            if merged
            else []
        )
        if pairs:
            left, right = min(pairs, key=lambda pair: abs(merged[pair[0]][1] - middle))
            merged = merged[:left] + words[right:]
        else:
            merged = [word for word in merged if word[1] < middle] + [
                word for word in words if word[1] >= middle or not merged
            ]
    return merged


def _all(pipeline: Pipeline, pieces: Sequence[Segment]) -> list[Transcript]:
    answers = [pipeline.batcher.submit([piece.samples])[0] for piece in pieces]
    return [
        transcript.stitch(piece, answer.result())
        for piece, answer in zip(pieces, answers, strict=True)
    ]


def figure(
    strategy: str, said: Spoken, heard: Heard, alone_errors: int, wall_seconds: float,
    before_megabytes: float, found: Transcript | None = None,
) -> Figure:  # fmt: skip
    """Align the words and count."""
    words = [text for text, _ in heard]
    substitutions = deletions = insertions = doubled = 0
    apart: list[float] = []
    for chunk in jiwer.process_words(" ".join(said.words), " ".join(words)).alignments[0]:
        told = chunk.ref_end_idx - chunk.ref_start_idx
        first, after = chunk.hyp_start_idx, chunk.hyp_end_idx
        if chunk.type == "equal":
            apart += [
                abs(said.starts[chunk.ref_start_idx + n] - heard[first + n][1]) for n in range(told)
            ]
        elif chunk.type == "substitute":
            substitutions += told
        elif chunk.type == "delete":
            deletions += told
        else:
            insertions += after - first
            beside = {*words[max(0, first - 1) : first], *words[after : after + 1]}
            doubled += sum(word in beside for word in words[first:after])
    errors = substitutions + deletions + insertions
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return Figure(
        strategy, len(said.words), substitutions, deletions, insertions, doubled,
        100 * (errors - alone_errors) / len(said.words),
        float(np.median(apart)), float(np.percentile(apart, 95)),
        len(said.samples) / SAMPLE_RATE, wall_seconds, peak - before_megabytes,
        asdict(found.account) if found else None,
        sum(span.seconds for span in found.uncovered) if found else 0.0,
    )  # fmt: skip


def measured(pipeline: Pipeline, minutes: float, seed: int, folder: Path) -> list[Figure]:
    """Every strategy on one recording of so many minutes."""
    parts, begins = recording(minutes, seed)
    said = joined(parts, begins)
    path = folder / "long.wav"
    write_wav(path, said.samples)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    figures: list[Figure] = []

    def add(strategy: str, run: Callable[[], Heard | Transcript], errors: int) -> Figure:
        started = time.monotonic()
        found = run()
        heard = listed(found.words) if isinstance(found, Transcript) else found
        transcript_ = found if isinstance(found, Transcript) else None
        seconds = time.monotonic() - started
        figures.append(figure(strategy, said, heard, errors, seconds, before, transcript_))
        return figures[-1]

    ours = "pauses, bridges, coverage (the worker)"
    add(ours, lambda: worker(pipeline, path), 0)
    told = add("each utterance alone", lambda: alone(pipeline, parts, begins), 0)
    errors = told.substitutions + told.deletions + told.insertions
    figures.clear()
    add(ours, lambda: worker(pipeline, path), errors)
    add("each utterance alone", lambda: alone(pipeline, parts, begins), errors)
    add("the worker, vad off", lambda: worker(pipeline, path, vad="off"), errors)
    add("every 30 s, no overlap", lambda: fixed(pipeline, said.samples), errors)
    add("30 s, 15 s overlap, merged", lambda: overlapping(pipeline, said.samples), errors)
    if len(said.samples) / SAMPLE_RATE <= MAX_FULL_ATTENTION_SECONDS:
        add("one pass", lambda: worker(pipeline, path, attention="full"), errors)
    return figures


def main() -> None:
    """Print a table for each length and write the figures."""
    parser = harness.options(__doc__ or "", model="demo")
    parser.add_argument("--model")
    parser.add_argument("--minutes", type=float, action="append")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--seed", type=int, default=5)
    arguments = harness.resolved(parser.parse_args())
    arguments.minutes = arguments.minutes or [20.0, 30.0, 180.0]
    settings = Settings.of({"model": arguments.model, "precision": arguments.precision})
    found: list[Figure] = []
    with open_pipeline(settings) as pipeline, TemporaryDirectory() as folder:
        for minutes in arguments.minutes:
            figures = measured(pipeline, minutes, arguments.seed, Path(folder))
            print(f"\n{minutes:g} minutes, {figures[0].words} words")
            show(figures)
            found += figures
    harness.write("longform", arguments, {"model": arguments.model}, found)


def show(figures: Sequence[Figure]) -> None:
    """As a table."""
    heads = (
        "strategy", "subst.", "deleted", "inserted", "doubled", "added %",
        "start median s", "p95 s", "wall s", "memory +MB", "seams", "again",
    )  # fmt: skip
    rows = []
    for one in figures:
        account = one.account or {}
        rows.append((
            one.strategy, one.substitutions, one.deletions, one.insertions, one.doubled,
            one.added_percent, one.start_error_median_seconds, one.start_error_p95_seconds,
            one.wall_seconds, one.grown_megabytes, account.get("seams"),
            account.get("decoded_again"),
        ))  # fmt: skip
    harness.table(heads, rows)


if __name__ == "__main__":
    main()
