"""Utterances with the time of every word, and one long recording made of them."""

import json
import wave
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import cycle, pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np

from bench import recording
from parakeet_worker.audio.decoding import SAMPLE_RATE
from parakeet_worker.engine.base import Samples
from parakeet_worker.recognition.chunks import Span

_SPEECH_RMS = 0.05
_NOISE_RMS = 1e-4
_TURN_SECONDS = 120.0
"""How long one language is spoken."""
_PAUSE_SECONDS = (0.1, 3.0)
_EDGE_SECONDS = 0.1
"""What an utterance keeps before its first word and after its last."""
_PACKED_EDGE_SECONDS = 0.06
"""What a word keeps at most on both sides where no pause is left: too little for a pause."""
_CROWDED_PAUSE_SECONDS = (0.1, 1.0)
_CROWD_VOICES = 5
_CROWD_DECIBELS = 12.0
_UNBROKEN_SECONDS = 62.0
_BETWEEN_UNBROKEN_SECONDS = (60.0, 180.0)
_FADE_SAMPLES = round(0.004 * SAMPLE_RATE)
_BACKGROUND_SECONDS = (15.0, 60.0)
_BACKGROUND_SHARE = 0.4
_BACKGROUND_DECIBELS = (12.0, 25.0)
"""How far below the speech."""

Kind = Literal["with pauses", "packed", "crowded"]


@dataclass(frozen=True, slots=True)
class ReferenceWord:
    """A word without case and punctuation, with its times."""

    text: str
    start_seconds: float
    end_seconds: float

    def moved(self, seconds: float) -> "ReferenceWord":
        return replace(
            self,
            start_seconds=self.start_seconds + seconds,
            end_seconds=self.end_seconds + seconds,
        )


@dataclass(frozen=True, slots=True, eq=False)
class Spoken:
    """Audio with every word in it."""

    samples: Samples
    words: tuple[ReferenceWord, ...]

    def part(self, first: int, after: int, edge_seconds: float) -> "Spoken":
        """Some of its words, with a little of what is around them, but no other word."""
        begin = max(
            self.words[first].start_seconds - edge_seconds,
            self.words[first - 1].end_seconds if first else 0.0,
        )
        end = self.words[after - 1].end_seconds + edge_seconds
        if after < len(self.words):
            end = min(end, self.words[after].start_seconds)
        begin = min(begin, self.words[first].start_seconds)
        samples = self.samples[round(begin * SAMPLE_RATE) : round(end * SAMPLE_RATE)].copy()
        ramp = np.linspace(0, 1, min(_FADE_SAMPLES, len(samples)), dtype=np.float32)
        samples[: len(ramp)] *= ramp
        samples[len(samples) - len(ramp) :] *= ramp[::-1]
        return Spoken(samples, tuple(word.moved(-begin) for word in self.words[first:after]))


@dataclass(frozen=True, slots=True)
class LongRecording:
    """The reference of a long recording, whose audio is a file."""

    words: tuple[ReferenceWord, ...]
    utterances: tuple[Span, ...]
    packed: tuple[Span, ...]
    """Where word follows word without a pause."""
    crowded: tuple[Span, ...]
    """Where a crowd talks on in the pauses, so that there are none to cut in."""
    seconds: float


def plain(word: str) -> str:
    """Without case and marks."""
    return "".join(letter for letter in word.casefold() if letter.isalnum())


class Voices:
    """The utterances of a manifest with word times (`bench/demo_set.py`, `samples/`)."""

    def __init__(self, manifest: Path) -> None:
        text = manifest.read_text(encoding="utf-8")
        listed = text.lstrip().startswith("[")
        rows = json.loads(text) if listed else [json.loads(line) for line in text.splitlines()]
        # A row of several languages, or of none, is not for a turn of one.
        self._rows = [row for row in rows if row["words"] and len(row["language"] or "") == 2]
        self._folder = manifest.parent

    def turn(self, chance: np.random.Generator) -> "list[int]":
        """The utterances of a random language; one with many of them comes more often."""
        language = self._rows[int(chance.integers(len(self._rows)))]["language"]
        return [index for index, row in enumerate(self._rows) if row["language"] == language]

    @cache  # noqa: B019 (one for each run)
    def utterance(self, index: int) -> Spoken:
        """With speech at one level."""
        row: dict[str, Any] = self._rows[index]
        samples = recording.decoded(
            self._folder / row["audio_filepath" if "audio_filepath" in row else "file"]
        )
        words = tuple(
            ReferenceWord(plain(word["word"]), word["start"], word["end"]) for word in row["words"]
        )
        spoken = Spoken(samples, words)
        voiced = np.concatenate([spoken.part(n, n + 1, 0.0).samples for n in range(len(words))])
        level = np.float32(_SPEECH_RMS / max(1e-6, float(np.sqrt(np.mean(np.square(voiced))))))
        return Spoken(samples * level, words)


