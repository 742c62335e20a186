"""Utterances: sentences of one voice with pauses, concatenated or continuous, and their times."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from training.augment import NoiseBeds, Strength, Wave, at_speed, filtered, impaired, levelled
from training.clips import SAMPLE_RATE, Clip, Session
from training.words import capitalised

LONGEST_WORD_GAP_SECONDS = 0.25
SENTENCE_GAP_SECONDS = (0.45, 1.1)
EDGE_SECONDS = (0.08, 0.8)
LONG_SILENCE_SECONDS = (1.0, 6.0)
LONGEST_SENTENCE_WORDS = 8


@dataclass(frozen=True, slots=True)
class SpokenWord:
    """A word with its times."""

    word: str
    start: float
    """Seconds."""
    end: float
    opens_sentence: bool
    closes_sentence: bool

    @property
    def written(self) -> str:
        """The word with its capital and full stop."""
        shown = capitalised(self.word) if self.opens_sentence else self.word
        return shown + "." if self.closes_sentence else shown


@dataclass(frozen=True, slots=True, eq=False)
class Utterance:
    """Audio with its words."""

    samples: Wave
    """At 16 kHz."""
    words: tuple[SpokenWord, ...]
    origin: str
    """The language, `human` or `nothing`."""

    @property
    def text(self) -> str:
        """The reference text."""
        return " ".join(word.written for word in self.words)


@dataclass(frozen=True, slots=True)
class Plan:
    """The structure of an utterance."""

    words: int
    in_one_breath: bool
    """Share of whole sentences, as opposed to words concatenated with gaps."""
    speed: float
    long_silence: bool


@dataclass(frozen=True, slots=True)
class Speaker:
    """A voice of a conversation."""

    session: Session
    gain: float


class Assembly:
    """Appends clips and pauses, and tracks time and words."""

    def __init__(self, speed: float) -> None:
        self._speed = speed
        self._pieces: list[Wave] = []
        self._count = 0
        self._words: list[tuple[str, float, float]] = []
        self._sentence_ends: set[int] = set()

    def pause(self, seconds: float) -> None:
        """Append silence."""
        self._append(np.zeros(int(seconds * SAMPLE_RATE), np.float32))

    def speak(self, clip: Clip, gain: float = 1.0) -> None:
        """Append speech at the assembly's speed."""
        now = self._count / SAMPLE_RATE
        for word, start, end in zip(clip.words, clip.starts, clip.ends, strict=True):
            self._words.append((word, now + start / self._speed, now + end / self._speed))
        samples = clip.samples.astype(np.float32) * np.float32(gain / 32768)
        self._append(at_speed(samples, self._speed))

    def end_sentence(self) -> None:
        """End a sentence after the last word."""
        self._sentence_ends.add(len(self._words) - 1)

    def wave(self) -> Wave:
        """Return the audio so far."""
        return np.concatenate(self._pieces)

    def words(self) -> tuple[SpokenWord, ...]:
        """Return the words with their positions in sentences."""
        return tuple(
            SpokenWord(
                word, start, end, index == 0 or index - 1 in self._sentence_ends,
                index in self._sentence_ends,
            )
            for index, (word, start, end) in enumerate(self._words)
        )  # fmt: skip

    def _append(self, piece: Wave) -> None:
        self._pieces.append(piece)
        self._count += len(piece)


def edge_seconds(plan: Plan, randomness: np.random.Generator) -> float:
    """Draw the silence before or after the speech."""
    long = plan.long_silence and randomness.random() < 0.5
    return float(randomness.uniform(*(LONG_SILENCE_SECONDS if long else EDGE_SECONDS)))


def append_sentence(
    assembly: Assembly, session: Session, longest: int, plan: Plan, randomness: np.random.Generator
) -> int:
    """Append a sentence of at most `longest` words; return their number."""
    fitting = [clip for clip in session.breaths if len(clip.words) <= longest]
    if plan.in_one_breath and fitting:
        clip = fitting[int(randomness.integers(len(fitting)))]
        assembly.speak(clip)
        return len(clip.words)
    count = int(randomness.integers(1, min(longest, LONGEST_SENTENCE_WORDS) + 1))
    widest_gap = randomness.uniform(0, LONGEST_WORD_GAP_SECONDS)
    for index in range(count):
        if index:
            assembly.pause(randomness.uniform(0, widest_gap))
        assembly.speak(session.words[int(randomness.integers(len(session.words)))])
    return count


