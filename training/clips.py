"""Clips of speech with the time of every word, and their pool on disk."""

import itertools
import pickle
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.signal import resample_poly

from training.espeak import Setting, Speech, Synthesiser
from training.words import Lexicon

SAMPLE_RATE = 16_000
QUIET_DECIBELS = -42.0
"""A window this far below the clip's loudest one counts as silence."""
WINDOW_SAMPLES = 80
SHORTEST_WORD_SECONDS = 0.06
LONGEST_BREATH_WORDS = 8


@dataclass(frozen=True, slots=True, eq=False)
class Clip:
    """One or several words without a pause, trimmed to the speech."""

    samples: NDArray[np.int16]
    """At 16 kHz."""
    words: tuple[str, ...]
    starts: tuple[float, ...]
    """Seconds from the clip's first sample."""
    ends: tuple[float, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Session:
    """One voice at one setting: single words to concatenate, and sentences without pauses."""

    language: str
    words: tuple[Clip, ...]
    breaths: tuple[Clip, ...]


def loud_windows(samples: NDArray[np.int16]) -> NDArray[np.bool_]:
    """Return a mask of the 5 ms windows with speech."""
    count = len(samples) // WINDOW_SAMPLES
    windows = samples[: count * WINDOW_SAMPLES].reshape(count, WINDOW_SAMPLES).astype(np.float32)
    level = np.sqrt((windows**2).mean(axis=1))
    loudest = level.max(initial=1.0)
    return np.asarray(level > loudest * 10 ** (QUIET_DECIBELS / 20))


def trimmed(
    samples: NDArray[np.int16], words: tuple[str, ...], starts: tuple[float, ...]
) -> Clip | None:
    """Trim silence from the clip; return None if a word is silent."""
    loud = loud_windows(samples)
    seconds_per_window = WINDOW_SAMPLES / SAMPLE_RATE
    bounds = [round(start / seconds_per_window) for start in starts] + [len(loud)]
    spans = []
    for first, last in itertools.pairwise(bounds):
        inside = np.flatnonzero(loud[first:last])
        if len(inside) * seconds_per_window < SHORTEST_WORD_SECONDS:
            return None
        spans.append((first + inside[0], first + inside[-1] + 1))
    begin, end = spans[0][0], spans[-1][1]
    return Clip(
        samples[begin * WINDOW_SAMPLES : end * WINDOW_SAMPLES],
        words,
        tuple(float((first - begin) * seconds_per_window) for first, _ in spans),
        tuple(float((last - begin) * seconds_per_window) for _, last in spans),
    )


def at_16_khz(speech: Speech) -> NDArray[np.int16]:
    """Resample the output of espeak-ng."""
    shared = np.gcd(SAMPLE_RATE, speech.sample_rate)
    wave = resample_poly(
        speech.samples.astype(np.float32), SAMPLE_RATE // shared, speech.sample_rate // shared
    )
    return np.asarray(np.clip(np.round(wave), -32768, 32767), np.int16)


def spoken(
    synthesiser: Synthesiser, words: tuple[str, ...], mark: str, setting: Setting
) -> Clip | None:
    """Synthesise words without pauses; return None if espeak-ng does not report every start."""
    speech = synthesiser.speak(" ".join(words) + mark, setting)
    offsets = [sum(len(word) + 1 for word in words[:index]) for index in range(len(words))]
    started = dict(reversed(speech.word_starts))
    if any(offset not in started for offset in offsets):
        return None
    starts = tuple(started[offset] for offset in offsets)
    return trimmed(at_16_khz(speech), words, starts)


def record_session(
    synthesiser: Synthesiser,
    lexicon: Lexicon,
    setting: Setting,
    breaths: int,
    randomness: np.random.Generator,
) -> Session:
    """Synthesise every word of the language separately, and some random sentences."""
    singles = [spoken(synthesiser, (word,), ".", setting) for word in lexicon.words]
    sentences = []
    for _ in range(breaths):
        length = int(randomness.integers(1, LONGEST_BREATH_WORDS + 1))
        words = tuple(str(word) for word in randomness.choice(lexicon.words, length))
        mark = str(randomness.choice((".", ".", ".", ",", "?", "!")))
        sentences.append(spoken(synthesiser, words, mark, setting))
    return Session(
        lexicon.language,
        tuple(clip for clip in singles if clip),
        tuple(clip for clip in sentences if clip),
    )


def save(sessions: list[Session], path: Path) -> None:
    """Write a pool."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        pickle.dump(sessions, file, protocol=pickle.HIGHEST_PROTOCOL)


def load(path: Path) -> list[Session]:
    """Read a pool written by `save`."""
    with path.open("rb") as file:
        sessions: list[Session] = pickle.load(file)  # noqa: S301 (one's own file)
    return sessions


def seconds(sessions: list[Session]) -> float:
    """Return the seconds of speech in a pool."""
    return sum(len(clip.samples) for clip in every_clip(sessions)) / SAMPLE_RATE


def every_clip(sessions: list[Session]) -> Iterator[Clip]:
    """Yield all clips of a pool."""
    for session in sessions:
        yield from session.words
        yield from session.breaths