def packed(spoken: Spoken) -> Spoken:
    """The same words with no pause between them."""
    words = spoken.words
    gaps = [after.start_seconds - word.end_seconds for word, after in pairwise(words)]
    wide = [n + 1 for n, gap in enumerate(gaps) if gap > 2 * _PACKED_EDGE_SECONDS]
    pieces = [
        spoken.part(first, after, _PACKED_EDGE_SECONDS)
        for first, after in pairwise((0, *wide, len(words)))
    ]
    begins = np.cumsum([0, *(len(piece.samples) for piece in pieces)]) / SAMPLE_RATE
    moved = (
        word.moved(float(begin))
        for piece, begin in zip(pieces, begins, strict=False)
        for word in piece.words
    )
    return Spoken(np.concatenate([piece.samples for piece in pieces]), tuple(moved))


@dataclass(frozen=True, slots=True, eq=False)
class _Placed:
    begin_seconds: float
    spoken: Spoken
    kind: Kind

    @property
    def span(self) -> Span:
        seconds = len(self.spoken.samples) / SAMPLE_RATE
        return Span(self.begin_seconds, self.begin_seconds + seconds)


def made(voices: Voices, minutes: float, seed: int, path: Path) -> LongRecording:
    """Write a recording of `minutes` as 16-bit WAV, and return its reference."""
    chance = np.random.default_rng(seed)
    placed = list(_placed(voices, minutes * 60, chance))
    samples = np.zeros(round((placed[-1].span.end_seconds + 1.0) * SAMPLE_RATE), np.float32)
    for one in placed:
        first = round(one.begin_seconds * SAMPLE_RATE)
        samples[first : first + len(one.spoken.samples)] += one.spoken.samples
    spans = {
        kind: tuple(_joined([one.span for one in placed if one.kind == kind]))
        for kind in ("packed", "crowded")
    }
    _add_background(samples, chance)
    for span in spans["crowded"]:
        first, after = (
            round(span.start_seconds * SAMPLE_RATE),
            round(span.end_seconds * SAMPLE_RATE),
        )
        samples[first:after] += _at(crowd(after - first, voices, chance), _CROWD_DECIBELS)
    _write(path, samples)
    return LongRecording(
        words=tuple(word.moved(one.begin_seconds) for one in placed for word in one.spoken.words),
        utterances=tuple(one.span for one in placed),
        packed=spans["packed"],
        crowded=spans["crowded"],
        seconds=len(samples) / SAMPLE_RATE,
    )


def _placed(voices: Voices, seconds: float, chance: np.random.Generator) -> Iterator[_Placed]:
    """Utterance after utterance, each when it begins."""
    clock, turn_ends = 1.0, 0.0
    unbroken_from = float(chance.uniform(10, 60))
    kinds: Iterator[Kind] = cycle(("packed", "crowded"))
    unbroken = next(kinds)
    turn: list[int] = []
    while clock < seconds:
        if clock >= turn_ends:
            turn, turn_ends = voices.turn(chance), clock + _TURN_SECONDS
        kind: Kind = unbroken if clock >= unbroken_from else "with pauses"
        spoken = voices.utterance(turn[int(chance.integers(len(turn)))])
        whole = spoken.part(0, len(spoken.words), _EDGE_SECONDS)
        spoken = packed(spoken) if kind == "packed" else whole
        level = np.float32(10 ** (chance.uniform(-3, 3) / 20))
        one = _Placed(clock, replace(spoken, samples=spoken.samples * level), kind)
        yield one
        clock = one.span.end_seconds
        over = clock >= unbroken_from + _UNBROKEN_SECONDS
        if over:
            unbroken_from = clock + float(chance.uniform(*_BETWEEN_UNBROKEN_SECONDS))
            unbroken = next(kinds)
        if kind == "with pauses" or over:
            clock += float(chance.uniform(*_PAUSE_SECONDS))
        elif kind == "crowded":
            clock += float(chance.uniform(*_CROWDED_PAUSE_SECONDS))
        clock = round(clock * SAMPLE_RATE) / SAMPLE_RATE


