"""Python API: open a model once and transcribe with it many times."""

import asyncio
import logging
import os
from collections.abc import Coroutine, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from os import PathLike
from pathlib import Path
from tempfile import NamedTemporaryFile
from threading import Thread
from typing import Any, TypeVar, Unpack

import numpy as np

from parakeet_worker.audio.decoding import SAMPLE_RATE
from parakeet_worker.bootstrap import variables
from parakeet_worker.engine.base import Samples
from parakeet_worker.engine.kernel_report import KernelReport
from parakeet_worker.errors import InvalidRequest
from parakeet_worker.formats import render
from parakeet_worker.options import (
    Attention,
    Channels,
    CueLimitKeywords,
    CueLimits,
    Format,
    OnDamage,
    Vad,
)
from parakeet_worker.pipeline import Pipeline
from parakeet_worker.recognition import transcript
from parakeet_worker.request import FileSource, Request, SamplesSource
from parakeet_worker.settings import Settings
from parakeet_worker.settings_keywords import SettingsKeywords
from parakeet_worker.wire.known_speakers import Entries, Voices, entries
from parakeet_worker.wire.native import check_options, request_options
from parakeet_worker.worker import open_pipeline

log = logging.getLogger(__name__)

Value = TypeVar("Value")


@dataclass(frozen=True, slots=True)
class Transcript(transcript.Transcript):
    """The words of a recording, with times."""

    def to(
        self,
        format: Format,  # noqa: A002  # as elsewhere
        *,
        timestamp: bool = False,
        **limits: Unpack[CueLimitKeywords],
    ) -> str:
        """The content of a file in `format`; `timestamp` adds times to `json`.

        `limits` are those of the cues of `srt` and `vtt`; see docs/calling.md. Raises
        `InvalidRequest`.
        """
        values: dict[str, Any] = {name: each for name, each in limits.items() if each is not None}
        check_options({"format": format, **values})
        return render.render(self, format, timestamp=timestamp, limits=CueLimits(**values))


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
        audio_format: str | None = None,
        language: str | None = None,
        channels: Channels = "mix",
        track: int | str | None = None,
        vad: Vad = "auto",
        attention: Attention = "pieces",
        on_damage: OnDamage = "warn",
        speakers: bool | Mapping[str, int] | None = None,
        known_speakers: Voices | Entries = (),
    ) -> Transcript:
        """Transcribe a file, the bytes of a file, or mono float32 samples at `sample_rate` Hz.

        `start_seconds` and `end_seconds` select a part of the recording. The other options are
        those of a request; see docs/calling.md.
        Raises `RequestError`, `TransientError` and `EngineError`.
        """
        options: dict[str, object] = {
            "clip": {"start": start_seconds, "end": end_seconds},
            "audio_format": audio_format,
            "language": language,
            "channels": channels,
            "track": track,
            "vad": vad,
            "attention": attention,
            "on_damage": on_damage,
            "speakers": dict(speakers) if isinstance(speakers, Mapping) else speakers,
            "known_speakers": entries(known_speakers) or None,
        }
        request_for = request_options(options)
        if sample_rate <= 0:
            raise InvalidRequest("sample_rate", "must be greater than zero")
        if isinstance(audio, bytes | bytearray):
            disk = self._pipeline.scratch
            with disk.problems_translated(), NamedTemporaryFile(dir=disk.folder) as file:
                file.write(audio)
                file.flush()
                return self._transcribe(request_for(FileSource(Path(file.name))))
        if isinstance(audio, str | PathLike):
            return self._transcribe(request_for(FileSource(Path(audio))))
        if not isinstance(audio, np.ndarray):
            raise InvalidRequest("audio", "must be a path, bytes or an array of samples")
        if audio_format is not None:
            raise InvalidRequest("audio_format", "is for files; samples have a 'sample_rate'")
        return self._transcribe(request_for(SamplesSource(audio, sample_rate)))

    def _transcribe(self, request: Request) -> Transcript:
        whole = self._run(self._pipeline.transcribe(request))
        return Transcript(*(getattr(whole, field.name) for field in fields(whole)))

    def _run(self, work: Coroutine[Any, Any, Value]) -> Value:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()


@contextmanager
def open_model(model: str | None = None, **settings: Unpack[SettingsKeywords]) -> Iterator[Model]:
    """Load `model` (a Hugging Face name, a path, or `demo`) for a `with` block.

    Other keywords are fields of `Settings`; environment variables are ignored. Raises
    `SetupError`.
    """
    for warning in variables.ensure_home(os.environ):
        log.warning("%s", warning)
    keywords: Mapping[str, object] = settings
    chosen = Settings.of(keywords if model is None else {"model": model, **keywords})
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
