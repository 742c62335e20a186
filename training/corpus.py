"""Renders utterances to shards of features: `python -m training.corpus --pools P --into S`."""

import argparse
import logging
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from parakeet_worker.engine.native.features import Features
from training import clips
from training.architecture import PREPROCESSOR
from training.augment import FULL, MILD, NoiseBeds, Strength, interrupted
from training.digits import LEFT_OUT_SPEAKER
from training.utterances import (
    Plan,
    Speaker,
    SpokenWord,
    Utterance,
    assemble,
    converse,
    nothing,
    rendered,
)

log = logging.getLogger(__name__)

UTTERANCES_PER_SHARD = 1000
MOST_WORDS = 15
MOST_WORDS_LONG = 60
SHORTEST_SAMPLES = 1600
CONVERSATION_HUMAN = 0.6
WIDEST_DECIBELS = 26.0
FLITE = "flite"
RECORDED_WEIGHT = 10
"""A recorded speaker has the weight of ten of Flite's 32 sessions."""


@dataclass(frozen=True, slots=True)
class Mixture:
    """Shares of the kinds of utterances; the rest is synthesised speech of one language."""

    human: float = 0.3
    nothing: float = 0.05
    two_languages: float = 0.04
    long: float = 0.1
    """Chunks of a recording are up to 30 s long."""
    english: float = 0.08
    """More of English than its share, through the full impairments: native accents, which none of
    the recorded humans that are trained on has."""
    mild: float = 0.35
    """Of the synthesised, with mild impairments instead of the studio's."""
    conversation: float = 0.35
    """Several voices at unequal levels for up to 30 s, often without a pause."""
    interrupted: float = 0.2
    """Of all, with lost packets, or between digital silence."""


@dataclass(frozen=True, slots=True, eq=False)
class Example:
    """Features and words of an utterance."""

    mels: NDArray[np.float16]
    """(frames of 10 ms, mels), normalised."""
    words: tuple[SpokenWord, ...]
    origin: str


class Studio:
    """Generates utterance number `index` of a seed, independent of earlier ones."""

    def __init__(
        self,
        synthesised: list[clips.Session],
        human: list[clips.Session],
        seed: int,
        strength: Strength = FULL,
        mixture: Mixture = Mixture(),  # noqa: B008 (frozen)
    ) -> None:
        self._by_language: dict[str, list[clips.Session]] = {}
        for session in synthesised:
            self._by_language.setdefault(session.language, []).append(session)
        self.languages = tuple(self._by_language)
        self._human = human
        self._seed = seed
        self._strength = strength
        self._mixture = mixture
        self._voices = [clip.samples for session in synthesised for clip in session.breaths]
        self._beds = NoiseBeds.make(self._voices, np.random.default_rng(seed))

    def utterance(self, index: int) -> Utterance:
        """Generate a random utterance of the mixture."""
        randomness = np.random.default_rng([self._seed, index])
        utterance = self._whole_utterance(randomness)
        if not utterance.words or randomness.random() >= self._mixture.interrupted:
            return utterance
        start, end = (
            int(seconds * clips.SAMPLE_RATE)
            for seconds in (utterance.words[0].start, utterance.words[-1].end)
        )
        return replace(utterance, samples=interrupted(utterance.samples, start, end, randomness))

    def _whole_utterance(self, randomness: np.random.Generator) -> Utterance:
        mixture = self._mixture
        if mixture.conversation and randomness.random() < mixture.conversation:
            return self.conversation(randomness)
        drawn = randomness.random()
        strength = MILD if randomness.random() < mixture.mild else self._strength
        if drawn < mixture.nothing:
            return self.silence(randomness, strength)
        if drawn < mixture.nothing + mixture.human and self._human:
            return self.human(randomness)
        rest = drawn - mixture.nothing - mixture.human
        if rest < mixture.english:
            return self.synthesised(("en",), MOST_WORDS, randomness)
        rest -= mixture.english
        languages = 2 if rest < mixture.two_languages else 1
        long = mixture.two_languages <= rest < mixture.two_languages + mixture.long
        return self.synthesised(
            tuple(str(one) for one in randomness.choice(self.languages, languages)),
            MOST_WORDS_LONG if long else MOST_WORDS,
            randomness,
            strength,
        )

    def silence(
        self, randomness: np.random.Generator, strength: Strength | None = None
    ) -> Utterance:
        """Generate an utterance without speech."""
        scrap = self._voices[int(randomness.integers(len(self._voices)))]
        return nothing(self._beds, scrap, strength or self._strength, randomness)

    def human(self, randomness: np.random.Generator, strength: Strength | None = None) -> Utterance:
        """Compose recorded digits of one speaker, or of several in turn."""
        speakers = 3 if randomness.random() < 0.2 else 1
        sessions = tuple(
            self._human[int(randomness.integers(len(self._human)))] for _ in range(speakers)
        )
        most_words = MOST_WORDS_LONG if randomness.random() < self._mixture.long else MOST_WORDS
        plan = Plan(
            words=int(randomness.integers(1, most_words + 1)),
            in_one_breath=False,
            speed=float(randomness.uniform(0.85, 1.18)),
            long_silence=bool(randomness.random() < 0.1),
        )
        assembly = assemble(sessions, plan, randomness)
        return rendered(assembly, "human", self._beds, strength or self._strength, randomness)

    def conversation(self, randomness: np.random.Generator) -> Utterance:
        """Compose one to four voices in turn, up to 26 dB apart, of digits or of one language."""
        human = bool(self._human) and randomness.random() < CONVERSATION_HUMAN
        language = str(randomness.choice(self.languages))
        sessions = self._human if human else self._by_language[language]
        widest = randomness.uniform(0, WIDEST_DECIBELS) if randomness.random() < 0.7 else 0.0
        speakers = [
            Speaker(
                sessions[int(randomness.integers(len(sessions)))],
                10 ** (-randomness.uniform(0, widest) / 20) if index else 1.0,
            )
            for index in range(int(randomness.integers(1, 5)))
        ]
        plan = Plan(
            words=int(randomness.integers(8, MOST_WORDS_LONG + 1)),
            in_one_breath=False,
            speed=float(randomness.uniform(0.85, 1.18)),
            long_silence=bool(randomness.random() < 0.05),
        )
        unbroken = 1.0 if randomness.random() < 0.6 else randomness.random()
        assembly = converse(speakers, plan, unbroken, randomness)
        # The quietest voice must exceed the noise.
        strength = replace(MILD, lowest_snr_decibels=min(38.0, 12.0 + widest))
        return rendered(assembly, "human" if human else language, self._beds, strength, randomness)

    def synthesised(
        self,
        languages: tuple[str, ...],
        most_words: int,
        randomness: np.random.Generator,
        strength: Strength | None = None,
    ) -> Utterance:
        """Compose synthesised speech of the languages, in one voice each or in several."""
        plan = Plan(
            words=int(randomness.integers(1, most_words + 1)),
            in_one_breath=bool(randomness.random() < 0.55),
            speed=float(randomness.uniform(0.9, 1.1)),
            long_silence=bool(randomness.random() < 0.1),
        )
        voices_per_language = 3 if randomness.random() < 0.1 else 1
        sessions = tuple(
            self._by_language[language][int(randomness.integers(len(self._by_language[language])))]
            for language in languages
            for _ in range(voices_per_language)
        )
        assembly = assemble(sessions, plan, randomness)
        return rendered(assembly, languages[0], self._beds, strength or self._strength, randomness)


