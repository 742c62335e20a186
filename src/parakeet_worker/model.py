"""Python API: open a model once and transcribe with it many times."""

import asyncio
import logging
import os
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from tempfile import NamedTemporaryFile
from threading import Thread
from typing import Any, TypedDict, TypeVar

import numpy as np

from parakeet_worker.audio.decoding import SAMPLE_RATE
from parakeet_worker.bootstrap import variables
from parakeet_worker.engine.base import Samples
from parakeet_worker.engine.kernel_report import KernelReport
from parakeet_worker.errors import InvalidRequest
from parakeet_worker.options import OnDamage
from parakeet_worker.pipeline import Pipeline
from parakeet_worker.recognition.transcript import Transcript
from parakeet_worker.request import Clip, FileSource, Request, SamplesSource, Source
from parakeet_worker.settings import Settings
from parakeet_worker.wire.native import track_of
from parakeet_worker.worker import open_pipeline

log = logging.getLogger(__name__)

Value = TypeVar("Value")


class Model:
    """A loaded model. Thread-safe: calls from several threads share batches."""

    def __init__(self, pipeline: Pipeline, loop: asyncio.AbstractEventLoop) -> None:
        self._pipeline = pipeline
        self._loop = loop

    @property
    def engine(self) -> str:
        """Description of the engine and its device."""
        return str(self._pipeline.batcher.engine)

    @property
    def kernels(self) -> tuple[KernelReport, ...]:
        """Results of comparing GPU kernels with plain PyTorch at start."""
        return tuple(self._pipeline.batcher.engine.reports)

    def transcribe(
        self,
        audio: str | PathLike[str] | bytes | bytearray | Samples,
        *,
        sample_rate: int = SAMPLE_RATE,
        start_seconds: float = 0.0,
        end_seconds: float | None = None,
        track: int | str | None = None,
        on_damage: OnDamage = "warn",
    ) -> Transcript:
        """Transcribe a file, the bytes of a file, or mono float32 samples at `sample_rate` Hz.

        `track` selects one of several audio tracks by number, from 1, by language, or `all`.
        `on_damage="refuse"` makes missing or damaged audio an error instead of a warning.
        Raises `RequestError`, `TransientError` and `EngineError`.
        """
        options = _Options(
            clip=Clip(start_seconds, end_seconds),
            track=track_of(track, "track"),
            on_damage=on_damage,
        )
        if sample_rate <= 0:
            raise InvalidRequest("sample_rate", "must be greater than zero")
        if isinstance(audio, bytes | bytearray):
            disk = self._pipeline.scratch
            with disk.problems_translated(), NamedTemporaryFile(dir=disk.folder) as file:
                file.write(audio)
                file.flush()
                return self._transcribe(FileSource(Path(file.name)), options)
        if isinstance(audio, str | PathLike):
            return self._transcribe(FileSource(Path(audio)), options)
        if not isinstance(audio, np.ndarray):
            raise InvalidRequest("audio", "must be a path, bytes or an array of samples")
        return self._transcribe(SamplesSource(audio, sample_rate), options)

    def _transcribe(self, source: Source, options: "_Options") -> Transcript:
        return self._run(self._pipeline.transcribe(Request(source=source, **options)))

    def _run(self, work: Coroutine[Any, Any, Value]) -> Value:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()


class _Options(TypedDict):
    clip: Clip
    track: int | str | None
    on_damage: OnDamage


@contextmanager
def open_model(model: str | None = None, **settings: Any) -> Iterator[Model]:
    """Load `model` (a Hugging Face name, a path, or `demo`) for a `with` block.

    Other keywords are fields of `Settings`; environment variables are ignored. Raises
    `SetupError`.
    """
    for warning in variables.ensure_home(os.environ):
        log.warning("%s", warning)
    chosen = Settings.of(settings if model is None else {"model": model, **settings})
    loop = asyncio.new_event_loop()
    thread = Thread(target=loop.run_forever, name="pipeline", daemon=True)
    thread.start()
    try:
        with open_pipeline(chosen) as pipeline:
            yield Model(pipeline, loop)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
