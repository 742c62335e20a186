"""Word errors caused by several speakers in one recording: conversations of recorded digits.

Two to four speakers, at one level or up to 26 dB apart, with and without pauses. Each conversation
is transcribed as one file, and each of its utterances separately at the same level. A file with all
speakers at one level, and shorter chunks, show the causes of the difference.
The recordings (Free Spoken Digit Dataset, CC BY-SA 4.0) are not part of the project.
"""

import argparse
import json
import os
import wave
from collections.abc import Container, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from bench import harness
from bench.alignment import Alignment, aligned
from bench.spoken import ReferenceWord, plain
from parakeet_worker.audio.decoding import SAMPLE_RATE
from parakeet_worker.engine.base import Samples
from parakeet_worker.model import Model, open_model
from parakeet_worker.recognition.transcript import Transcript

_DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_SPEECH_RMS = 0.1
_NOISE_RMS = 2e-5
_LONGEST_UTTERANCE_WORDS = 8
_BETWEEN_WORDS_SECONDS = (0.02, 0.25)
_PAUSE_SECONDS = {True: (0.1, 3.0), False: (0.02, 0.12)}
_ALONE_EDGE_SECONDS = 0.3


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of conversation."""

    voices: int
    decibels_apart: float
    pauses: bool

    def __str__(self) -> str:
        pauses = "pauses" if self.pauses else "no pauses"
        return f"{self.voices} voices, {self.decibels_apart:g} dB, {pauses}"


KINDS = tuple(
    Kind(voices, decibels, pauses)
    for voices in (2, 4)
    for decibels in (0.0, 12.0, 20.0, 26.0)
    for pauses in (True, False)
)


@dataclass(frozen=True, slots=True, eq=False)
class Utterance:
    """Some digits by one voice."""

    begin_seconds: float
    level: float
    samples: Samples
    """At one level for all voices."""
    words: tuple[ReferenceWord, ...]
    """On the conversation's clock."""


@dataclass(frozen=True, slots=True, eq=False)
class Conversation:
    utterances: tuple[Utterance, ...]
    seconds: float

    @property
    def words(self) -> tuple[ReferenceWord, ...]:
        return tuple(word for utterance in self.utterances for word in utterance.words)

    def samples(self, *, levelled: bool = False) -> Samples:
        """The mixed conversation with faint room noise."""
        mixed = _noise(round(self.seconds * SAMPLE_RATE))
        for one in self.utterances:
            first = round(one.begin_seconds * SAMPLE_RATE)
            level = np.float32(1.0 if levelled else one.level)
            mixed[first : first + len(one.samples)] += one.samples * level
        return mixed


def _noise(count: int) -> Samples:
    noise = np.random.default_rng(count).standard_normal(count)
    return (noise * _NOISE_RMS).astype(np.float32)


class Voices:
    """Recorded digits as `{digit}_{speaker}_{take}.wav` in one folder."""

    def __init__(
        self, folder: Path, chosen: Sequence[str], takes: Container[int] | None = None
    ) -> None:
        self._clips: dict[str, list[tuple[str, Samples]]] = {}
        for path in sorted(folder.glob("*_*_*.wav")):
            digit, speaker, take = path.stem.split("_")
            if takes is not None and int(take) not in takes:
                continue
            if not chosen or speaker in chosen:
                clips = self._clips.setdefault(speaker, [])
                clips.append((_DIGITS[int(digit)], _read(path)))
        self.speakers = tuple(self._clips)

    def utterance(
        self, speaker: str, chance: np.random.Generator
    ) -> tuple[Samples, list[ReferenceWord]]:
        """A random utterance at one level, and its words relative to its start."""
        clips = self._clips[speaker]
        parts: list[Samples] = []
        words: list[ReferenceWord] = []
        clock = 0
        for index in range(int(chance.integers(1, _LONGEST_UTTERANCE_WORDS + 1))):
            if index:
                gap = round(chance.uniform(*_BETWEEN_WORDS_SECONDS) * SAMPLE_RATE)
                parts.append(np.zeros(gap, np.float32))
                clock += gap
            text, samples = clips[int(chance.integers(len(clips)))]
            end = clock + len(samples)
            words.append(ReferenceWord(text, clock / SAMPLE_RATE, end / SAMPLE_RATE))
            parts.append(samples / np.sqrt(np.mean(np.square(samples)) + np.float32(1e-12)))
            clock = end
        return np.concatenate(parts) * np.float32(_SPEECH_RMS), words


def _read(path: Path) -> Samples:
    """Read a short 16-bit mono WAV and resample it to 16 kHz by its spectrum."""
    with wave.open(str(path), "rb") as file:
        rate, written = file.getframerate(), np.frombuffer(file.readframes(-1), "<i2")
    count = round(len(written) * SAMPLE_RATE / rate)
    resampled = np.fft.irfft(np.fft.rfft(written / 32768), count) * (count / len(written))
    return resampled.astype(np.float32)


