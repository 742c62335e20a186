"""Conversations with known speakers, turns and words: recorded digits or synthesised voices.

A turn follows the previous one after a pause, or overlaps its end. Speakers differ in level.
Synthesised voices also have a room of their own and a crowd behind them (`training/augment.py`).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Protocol

import numpy as np

from bench.conversations import Voices
from bench.spoken import ReferenceWord
from parakeet_worker.audio.decoding import SAMPLE_RATE
from parakeet_worker.engine.base import Samples
from training import augment, clips, flite
from training.espeak import Setting, Synthesiser
from training.words import lexicons

_PAUSE_SECONDS = (0.1, 1.5)
_OVERLAP_SECONDS = (0.2, 1.5)
_NOISE_RMS = 2e-5
_JOINED_SECONDS = 0.3
"""A shorter pause between two words of one speaker does not end a turn of the reference."""
_STAY_SHARE = 0.15
_CROWD_VOICES = 12


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of conversation."""

    source: str
    """`human` or `synthesised`."""
    speakers: int
    minutes: float
    overlap_share: float
    """Of turns that begin before the previous one ends."""
    decibels_apart: float
    crowd_decibels: float | None = None
    """How far a crowd is below the speech."""
    room: bool = False


@dataclass(frozen=True, slots=True)
class SpokenWord:
    speaker: str
    word: ReferenceWord


@dataclass(frozen=True, slots=True, eq=False)
class Dialogue:
    """Audio with its reference."""

    kind: Kind
    seed: int
    samples: Samples
    words: tuple[SpokenWord, ...]
    """In the order in which they start."""

    @property
    def seconds(self) -> float:
        return len(self.samples) / SAMPLE_RATE

    def turns(self) -> Iterator[tuple[float, float, str]]:
        """Start, end and speaker of each turn."""
        for speaker in sorted({each.speaker for each in self.words}):
            own = [each.word for each in self.words if each.speaker == speaker]
            first = own[0]
            for before, after in pairwise(own):
                if after.start_seconds - before.end_seconds >= _JOINED_SECONDS:
                    yield first.start_seconds, before.end_seconds, speaker
                    first = after
            yield first.start_seconds, own[-1].end_seconds, speaker


class Source(Protocol):
    """Speakers with random utterances at one level."""

    speakers: tuple[str, ...]

    def utterance(
        self, speaker: str, chance: np.random.Generator
    ) -> tuple[Samples, list[ReferenceWord]]: ...


@cache
def _synthesiser() -> Synthesiser:
    """The only one of this process: a second one would receive all samples of the first."""
    return Synthesiser()


class Synthesised:
    """Voices of espeak-ng by variant, and of Flite; a fixed pitch and speed each."""

    def __init__(self, variants: Sequence[str], flite_voices: Sequence[str], seed: int) -> None:
        self._synthesiser = _synthesiser()
        self._words = lexicons()["en"].words
        chance = np.random.default_rng(seed)
        self._settings = {
            variant: Setting(
                voice=f"en-us+{variant}",
                words_per_minute=int(chance.integers(130, 200)),
                pitch=int(chance.integers(25, 80)),
                pitch_range=50,
                word_gap=0,
            )
            for variant in variants
        }
        self._recorded = {voice: self._flite(voice) for voice in flite_voices}
        self.speakers = (*self._settings, *self._recorded)

    def _flite(self, voice: str) -> list[clips.Clip]:
        made = (
            flite.spoken(voice, word, ".", 1.0, flite.VOICES[voice]) for word in self._words[:10]
        )
        return [clip for clip in made if clip]

    def utterance(
        self, speaker: str, chance: np.random.Generator
    ) -> tuple[Samples, list[ReferenceWord]]:
        """One to three breaths of up to six words."""
        parts: list[Samples] = []
        words: list[ReferenceWord] = []
        count = 0
        for _ in range(int(chance.integers(1, 4))):
            clip = self._clip(speaker, chance)
            offset = count / SAMPLE_RATE
            words += [
                ReferenceWord(text, start, end).moved(offset)
                for text, start, end in zip(clip.words, clip.starts, clip.ends, strict=True)
            ]
            pause = np.zeros(int(chance.uniform(0.05, 0.3) * SAMPLE_RATE), np.float32)
            parts += [clip.samples.astype(np.float32), pause]
            count += len(clip.samples) + len(pause)
        return augment.unit(np.concatenate(parts)) * np.float32(0.1), words

    def _clip(self, speaker: str, chance: np.random.Generator) -> clips.Clip:
        if speaker in self._recorded:
            own = self._recorded[speaker]
            return own[int(chance.integers(len(own)))]
        while True:
            words = tuple(str(each) for each in chance.choice(self._words, chance.integers(2, 7)))
            clip = clips.spoken(self._synthesiser, words, ".", self._settings[speaker])
            if clip:
                return clip

    def crowd(self, count: int, chance: np.random.Generator) -> Samples:
        """Many simultaneous voices, with an RMS of one."""
        uttered = [
            (self.utterance(self._any(chance), chance)[0] * 1e4).astype(np.int16)
            for _ in range(_CROWD_VOICES)
        ]
        return augment.babble(count, uttered, chance)

    def _any(self, chance: np.random.Generator) -> str:
        return self.speakers[int(chance.integers(len(self.speakers)))]