def assemble(
    sessions: tuple[Session, ...], plan: Plan, randomness: np.random.Generator
) -> Assembly:
    """Append sentences up to the planned number of words, each of one of the sessions."""
    assembly = Assembly(plan.speed)
    assembly.pause(edge_seconds(plan, randomness))
    count_so_far = 0
    while count_so_far < plan.words:
        if count_so_far:
            long = plan.long_silence and randomness.random() < 0.3
            pauses = LONG_SILENCE_SECONDS if long else SENTENCE_GAP_SECONDS
            assembly.pause(randomness.uniform(*pauses))
        session = sessions[int(randomness.integers(len(sessions)))]
        count_so_far += append_sentence(
            assembly, session, plan.words - count_so_far, plan, randomness
        )
        assembly.end_sentence()
    assembly.pause(edge_seconds(plan, randomness))
    return assembly


def converse(
    speakers: Sequence[Speaker], plan: Plan, unbroken: float, randomness: np.random.Generator
) -> Assembly:
    """Append turns of up to eight words up to the planned number.

    A share `unbroken` of the turns follows the one before as its next word would, without a full
    stop; the others after a pause.
    """
    assembly = Assembly(plan.speed)
    assembly.pause(edge_seconds(plan, randomness))
    widest_gap = randomness.uniform(0, LONGEST_WORD_GAP_SECONDS)
    count_so_far = 0
    while count_so_far < plan.words:
        if count_so_far and randomness.random() < unbroken:
            assembly.pause(randomness.uniform(0, widest_gap))
        elif count_so_far:
            assembly.end_sentence()
            assembly.pause(randomness.uniform(*SENTENCE_GAP_SECONDS))
        speaker = speakers[int(randomness.integers(len(speakers)))]
        count = int(randomness.integers(1, LONGEST_SENTENCE_WORDS + 1))
        for index in range(min(count, plan.words - count_so_far)):
            if index:
                assembly.pause(randomness.uniform(0, widest_gap))
            words = speaker.session.words
            assembly.speak(words[int(randomness.integers(len(words)))], speaker.gain)
            count_so_far += 1
    assembly.end_sentence()
    assembly.pause(edge_seconds(plan, randomness))
    return assembly


def rendered(
    assembly: Assembly,
    origin: str,
    beds: NoiseBeds,
    strength: Strength,
    randomness: np.random.Generator,
) -> Utterance:
    """Apply a room, a line and noise to the assembly."""
    wave = assembly.wave()
    speech = wave[np.abs(wave) > 0]
    return Utterance(impaired(wave, speech, beds, strength, randomness), assembly.words(), origin)


def nothing(
    beds: NoiseBeds, scrap: NDArray[np.int16], strength: Strength, randomness: np.random.Generator
) -> Utterance:
    """Generate an utterance without words: digital silence, noise, clicks, or 0.1 s of audio."""
    kind = int(randomness.integers(5))
    seconds = randomness.uniform(0.1, 0.16) if kind >= 3 else randomness.uniform(0.2, 8.0)
    count = int(seconds * SAMPLE_RATE)
    if kind == 0:
        wave = np.zeros(count, np.float32)
    elif kind in (1, 4):
        wave = quiet_noise(count, beds, randomness)
    elif kind == 2:
        wave = clicks(count, randomness) + quiet_noise(count, beds, randomness) * np.float32(0.2)
    else:
        first = int(randomness.integers(max(1, len(scrap) - count)))
        piece = scrap[first : first + count].astype(np.float32) / np.float32(32768)
        wave = np.asarray(np.resize(piece, count), np.float32)
    if kind and randomness.random() < 0.5:
        wave = filtered_level(wave, strength, randomness)
    return Utterance(wave.astype(np.float32), (), "nothing")


def quiet_noise(count: int, beds: NoiseBeds, randomness: np.random.Generator) -> Wave:
    """Generate noise at -80 to -15 dBFS, sometimes with a varying level."""
    noise = beds.cut(count, 0.0, randomness)
    if randomness.random() < 0.3:
        hertz = randomness.uniform(0.2, 3)
        noise = noise * (1 + 0.8 * np.sin(2 * np.pi * hertz * np.arange(count) / SAMPLE_RATE))
    return np.asarray(noise * 10 ** (randomness.uniform(-80, -15) / 20), np.float32)


def clicks(count: int, randomness: np.random.Generator) -> Wave:
    """Generate a few short knocks."""
    wave = np.zeros(count, np.float32)
    for _ in range(int(randomness.integers(1, 6))):
        length = int(randomness.integers(20, 800))
        start = int(randomness.integers(max(1, count - length)))
        knock = randomness.standard_normal(length) * np.exp(-5 * np.arange(length) / length)
        wave[start : start + length] += (knock * randomness.uniform(0.02, 0.3))[: count - start]
    return wave


def filtered_level(wave: Wave, strength: Strength, randomness: np.random.Generator) -> Wave:
    """Generate noise over a random line at a random level."""
    return levelled(filtered(wave, strength, randomness), strength, randomness)
