"""Known speakers: how similar references are to the speakers of conversations of recorded digits.

References of 2 to 10 s and conversations of two voices are made of different random takes. A trial
compares one reference with one speaker that diarization found. For each voice, the threshold is
chosen on the trials without it (with the least sum of the rates of false accepts and false
rejects), and tried on those with it.
The recordings (Free Spoken Digit Dataset, CC BY-SA 4.0) are not part of the project.
"""

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np

from bench import harness
from bench.conversations import Voices
from parakeet_worker.audio.decoding import SAMPLE_RATE
from parakeet_worker.engine.base import Samples
from parakeet_worker.options import SpeakerCount
from parakeet_worker.speakers.diarization import FRAME_SECONDS, Activity, Diarization
from parakeet_worker.speakers.known import SAME_PERSON_SIMILARITY
from parakeet_worker.speakers.networks import Networks

_REFERENCE_SECONDS = (2.0, 4.0, 10.0)
_PAUSE_SECONDS = (0.1, 0.6)
_PURE_SHARE = 0.9


@dataclass(frozen=True, slots=True)
class Trial:
    """A reference and a speaker of a conversation."""

    referenced: str
    speaking: str
    reference_seconds: float
    similarity: float

    @property
    def same(self) -> bool:
        return self.referenced == self.speaking

    def concerns(self, voice: str) -> bool:
        return voice in (self.referenced, self.speaking)


@dataclass(frozen=True, slots=True)
class Figure:
    """Trials with a held-out voice, at the threshold of the others."""

    held_out: str
    threshold: float
    same: int
    false_rejects: int
    different: int
    false_accepts: int
    least_similar_same: float
    most_similar_different: float


def spoken(voices: Voices, speaker: str, seconds: float, chance: np.random.Generator) -> Samples:
    """Digits of one voice with pauses."""
    parts: list[Samples] = []
    while sum(map(len, parts)) < seconds * SAMPLE_RATE:
        pause = round(chance.uniform(*_PAUSE_SECONDS) * SAMPLE_RATE)
        parts += [voices.utterance(speaker, chance)[0], np.zeros(pause, np.float32)]
    return np.concatenate(parts)[: round(seconds * SAMPLE_RATE)]


def diarized(networks: Networks, samples: Samples) -> Activity:
    """Which speakers are active in each frame."""
    diarization = Diarization(networks)
    diarization.feed(samples)
    return diarization.finish(SpeakerCount())


def speakers_of(
    networks: Networks, voices: Voices, pair: tuple[str, str], seconds: float, seed: int
) -> Iterator[tuple[str, np.ndarray]]:
    """The voice and centroid of each speaker found in a conversation, if it is one voice."""
    chance = np.random.default_rng(seed)
    turns = []
    while sum(len(part) for _, part in turns) < seconds * SAMPLE_RATE:
        speaker = pair[int(chance.integers(2))]
        turns.append((speaker, spoken(voices, speaker, float(chance.uniform(1.5, 6.0)), chance)))
    activity = diarized(networks, np.concatenate([part for _, part in turns]))
    frames = np.repeat(
        [pair.index(speaker) for speaker, _ in turns], [len(part) for _, part in turns]
    )[:: round(FRAME_SECONDS * SAMPLE_RATE)]
    count = min(len(frames), len(activity.active))
    for index in range(activity.speakers):
        truth = frames[:count][activity.active[:count, index]]
        share = float(np.mean(truth == round(float(truth.mean())))) if len(truth) else 0.0
        if share >= _PURE_SHARE:
            yield pair[round(float(truth.mean()))], activity.centroids[index]


def trials(networks: Networks, voices: Voices, arguments: argparse.Namespace) -> list[Trial]:
    """All references against all speakers found."""
    chance = np.random.default_rng(arguments.seed)
    references = []
    for speaker in voices.speakers:
        for seconds in _REFERENCE_SECONDS:
            for _ in range(arguments.references):
                activity = diarized(networks, spoken(voices, speaker, seconds, chance))
                main = int(activity.active.sum(axis=0).argmax())
                references.append((speaker, seconds, activity.centroids[main]))
    pure = [
        each
        for pair in combinations(voices.speakers, 2)
        for seed in range(arguments.conversations)
        for each in speakers_of(networks, voices, pair, arguments.seconds, seed)
    ]
    return [
        Trial(referenced, speaking, seconds, float(reference @ centroid))
        for referenced, seconds, reference in references
        for speaking, centroid in pure
    ]


def figure(name: str, threshold: float, tried: Sequence[Trial]) -> Figure:
    same = [each.similarity for each in tried if each.same]
    different = [each.similarity for each in tried if not each.same]
    return Figure(
        held_out=name,
        threshold=round(threshold, 3),
        same=len(same),
        false_rejects=sum(each < threshold for each in same),
        different=len(different),
        false_accepts=sum(each >= threshold for each in different),
        least_similar_same=round(min(same), 3),
        most_similar_different=round(max(different), 3),
    )


def best_threshold(tried: Sequence[Trial]) -> float:
    """With the least sum of both error rates; the middle, if several are as good."""
    similar = np.array([each.similarity for each in tried])
    same = np.array([each.same for each in tried])
    ordered = np.unique(similar)
    between = (ordered[1:] + ordered[:-1]) / 2
    costs = [
        np.mean(similar[same] < threshold) + np.mean(similar[~same] >= threshold)
        for threshold in between
    ]
    best = between[np.isclose(costs, min(costs))]
    return float((best[0] + best[-1]) / 2)


def figures(tried: Sequence[Trial], speakers: Sequence[str]) -> Iterator[Figure]:
    """One figure per held-out voice, then all trials at the threshold in use."""
    for voice in speakers:
        chosen = best_threshold([each for each in tried if not each.concerns(voice)])
        yield figure(voice, chosen, [each for each in tried if each.concerns(voice)])
    for seconds in _REFERENCE_SECONDS:
        those = [each for each in tried if each.reference_seconds == seconds]
        yield figure(f"none, references of {seconds:g} s", SAME_PERSON_SIMILARITY, those)


def main(command_line: Sequence[str] | None = None) -> None:
    """Print a table and write the figures."""
    arguments = _arguments(command_line)
    voices = Voices(arguments.digits, [])
    networks = Networks()
    try:
        tried = trials(networks, voices, arguments)
    finally:
        networks.close()
    rows = list(figures(tried, voices.speakers))
    harness.table(
        ("held out", "threshold", "same", "rejected", "different", "accepted",
         "least similar same", "most similar different"),
        [
            (row.held_out, row.threshold, row.same, row.false_rejects, row.different,
             row.false_accepts, row.least_similar_same, row.most_similar_different)
            for row in rows
        ],
    )  # fmt: skip
    print(f"chosen on all voices: {best_threshold(tried):.3f}")
    arguments.digits = arguments.digits.name
    harness.write("known_speakers", arguments, {"name": "CAM++"}, rows)


def _arguments(command_line: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--digits", type=Path, required=True, metavar="FOLDER", help="{digit}_{speaker}_{take}.wav")
    add("--references", type=int, default=5, help="of each voice and length")
    add("--conversations", type=int, default=2, help="of each pair of voices")
    add("--seconds", type=float, default=40.0, help="of each conversation")
    add("--seed", type=int, default=11)
    add("--device", choices=("cpu",), default="cpu")
    add("--results", type=Path, default=harness.RESULTS, help="folder of the JSON")
    return harness.resolved(parser.parse_args(command_line))


if __name__ == "__main__":
    main()