def _joined(spans: Sequence[Span]) -> Iterator[Span]:
    """Spans that follow each other within a second or so, as one."""
    current: Span | None = None
    for span in spans:
        if current and span.start_seconds - current.end_seconds <= _CROWDED_PAUSE_SECONDS[1] + 0.1:
            current = Span(current.start_seconds, span.end_seconds)
            continue
        if current:
            yield current
        current = span
    if current:
        yield current


def _add_background(samples: Samples, chance: np.random.Generator) -> None:
    """Add room noise everywhere, and noise or music under some spans."""
    first = 0
    while first < len(samples):
        count = min(round(chance.uniform(*_BACKGROUND_SECONDS) * SAMPLE_RATE), len(samples) - first)
        span_samples = samples[first : first + count]
        span_samples += chance.standard_normal(count).astype(np.float32) * np.float32(_NOISE_RMS)
        if chance.random() < _BACKGROUND_SHARE and count > SAMPLE_RATE:
            bed = music(count, chance) if chance.random() < 0.5 else noise(count, chance)
            span_samples += _at(bed, chance.uniform(*_BACKGROUND_DECIBELS))
        first += count


def _at(bed: Samples, decibels: float) -> Samples:
    """Scale to a level below the speech, with faded ends."""
    ramp = np.arange(len(bed), dtype=np.float32) / 8000
    fade = np.minimum(1, np.minimum(ramp, ramp[::-1]))
    level = _SPEECH_RMS * 10 ** (-decibels / 20) / np.sqrt(np.mean(np.square(bed)))
    return np.asarray(bed * fade * level, np.float32)


def crowd(count: int, voices: Voices, chance: np.random.Generator) -> Samples:
    """Many concurrent speakers."""
    bed = np.zeros(count, np.float32)
    for _ in range(_CROWD_VOICES):
        turn, first = voices.turn(chance), 0
        while first < count:
            talk = voices.utterance(turn[int(chance.integers(len(turn)))]).samples
            bed[first : first + len(talk)] += talk[: count - first]
            first += len(talk)
    return bed


def music(count: int, chance: np.random.Generator) -> Samples:
    """Chords that change every second, over a beat."""
    clock = np.arange(count) / SAMPLE_RATE
    root = 110 * 2 ** (chance.integers(0, 12, count // SAMPLE_RATE + 1)[clock.astype(int)] / 12)
    phase = np.cumsum(2 * np.pi * root / SAMPLE_RATE)
    chord = np.sin(phase) + np.sin(1.25 * phase) + np.sin(1.5 * phase)
    beat = chance.standard_normal(count) * np.exp(-30 * (clock % 0.5))
    return np.asarray(chord * (0.4 + 0.6 * np.exp(-6 * (clock % 0.5))) + beat, np.float32)


def noise(count: int, chance: np.random.Generator) -> Samples:
    """As much of it in every octave, as in traffic and rooms."""
    spectrum = np.fft.rfft(chance.standard_normal(count))
    spectrum /= np.sqrt(np.maximum(np.arange(len(spectrum)), len(spectrum) / 200))
    return np.fft.irfft(spectrum, count).astype(np.float32)


def _write(path: Path, samples: Samples) -> None:
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, SAMPLE_RATE, 0, "NONE", ""))
        for block in np.array_split(samples, len(samples) // (60 * SAMPLE_RATE) + 1):
            file.writeframes((np.clip(block, -1, 1) * 32767).astype("<i2").tobytes())


def read_spans(path: Path, spans: Sequence[Span]) -> Iterator[Samples]:
    """Read spans of a recording that `made` wrote, clipped to its length."""
    with wave.open(str(path), "rb") as file:
        for span in spans:
            first = min(max(0, round(span.start_seconds * SAMPLE_RATE)), file.getnframes())
            after = max(first, round(span.end_seconds * SAMPLE_RATE))
            file.setpos(first)
            written = np.frombuffer(file.readframes(after - first), "<i2")
            yield written.astype(np.float32) / np.float32(32768)
