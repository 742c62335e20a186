"""Whatever a recording is put into, its words and their times are those of the clean sample.

Each container with its codec is there once, with a sample rate, a number of channels and a level
chosen so that any two values of these three come together in one of the files: 25 in place of 774.
"""

import asyncio
import itertools
from base64 import b64encode
from collections import Counter
from collections.abc import Mapping
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any, TypeAlias

import pytest

from odd_recordings import ffmpeg
from parakeet_worker.answers import answer
from parakeet_worker.pipeline import Pipeline
from parakeet_worker.settings import Settings
from parakeet_worker.worker import open_pipeline
from speech import sample

Answers: TypeAlias = Mapping[str, dict[str, Any]]
Pair: TypeAlias = tuple[tuple[int, object], ...]

SPEECH = sample("en").path
TOLERANCE_SECONDS = 0.1
_CONCURRENCY = 8

KINDS = (
    "wav pcm_s16le",
    "wav pcm_mulaw",
    "w64 pcm_f32le",
    "aiff pcm_s24be",
    "caf pcm_s16be",
    "au pcm_alaw",
    "flac flac",
    "mp3 libmp3lame",
    "m4a aac",
    "mp4 alac",
    "mov pcm_s24le",
    "mka libopus",
    "mkv libvorbis",
    "webm libopus",
    "ogg libvorbis",
    "opus libopus",
    "ts aac",
    "ts mp2",
    "avi libmp3lame",
    "flv aac",
    "asf wmav2",
    "nut pcm_s16le",
    "wv wavpack",
    "tta tta",
    "ac3 ac3",
)
RATES = (8_000, 16_000, 44_100, 48_000)
CHANNELS = (1, 2, 6)
LEVELS_DB = (0, -20, -40)

# The encoders' own limits: the rates that each has, and how many channels at most.
_RATES: Mapping[str, tuple[int, ...]] = {
    "libopus": (8_000, 16_000, 48_000),
    "libmp3lame": RATES,
    "mp2": (16_000, 44_100, 48_000),
    "ac3": (44_100, 48_000),
}
_MOST_CHANNELS: Mapping[str, int] = {"libmp3lame": 2, "mp2": 2, "wmav2": 2}
_CONTAINER_RATES: Mapping[str, tuple[int, ...]] = {"flv": (44_100,)}


@dataclass(frozen=True, slots=True)
class Form:
    """One file."""

    kind: str
    rate: int
    channels: int
    level_db: int

    def __str__(self) -> str:
        kind = self.kind.replace(" ", "-")
        return f"{kind}-{self.rate}-{self.channels}-{-self.level_db}dB"

    @property
    def exists(self) -> bool:
        """Whether container and encoder know it."""
        container, codec = self.kind.split()
        rates = _CONTAINER_RATES.get(container, _RATES.get(codec, RATES))
        return self.rate in rates and self.channels <= _MOST_CHANNELS.get(codec, 8)

    @property
    def pairs(self) -> set[Pair]:
        """Any two of its rate, channels and level."""
        return set(itertools.combinations(enumerate(astuple(self)[1:]), 2))

    def make(self, folder: Path) -> Path:
        container, codec = self.kind.split()
        path = folder / f"{self}.{container}"
        copies = "|".join(f"c{channel}=c0" for channel in range(self.channels))
        layout = {1: "mono", 2: "stereo", 6: "5.1"}[self.channels]
        filters = f"aresample={self.rate},volume={self.level_db}dB,pan={layout}|{copies}"
        ffmpeg("-i", SPEECH, "-af", filters, "-ar", self.rate, "-c:a", codec, path)
        return path


def chosen() -> list[Form]:
    """One form of each kind: the one with most pairs that none before it has, then the rarest."""
    forms: list[Form] = []
    counts: Counter[Pair] = Counter()
    for kind in KINDS:
        every = (Form(kind, *rest) for rest in itertools.product(RATES, CHANNELS, LEVELS_DB))
        best = min(
            (form for form in every if form.exists),
            key=lambda form: (
                sum(min(counts[pair], 1) for pair in form.pairs),
                sum(counts[pair] for pair in form.pairs),
            ),
        )
        counts.update(best.pairs)
        forms.append(best)
    return forms


FORMS = chosen()


def test_any_two_values_come_together() -> None:
    columns = (RATES, CHANNELS, LEVELS_DB)
    every = {
        pair
        for values in itertools.product(*columns)
        for pair in itertools.combinations(enumerate(values), 2)
    }
    assert every - set[Pair]().union(*(form.pairs for form in FORMS)) == set()


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> Answers:
    """Of all forms and of the clean sample, by one engine."""
    folder = tmp_path_factory.mktemp("forms")
    settings = Settings(model="demo", scratch=tmp_path_factory.mktemp("scratch"))
    paths = {str(form): form.make(folder) for form in FORMS}
    with open_pipeline(settings) as pipeline:
        return asyncio.run(_answered(pipeline, {**paths, "clean": SPEECH}))


async def _answered(pipeline: Pipeline, paths: Mapping[str, Path]) -> Answers:
    places = asyncio.Semaphore(_CONCURRENCY)

    async def one(path: Path) -> Any:
        content = b64encode(path.read_bytes()).decode()
        async with places:
            return await answer(pipeline, {"audio_base64": content, "format": "verbose_json"})

    return dict(zip(paths, await asyncio.gather(*map(one, paths.values())), strict=True))


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_words_and_times_are_those_of_the_clean_sample(form: Form, answers: Answers) -> None:
    clean, document = answers["clean"], answers[str(form)]
    assert document.get("warnings", []) == []
    assert spoken(document) == spoken(clean)
    differences = [
        round(there["start"] - here["start"], 3)
        for here, there in zip(clean["words"], document["words"], strict=True)
    ]
    assert max(map(abs, differences)) <= TOLERANCE_SECONDS, differences
    assert document["duration"] == pytest.approx(clean["duration"], abs=TOLERANCE_SECONDS)


def spoken(document: Mapping[str, Any]) -> list[str]:
    return [word["word"] for word in document["words"]]
