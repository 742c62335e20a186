"""Recordings whose channels are heard apart, and recordings that are heard in one piece."""

import struct
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import numpy as np
import pytest

import recordings
from parakeet_worker.audio.decoding import MAX_CHANNELS, Decoding
from parakeet_worker.batcher import Batcher
from parakeet_worker.engine.base import Capacity, Hypothesis, Samples
from parakeet_worker.engine.tones import ToneEngine
from parakeet_worker.errors import AudioTooLong, AudioUndecodable, InvalidRequest, OutOfMemory
from parakeet_worker.formats import render
from parakeet_worker.pipeline import MAX_FULL_ATTENTION_SECONDS, Pipeline
from parakeet_worker.recognition.transcript import Transcript
from parakeet_worker.request import Clip, FileSource, Request
from parakeet_worker.settings import Settings
from parakeet_worker.worker import open_detectors, open_pipeline

CALL = (  # channel, hertz, when it begins
    (1, 400, 0.4),
    (2, 700, 1.6),
    (1, 500, 2.8),
    (2, 800, 3.0),
    (1, 600, 5.0),
)


def interleaved(*channels: Samples) -> Samples:
    return np.stack(channels, axis=1).reshape(-1)


def call(count: int = 2, seconds: float = 6.4) -> Samples:
    """Tones on their channels, interleaved."""
    channels = [recordings.silence(seconds) for _ in range(count)]
    for channel, hertz, begins in CALL:
        tone = recordings.tone(hertz, 0.8)
        first = round(begins * recordings.RATE)
        channels[channel - 1][first : first + len(tone)] = tone
    return interleaved(*channels)


@pytest.fixture
async def pipeline(tmp_path: Path) -> AsyncIterator[Pipeline]:
    (tmp_path / "scratch").mkdir()
    settings = Settings(engine="tones", scratch=tmp_path / "scratch", segment_seconds=2.0)
    with open_pipeline(settings) as opened:
        yield opened
    assert list((tmp_path / "scratch").iterdir()) == []


