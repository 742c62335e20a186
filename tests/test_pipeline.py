import asyncio
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from pathlib import Path

import numpy as np
import pytest

import recordings
from parakeet_worker.audio import find_ffmpeg
from parakeet_worker.batcher import Batcher
from parakeet_worker.engine.base import Hypothesis, Samples
from parakeet_worker.engine.scripted import ScriptedEngine
from parakeet_worker.errors import EngineLost, InvalidRequest
from parakeet_worker.pipeline import Pipeline
from parakeet_worker.request import Clip, FileSource, Request, SamplesSource
from parakeet_worker.settings import Settings
from parakeet_worker.stopwatch import Stopwatch
from parakeet_worker.worker import open_detectors, open_pipeline


@pytest.fixture
async def pipeline(tmp_path: Path) -> AsyncIterator[Pipeline]:
    settings = Settings(engine="scripted", scratch=tmp_path, segment_seconds=2.0)
    with open_pipeline(settings) as opened:
        yield opened
    assert list(tmp_path.iterdir()) == []


def melody(*pitches: int, seconds: float = 0.8, rest_seconds: float = 0.6) -> Samples:
    """Tones with rests between them."""
    rest = recordings.silence(rest_seconds)
    return np.concatenate([part for hz in pitches for part in (recordings.tone(hz, seconds), rest)])


def request_of(samples: Samples, **options: object) -> Request:
    return Request(source=SamplesSource(samples, 16_000), **options)  # type: ignore[arg-type]


async def test_a_long_recording_comes_in_stretches_that_join_to_the_whole(
    pipeline: Pipeline,
) -> None:
    asked = request_of(melody(400, 500, 600, 700, 800))
    async with aclosing(pipeline.stretches(asked, Stopwatch())) as stretches:
        parts = [stretch async for stretch in stretches]
    whole = await pipeline.transcribe(asked)
    assert len(parts) > 2
    assert whole.text == "400. 500. 600. 700. 800."
    assert " ".join(part.text for part in parts if part.text) == whole.text
    assert whole.seconds == pytest.approx(7.0, abs=0.01)
    starts = [word.start_seconds for word in whole.words]
    assert starts == pytest.approx([0.0, 1.4, 2.8, 4.2, 5.6], abs=0.1)


async def test_a_clip_has_the_times_of_the_whole_recording(pipeline: Pipeline) -> None:
    asked = request_of(melody(400, 500, 600), clip=Clip(1.2, 2.4))
    heard = await pipeline.transcribe(asked)
    assert heard.text == "500."
    assert heard.words[0].start_seconds == pytest.approx(1.4, abs=0.1)
    assert heard.seconds == pytest.approx(1.2)


async def test_a_file_of_the_caller_is_read_and_left_where_it_is(
    pipeline: Pipeline, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("callers") / "talk.wav"
    path.write_bytes(recordings.wav(recordings.tone(440, 1.0)))
    assert (await pipeline.transcribe(Request(source=FileSource(path)))).text == "440."
    assert path.exists()


async def test_debug_tells_the_seconds_of_every_stage(pipeline: Pipeline) -> None:
    from base64 import b64encode

    content = b64encode(recordings.wav(recordings.tone(440, 1.0))).decode()
    answer = await pipeline.answer({"audio_base64": content, "debug": True})
    assert isinstance(answer, dict)
    debug = answer["debug"]
    assert isinstance(debug, dict)
    assert debug["audio_seconds"] == pytest.approx(1.0)
    assert set(debug["seconds"]) == {"fetch", "decode", "hear", "total"}
    assert all(seconds >= 0 for seconds in debug["seconds"].values())


async def test_a_payload_that_cannot_be_read_raises_for_the_door_to_answer(
    pipeline: Pipeline,
) -> None:
    with pytest.raises(InvalidRequest):
        await pipeline.answer("text")


class Stubborn:
    """An engine that holds its first batch until it is told to go on, and counts the pieces."""

    def __init__(self) -> None:
        self.go_on = threading.Event()
        self.entered = threading.Event()
        self.pieces = 0

    def transcribe(self, batch: Sequence[Samples], _scripts: object = ()) -> list[Hypothesis]:
        self.entered.set()
        self.go_on.wait()
        self.pieces += len(batch)
        return ScriptedEngine().transcribe(batch)

    def close(self) -> None:
        """Nothing to give back."""


async def test_a_cancelled_request_takes_its_waiting_pieces_back_and_leaves_nothing(
    tmp_path: Path,
) -> None:
    engine = Stubborn()
    settings = Settings(engine="scripted", scratch=tmp_path, segment_seconds=2.0)
    with Batcher(engine, batch_seconds=2.0, queue_seconds=1000) as batcher:
        pipeline = Pipeline(settings, batcher, find_ffmpeg(), open_detectors(settings))
        running = asyncio.create_task(pipeline.transcribe(request_of(melody(*range(400, 900, 50)))))
        await asyncio.to_thread(engine.entered.wait)
        await asyncio.sleep(0.3)  # the other pieces are in the queue by now, or about to be
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert list(tmp_path.iterdir()) == []
        engine.go_on.set()
    assert engine.pieces == 1, "what waited never reached the engine"


class Broken:
    """An engine that fails in a way of its own."""

    def transcribe(self, batch: Sequence[Samples], _scripts: object = ()) -> list[Hypothesis]:
        raise RuntimeError(f"device-side assert with {len(batch)} pieces")

    def close(self) -> None:
        """Nothing to give back."""


async def test_a_failing_engine_fails_the_request_and_leaves_nothing(tmp_path: Path) -> None:
    settings = Settings(engine="scripted", scratch=tmp_path, segment_seconds=2.0)
    with Batcher(Broken(), batch_seconds=2.0, queue_seconds=1000) as batcher:
        pipeline = Pipeline(settings, batcher, find_ffmpeg(), open_detectors(settings))
        with pytest.raises(EngineLost, match="device-side assert"):
            await pipeline.transcribe(request_of(melody(400, 500, 600)))
        assert batcher.lost
    assert list(tmp_path.iterdir()) == []
