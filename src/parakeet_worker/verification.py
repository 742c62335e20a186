"""An operator's first command: are these the weights that were meant, and do they hear?"""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from parakeet_worker import weights
from parakeet_worker.model import open_model
from parakeet_worker.settings import Settings
from parakeet_worker.weights import FileCheck

CLIP = Path(str(files("parakeet_worker") / "checkpoints" / "clip.ogg"))
"""A sentence of clear English, which comes with the package."""


@dataclass(frozen=True, slots=True)
class Hearing:
    """What an engine made of the clip that comes with the package."""

    engine: str
    ready_seconds: float
    """From nothing to warm: imports, weights, first inference."""
    clip_seconds: float
    hear_seconds: float
    said: str
    heard: str


def check_weights(settings: Settings) -> Iterator[FileCheck]:
    """The files of the model that the settings name; raises `WeightsMissing`."""
    kinds: tuple[weights.Kind, ...] = ("nemo",) if settings.engine == "nemo" else weights.ANY_KIND
    found = weights.find(settings.model, kinds, revision=settings.model_revision)
    return weights.check_files(found)


def hear_clip(settings: Settings) -> Hearing:
    """Open the model as a worker does and give it the clip; raises `SetupError`s."""
    started = time.monotonic()
    with open_model(**settings.model_dump()) as model:
        ready = time.monotonic()
        heard = model.transcribe(CLIP)
        return Hearing(
            engine=model.engine,
            ready_seconds=ready - started,
            clip_seconds=heard.seconds,
            hear_seconds=time.monotonic() - ready,
            said=CLIP.with_suffix(".txt").read_text(encoding="utf-8").strip(),
            heard=heard.text,
        )