@pytest.fixture(params=["wav", "flac", "ogg"])
def recording(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return recordings.encode(tmp_path / f"call.{request.param}", samples=call(), channels=2)


async def heard(pipeline: Pipeline, path: Path, **options: object) -> Transcript:
    return await pipeline.transcribe(Request(source=FileSource(path), **options))  # type: ignore[arg-type]


async def test_words_bear_their_channel_and_stand_in_the_order_of_time(
    pipeline: Pipeline, recording: Path
) -> None:
    found = await heard(pipeline, recording, channels="separate")
    said = [(word.channel, word.text) for word in found.words]
    assert said == [(channel, f"{hertz}.") for channel, hertz, _ in CALL]
    starts = [word.start_seconds for word in found.words]
    assert starts == pytest.approx([begins for _, _, begins in CALL], abs=0.1)
    assert found.seconds == pytest.approx(6.4, abs=0.1)
    assert found.channels == (1, 2)
    assert found.text.splitlines() == [
        "Channel 1: 400.", "Channel 2: 700.", "Channel 1: 500.", "Channel 2: 800.",
        "Channel 1: 600.",
    ]  # fmt: skip


async def test_every_format_tells_the_channel(pipeline: Pipeline, recording: Path) -> None:
    found = await heard(pipeline, recording, channels="separate")
    listed = render.json_document(found, timestamp=True)["timestamps"]
    assert isinstance(listed, dict)
    for kind in ("word", "segment", "char"):
        assert {entry["channel"] for entry in listed[kind]} == {1, 2}
    verbose = render.verbose_document(found)
    for kind in ("words", "segments"):
        entries = verbose[kind]
        assert isinstance(entries, list)
        assert [entry["channel"] for entry in entries] == [1, 2, 1, 2, 1]
    assert render.srt(found).count("[Channel 1] ") == 3
    assert render.vtt(found).count("<v Channel 2>") == 2
    rows = [line.split("\t") for line in render.tsv(found).splitlines()]
    assert rows[0] == ["start", "end", "channel", "text"]
    assert [row[2] for row in rows[1:]] == ["1", "2", "1", "2", "1"]


async def test_mixed_channels_are_labelled_nowhere(pipeline: Pipeline, recording: Path) -> None:
    found = await heard(pipeline, recording)
    assert found.channels == ()
    assert all(word.channel is None for word in found.words)
    assert "hannel" not in render.srt(found) + render.vtt(found) + render.tsv(found) + found.text


async def test_one_channel_heard_apart_is_channel_1(pipeline: Pipeline, tmp_path: Path) -> None:
    path = recordings.encode(tmp_path / "one.wav", samples=recordings.tone(440, 1.0))
    found = await heard(pipeline, path, channels="separate")
    assert [(word.channel, word.text) for word in found.words] == [(1, "440.")]


async def test_a_clip_of_channels_has_the_times_of_the_whole(
    pipeline: Pipeline, recording: Path
) -> None:
    found = await heard(pipeline, recording, channels="separate", clip=Clip(2.6, 4.0))
    assert [(word.channel, word.text) for word in found.words] == [(1, "500."), (2, "800.")]
    assert found.words[0].start_seconds == pytest.approx(2.8, abs=0.1)
    assert found.seconds == pytest.approx(1.4, abs=0.1)


@pytest.mark.parametrize("count", [3, MAX_CHANNELS])
async def test_samples_of_many_channels_come_in_columns(
    ffmpeg: Path, tmp_path: Path, count: int
) -> None:
    path = recordings.encode(tmp_path / "many.wav", samples=call(count), channels=count)
    run = Decoding(path, ffmpeg=ffmpeg, max_seconds=60, timeout_seconds=60, channels="separate")
    columns = np.concatenate([stretch async for stretch in run.samples()])
    assert columns.dtype == np.float32
    expected = call(count).reshape(-1, count)
    assert columns.shape == expected.shape
    assert np.abs(columns - expected).max() < 1e-3


async def test_more_channels_than_are_heard_apart_are_refused_with_their_number(
    pipeline: Pipeline, tmp_path: Path
) -> None:
    """ffmpeg itself takes no more."""
    count = 2 * MAX_CHANNELS
    path = tmp_path / "crowd.wav"
    content = bytearray(recordings.wav(recordings.silence(0.5 * count)))
    struct.pack_into("<H", content, 22, count)
    path.write_bytes(content)
    for channels in ("separate", "mix"):
        with pytest.raises(AudioUndecodable, match=f"{count} channels"):
            await heard(pipeline, path, channels=channels)


# in one pass


async def test_full_attention_is_one_piece_however_long(
    pipeline: Pipeline, recording: Path
) -> None:
    pieces = await heard(pipeline, recording)
    whole = await heard(pipeline, recording, attention="full")
    assert pieces.stats.chunks > 1
    assert whole.stats.chunks == 1
    assert whole.text == pieces.text


async def test_full_attention_has_the_limit_of_the_models_authors(
    pipeline: Pipeline, tmp_path: Path
) -> None:
    short = recordings.encode(tmp_path / "short.flac", samples=recordings.tone(440, 60.0))
    long = recordings.repeat(short, tmp_path / "long.flac", 25)
    with pytest.raises(AudioTooLong) as raised:
        await heard(pipeline, long, attention="full")
    assert raised.value.facts["limit"] == MAX_FULL_ATTENTION_SECONDS


class _Small(ToneEngine):
    """Has room for two seconds."""

    def transcribe(self, batch: Sequence[Samples], _scripts: object = ()) -> list[Hypothesis]:
        longest = max(len(piece) for piece in batch) / recordings.RATE
        if longest > 2.0:
            raise OutOfMemory(longest)
        return super().transcribe(batch)


async def test_what_does_not_fit_in_one_pass_is_the_callers_to_change(
    ffmpeg: Path, tmp_path: Path
) -> None:
    path = recordings.encode(tmp_path / "call.wav", samples=call(), channels=2)
    settings = Settings(engine="tones", segment_seconds=2.0)
    with Batcher(_Small(), capacity=Capacity(60, 512, packed=False), queue_seconds=600) as batcher:
        pipeline = Pipeline(settings, batcher, ffmpeg, open_detectors(settings))
        assert (await heard(pipeline, path)).words
        with pytest.raises(InvalidRequest, match="cut at pauses") as raised:
            await heard(pipeline, path, attention="full")
    assert raised.value.facts["field"] == "attention"