def recorded(folder: Path, takes: range, chosen: Sequence[str] = ()) -> Voices:
    """The recorded digits of some takes."""
    return Voices(folder, chosen, takes)


def made(kind: Kind, source: Source, seed: int, always: str | None = None) -> Dialogue:
    """A random conversation in which `always` takes part."""
    chance = np.random.default_rng(seed)
    others = [each for each in source.speakers if each != always]
    drawn = [others[int(index)] for index in chance.permutation(len(others))]
    speakers = ([always] if always else []) + drawn
    speakers = speakers[: kind.speakers]
    levels = 10 ** (-np.linspace(0, kind.decibels_apart, len(speakers)) / 20)
    order = chance.permutation(len(speakers))
    level = {name: float(levels[int(place)]) for name, place in zip(speakers, order, strict=True)}
    rooms = {name: augment.room(chance) for name in speakers} if kind.room else {}
    samples = np.zeros(round((kind.minutes * 60 + 30) * SAMPLE_RATE), np.float32)
    words: list[SpokenWord] = []
    clock, speaker = 0.5, speakers[0]
    for turn in range(100_000):
        if clock >= kind.minutes * 60:
            break
        uttered, relative = source.utterance(speaker, chance)
        first = round(clock * SAMPLE_RATE)
        if speaker in rooms:
            uttered = np.convolve(uttered, rooms[speaker])[: len(uttered)].astype(np.float32)
            uttered *= np.float32(0.1 / max(1e-6, float(np.sqrt(np.mean(uttered**2)))))
        samples[first : first + len(uttered)] += uttered * np.float32(level[speaker])
        words += [SpokenWord(speaker, word.moved(first / SAMPLE_RATE)) for word in relative]
        after = _next(speakers, speaker, turn, chance)
        end = words[-1].word.end_seconds
        if after != speaker and chance.random() < kind.overlap_share:
            longest = min(_OVERLAP_SECONDS[1], (end - clock) / 2)
            clock = end - float(chance.uniform(min(_OVERLAP_SECONDS[0], longest), longest))
        else:
            clock = end + float(chance.uniform(*_PAUSE_SECONDS))
        speaker = after
    last = max(each.word.end_seconds for each in words)
    samples = samples[: round((last + 0.5) * SAMPLE_RATE)]
    samples += _background(kind, source, len(samples), chance)
    samples *= np.float32(min(1.0, 0.99 / float(np.abs(samples).max())))
    ordered = sorted(words, key=lambda each: each.word.start_seconds)
    return Dialogue(kind, seed, samples, tuple(ordered))


def _next(speakers: Sequence[str], speaker: str, turn: int, chance: np.random.Generator) -> str:
    """Who speaks next: each speaker once, then a random one."""
    if turn + 1 < len(speakers):
        return speakers[turn + 1]
    if len(speakers) == 1 or chance.random() < _STAY_SHARE:
        return speaker
    others = [each for each in speakers if each != speaker]
    return others[int(chance.integers(len(others)))]


def _background(kind: Kind, source: Source, count: int, chance: np.random.Generator) -> Samples:
    if kind.crowd_decibels is None or not isinstance(source, Synthesised):
        return (chance.standard_normal(count) * _NOISE_RMS).astype(np.float32)
    return source.crowd(count, chance) * np.float32(0.1 * 10 ** (-kind.crowd_decibels / 20))
