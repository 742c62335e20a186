import pickle
import threading
from concurrent.futures import CancelledError, Future
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

import recordings
from parakeet_worker.audio.decoding import SAMPLE_RATE, Decoding, find_ffmpeg
from parakeet_worker.engine.base import Samples
from parakeet_worker.errors import AudioTooLong, AudioUndecodable
from parakeet_worker.ingest.cutting import Cutting, InThread
from parakeet_worker.recognition.chunks import split
from parakeet_worker.request import Clip
from parakeet_worker.settings import Settings
from parakeet_worker.vad.detectors import Detectors
from parakeet_worker.worker import open_detectors
from speech import named

pytestmark = pytest.mark.usefixtures("children")

ENERGY = Detectors(None)


def cutting(path: Path, **changes: object) -> Cutting:
    usual = Cutting(
        path,
        find_ffmpeg(),
        max_audio_seconds=600.0,
        timeout_seconds=60.0,
        clip=Clip(),
        channels="mix",
        track=None,
        on_damage="warn",
        decoder_memory_bytes=512 << 20,
        precision="double",
        headerless=None,
        vad="auto",
        chunk_seconds=5.0,
        whole=False,
    )
    return replace(usual, **changes)  # type: ignore[arg-type]


@pytest.fixture
def tones(tmp_path: Path) -> Path:
    """Half a minute of tones with rests."""
    parts = [
        part for hertz in range(400, 700, 20)
        for part in (recordings.tone(hertz, 1.2), recordings.silence(0.8))
    ]  # fmt: skip
    return recordings.encode(tmp_path / "tones.wav", samples=np.concatenate(parts))


def test_chunks_are_those_of_the_decoded_samples(tones: Path) -> None:
    ingest = InThread(cutting(tones, clip=Clip(2.5)), ENERGY)
    chunks = list(ingest.chunks())
    decoding = Decoding(
        tones, ffmpeg=find_ffmpeg(), max_seconds=600, timeout_seconds=60, clip=Clip(2.5)
    )
    expected = list(
        split(decoding.blocks(), partial(ENERGY, "auto"), max_seconds=5.0, start_seconds=2.5)
    )
    assert len(chunks) == len(expected) > 4
    for one, other in zip(chunks, expected, strict=True):
        assert one.start_seconds == other.start_seconds
        assert np.array_equal(one.samples, other.samples)
    decoded = ingest.decoded
    assert decoded.seconds == pytest.approx(27.5, abs=0.01)
    assert decoded.origin == decoding.origin
    assert decoded.warnings == ()


def test_a_whole_recording_is_one_chunk(tones: Path) -> None:
    (chunk,) = InThread(cutting(tones, whole=True), ENERGY).chunks()
    assert chunk.seconds == pytest.approx(30.0, abs=0.01)


def test_limits_and_errors_are_those_of_the_decoder(tones: Path, tmp_path: Path) -> None:
    with pytest.raises(AudioTooLong):
        list(InThread(cutting(tones, max_audio_seconds=20.0), ENERGY).chunks())
    text = tmp_path / "text.txt"
    text.write_text("no audio")
    with pytest.raises(AudioUndecodable):
        list(InThread(cutting(text), ENERGY).chunks())


class Counting:
    """An observer that counts its samples."""

    def __init__(self) -> None:
        self.samples = 0
        self.calls: list[str] = []

    def feed(self, block: Samples) -> None:
        self.samples += len(block)

    def start(self) -> None:
        self.calls.append("start")

    def finish(self) -> None:
        self.calls.append("finish")

    def close(self) -> None:
        self.calls.append("close")


def test_an_observer_receives_all_samples_first_and_ends_last(tones: Path) -> None:
    observer = Counting()
    chunks = InThread(cutting(tones), ENERGY, observer).chunks()
    first = next(chunks)
    assert observer.samples >= len(first.samples)
    seconds = first.seconds
    while seconds < 29.9:
        assert observer.calls == []
        seconds += next(chunks).seconds
    assert observer.samples == 30 * SAMPLE_RATE
    assert observer.calls == [], "the last chunk does not wait for it"
    assert list(chunks) == []
    assert observer.calls == ["finish", "close"]


def test_an_observer_of_a_recording_without_chunks_does_not_wait_for_words(tmp_path: Path) -> None:
    silent = tmp_path / "silent.wav"
    silent.write_bytes(recordings.wav(recordings.silence(5)))
    observer = Counting()
    silero = open_detectors(Settings(model="demo", device="cpu"))
    assert list(InThread(cutting(silent), silero, observer).chunks()) == []
    assert observer.calls == ["start", "finish", "close"]


def test_an_observer_that_waits_ends_when_the_chunks_are_stopped(tones: Path) -> None:
    class Waiting(Counting):
        def __init__(self) -> None:
            super().__init__()
            self.window: Future[None] = Future()

        def finish(self) -> None:
            self.window.result(60)

        def close(self) -> None:
            self.window.cancel()

    ingest = InThread(cutting(tones), ENERGY, Waiting())
    chunks = ingest.chunks()
    threading.Timer(0.5, ingest.stop).start()
    assert list(chunks)
    # Cancelled by something else, the chunks are not complete.
    lost = Waiting()
    threading.Timer(0.5, lost.close).start()
    with pytest.raises(CancelledError):
        list(InThread(cutting(tones), ENERGY, lost).chunks())


def test_an_observer_is_closed_when_the_chunks_are(tones: Path) -> None:
    observer = Counting()
    chunks = InThread(cutting(tones), ENERGY, observer).chunks()
    next(chunks)
    chunks.close()
    assert observer.calls == ["close"]


def test_stopping_ends_the_chunks_without_an_error(tmp_path: Path) -> None:
    hour = recordings.repeat(named("minute").path, tmp_path / "hour.mp3", 60)
    ingest = InThread(cutting(hour, max_audio_seconds=7200.0), ENERGY)
    chunks = ingest.chunks()
    next(chunks)
    threading.Timer(0.05, ingest.stop).start()
    assert len(list(chunks)) < 700
    assert ingest.decoded.seconds < 3600


def test_the_description_can_be_sent_to_a_process(tones: Path) -> None:
    described = cutting(tones, clip=Clip(1.0, 2.0), track="all", channels="separate")
    assert pickle.loads(pickle.dumps(described)) == described  # noqa: S301