def example(utterance: Utterance, features: Features) -> Example:
    """Compute normalised log-mel frames of the utterance."""
    samples = torch.from_numpy(utterance.samples).unsqueeze(0)
    with torch.inference_mode():
        mels, frames = features(samples, torch.tensor([samples.shape[1]]))
    kept = mels[0, :, : int(frames[0])].T.to(torch.float16).numpy()
    return Example(np.ascontiguousarray(kept), utterance.words, utterance.origin)


def write_shard(path: Path, studio: Studio, first_index: int, features: Features) -> float:
    """Write one shard; return its seconds of audio."""
    examples = [
        example(studio.utterance(first_index + offset), features)
        for offset in range(UTTERANCES_PER_SHARD)
    ]
    unfinished = path.with_suffix(".unfinished")
    torch.save([(one.mels, one.words, one.origin) for one in examples], unfinished)
    unfinished.rename(path)
    return sum(len(one.mels) for one in examples) / 100


def read_shard(path: Path) -> list[Example]:
    """Read the examples of a shard written by `write_shard`."""
    return [Example(*stored) for stored in torch.load(path, weights_only=False)]


def mixture_with(shares: list[str]) -> Mixture:
    """Return the mixture with other shares, each written as `name=share`."""
    pairs = (share.partition("=") for share in shares)
    return replace(Mixture(), **{name: float(value) for name, _, value in pairs})


def training_studio(pools: Path, seed: int, mixture: Mixture) -> Studio:
    """Training voices, and every recorded speaker except the held-out one."""
    synthesised = clips.load(pools / "training.pool")
    return Studio(synthesised, human_pools(pools), seed, mixture=mixture)


def held_out_studio(pools: Path, seed: int, strength: Strength = FULL) -> Studio:
    """Voices outside the training data, and the held-out speaker."""
    synthesised = clips.load(pools / "held_out.pool")
    human = clips.load(pools / f"{LEFT_OUT_SPEAKER}.pool")
    return Studio(
        synthesised, human, seed, strength, Mixture(long=0.0, conversation=0.0, interrupted=0.0)
    )


def human_pools(pools: Path) -> list[clips.Session]:
    """Every recorded speaker except the held-out one, and Flite's voices as additional speakers."""
    names = {path.stem for path in pools.glob("*.pool")}
    speakers = names - {"training", "held_out", FLITE, LEFT_OUT_SPEAKER}
    recorded = [
        session for name in sorted(speakers) for session in clips.load(pools / f"{name}.pool")
    ]
    flite = clips.load(pools / f"{FLITE}.pool") if FLITE in names else []
    return flite + recorded * RECORDED_WEIGHT


def main() -> None:
    """Write shards numbered from `--first` on."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pools", type=Path, required=True)
    parser.add_argument("--into", type=Path, required=True)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--shards", type=int, default=48)
    parser.add_argument("--seed", type=int, default=11)
    parser.add_argument("--held-out", action="store_true", help="use the evaluation voices")
    parser.add_argument(
        "--share", action="append", default=[], help="of the training mixture, as human=0.35"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    arguments.into.mkdir(parents=True, exist_ok=True)
    if arguments.held_out:
        studio = held_out_studio(arguments.pools, arguments.seed)
    else:
        mixture = mixture_with(arguments.share)
        studio = training_studio(arguments.pools, arguments.seed, mixture)
    features = Features.from_config(PREPROCESSOR)
    for number in range(arguments.first, arguments.first + arguments.shards):
        started = time.monotonic()
        path = arguments.into / f"{number:04}.shard"
        seconds = write_shard(path, studio, number * UTTERANCES_PER_SHARD, features)
        log.info("%s: %.2f h in %.0f s", path.name, seconds / 3600, time.monotonic() - started)


if __name__ == "__main__":
    main()