def made(kind: Kind, minutes: float, voices: Voices, seed: int) -> Conversation:
    """A random conversation of at least `minutes`."""
    chance = np.random.default_rng(seed)
    drawn = chance.permutation(len(voices.speakers))[: kind.voices]
    speakers = [voices.speakers[int(index)] for index in drawn]
    steps = np.linspace(0, kind.decibels_apart, max(2, len(speakers)))
    levels = dict(zip(speakers, 10 ** (-steps / 20), strict=False))
    clock, utterances = 0.5, []
    while clock < minutes * 60:
        speaker = speakers[int(chance.integers(len(speakers)))]
        samples, words = voices.utterance(speaker, chance)
        moved = tuple(word.moved(clock) for word in words)
        utterances.append(Utterance(clock, float(levels[speaker]), samples, moved))
        clock += len(samples) / SAMPLE_RATE + chance.uniform(*_PAUSE_SECONDS[kind.pauses])
        clock = round(clock * SAMPLE_RATE) / SAMPLE_RATE
    return Conversation(tuple(utterances), clock + 0.5)


@dataclass(frozen=True, slots=True)
class HypothesisWord:
    text: str
    start_seconds: float
    end_seconds: float


@dataclass(frozen=True, slots=True)
class Figure:
    """One way of transcribing conversations of one kind."""

    kind: str
    way: str
    words: int
    errors: int
    lost: int
    added_points: float
    """Points of WER beyond the separate utterances."""
    silent_seconds: float
    """Longest speech without a word or an `uncovered` report."""
    decoded_again: int
    uncovered_seconds: float


@dataclass(frozen=True, slots=True, eq=False)
class Transcription:
    words: tuple[HypothesisWord, ...]
    reported: tuple[tuple[float, float], ...]
    decoded_again: int


def _with_offset(transcript: Transcript, offset_seconds: float = 0.0) -> Transcription:
    words = (
        HypothesisWord(
            plain(word.text), word.start_seconds + offset_seconds, word.end_seconds + offset_seconds
        )
        for word in transcript.words
    )
    reported = (
        (span.start_seconds + offset_seconds, span.end_seconds + offset_seconds)
        for span in transcript.uncovered
    )
    return Transcription(tuple(words), tuple(reported), transcript.stats.decoded_again)


def in_one_file(
    model: Model, conversation: Conversation, *, levelled: bool = False
) -> Transcription:
    """The whole conversation in one request."""
    return _with_offset(model.transcribe(conversation.samples(levelled=levelled)))


def alone(model: Model, conversation: Conversation) -> Transcription:
    """Transcribe every utterance in its own request, at its level in the conversation."""
    edge = np.zeros(round(_ALONE_EDGE_SECONDS * SAMPLE_RATE), np.float32)

    def one(utterance: Utterance) -> Transcription:
        samples = np.concatenate((edge, utterance.samples * np.float32(utterance.level), edge))
        transcript = model.transcribe(samples + _noise(len(samples)))
        return _with_offset(transcript, utterance.begin_seconds - _ALONE_EDGE_SECONDS)

    with ThreadPoolExecutor(8) as threads:
        results = list(threads.map(one, conversation.utterances))
    return Transcription(
        tuple(word for each in results for word in each.words),
        tuple(span for each in results for span in each.reported),
        sum(each.decoded_again for each in results),
    )


def longest_silent_seconds(reference: Sequence[ReferenceWord], hypothesis: Transcription) -> float:
    """Longest speech, in seconds of reference words, without a word or an `uncovered` report."""
    covers = sorted(
        [(word.start_seconds, word.end_seconds) for word in hypothesis.words]
        + list(hypothesis.reported)
    )
    most, begin = 0.0, 0.0
    for start, end in [*covers, (float("inf"), float("inf"))]:
        spoken = (
            min(word.end_seconds, start) - max(word.start_seconds, begin)
            for word in reference
            if word.start_seconds < start and word.end_seconds > begin
        )
        most = max(most, sum(seconds for seconds in spoken if seconds > 0))
        begin = max(begin, end)
    return most


WAYS = ("alone", "file", "one level", "pieces of 8 s", "one level, 8 s")


def hypothesis_of(
    way: str, model: Model, short: Model, conversation: Conversation
) -> Transcription:
    if way == "alone":
        return alone(model, conversation)
    used = short if way.endswith("8 s") else model
    return in_one_file(used, conversation, levelled=way.startswith("one level"))


def measured(arguments: argparse.Namespace) -> Iterator[tuple[Figure, list[dict[str, Any]]]]:
    voices = Voices(arguments.digits, arguments.speakers)
    opened = {
        "model": arguments.model,
        "precision": arguments.precision,
        "device": arguments.device,
    }
    with open_model(**opened) as model, open_model(**opened, segment_seconds=8.0) as short:
        for number, kind in enumerate(KINDS):
            if kind.voices > len(voices.speakers) or str(kind).find(arguments.only) < 0:
                continue
            conversation = made(kind, arguments.minutes, voices, arguments.seed + number)
            alone_errors: int | None = None
            for way in arguments.ways:
                hypothesis = hypothesis_of(way, model, short, conversation)
                figure, lost = _figure(kind, way, conversation, hypothesis)
                alone_errors = figure.errors if alone_errors is None else alone_errors
                added = 100 * (figure.errors - alone_errors) / figure.words
                yield replace(figure, added_points=added), lost


def _figure(
    kind: Kind, way: str, conversation: Conversation, hypothesis: Transcription
) -> tuple[Figure, list[dict[str, Any]]]:
    reference = conversation.words
    alignment = aligned(reference, hypothesis.words)
    figure = Figure(
        kind=str(kind),
        way=way,
        words=len(reference),
        errors=alignment.errors,
        lost=alignment.fates.count("lost"),
        added_points=0.0,
        silent_seconds=longest_silent_seconds(reference, hypothesis),
        decoded_again=hypothesis.decoded_again,
        uncovered_seconds=sum(end - start for start, end in hypothesis.reported),
    )
    return figure, list(_errors(figure, conversation, hypothesis, alignment))


def _errors(
    figure: Figure, conversation: Conversation, hypothesis: Transcription, alignment: Alignment
) -> Iterator[dict[str, Any]]:
    levels = [one.level for one in conversation.utterances for _ in one.words]
    for index, word in enumerate(conversation.words):
        partner = alignment.partners[index]
        if alignment.fates[index] != "right":
            yield {
                "kind": figure.kind, "way": figure.way, "at": round(word.start_seconds, 2),
                "reference": word.text, "level": round(20 * float(np.log10(levels[index])), 1),
                "hypothesis": None if partner is None else hypothesis.words[partner].text,
            }  # fmt: skip
    for index in alignment.inserted:
        one = hypothesis.words[index]
        yield {
            "kind": figure.kind, "way": figure.way, "at": round(one.start_seconds, 2),
            "reference": None, "hypothesis": one.text,
        }  # fmt: skip


def show(figures: Sequence[Figure]) -> None:
    harness.table(
        ("conversation", "way", "words", "errors", "WER %", "added points", "lost",
         "silent s", "decoded again", "reported s"),
        [
            (one.kind, one.way, one.words, one.errors, 100 * one.errors / one.words,
             f"{one.added_points:+.1f}", one.lost, one.silent_seconds, one.decoded_again,
             one.uncovered_seconds)
            for one in figures
        ],
    )  # fmt: skip


def summed(figures: Sequence[Figure], ways: Sequence[str]) -> Iterator[Figure]:
    """Totals over all kinds, per way."""
    alone_errors = sum(one.errors for one in figures if one.way == ways[0])
    for way in ways:
        those = [one for one in figures if one.way == way]
        words, errors = sum(one.words for one in those), sum(one.errors for one in those)
        yield Figure(
            kind="all",
            way=way,
            words=words,
            errors=errors,
            lost=sum(one.lost for one in those),
            added_points=100 * (errors - alone_errors) / words,
            silent_seconds=max(one.silent_seconds for one in those),
            decoded_again=sum(one.decoded_again for one in those),
            uncovered_seconds=sum(one.uncovered_seconds for one in those),
        )


def main(command_line: Sequence[str] | None = None) -> None:
    """Print a table for each kind and all, and write the figures."""
    arguments = _arguments(command_line)
    for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[variable] = str(arguments.threads)
    figures: list[Figure] = []
    lines: list[dict[str, Any]] = []
    for figure, errors in measured(arguments):
        figures.append(figure)
        lines += errors
    figures += summed(figures, arguments.ways)
    show(figures)
    if arguments.list_errors:
        content = "".join(json.dumps(line) + "\n" for line in lines)
        arguments.list_errors.write_text(content, encoding="utf-8")
    model = Path(arguments.model).name.removesuffix(".nemo")
    arguments.model, arguments.list_errors, arguments.digits = model, None, arguments.digits.name
    harness.write(f"conversations-{model}".lower(), arguments, {"name": model}, figures)


def _arguments(command_line: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--digits", type=Path, required=True, metavar="FOLDER", help="{digit}_{speaker}_{take}.wav")
    add("--speakers", type=lambda value: value.split(","), default=[], help="comma separated")
    add("--minutes", type=float, default=4.0, help="of each conversation")
    add("--only", default="", help="kinds with this in their name")
    add("--ways", type=lambda value: value.split("; "), default=list(WAYS),
        help="separated by '; ', the first is the baseline: " + "; ".join(WAYS))  # fmt: skip
    add("--model", default="demo", help="a Hugging Face name, a path, or demo")
    add("--precision", default="auto")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto")
    add("--threads", type=int, default=len(os.sched_getaffinity(0)))
    add("--seed", type=int, default=11)
    add("--list-errors", type=Path, metavar="FILE", help="every word lost, wrong or added")
    add("--results", type=Path, default=harness.RESULTS, help="folder of the JSON")
    return harness.resolved(parser.parse_args(command_line))


if __name__ == "__main__":
    main()
