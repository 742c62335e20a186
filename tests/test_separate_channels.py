"""Separate channels, and recordings in one chunk (full attention)."""

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


async def transcribed(pipeline: Pipeline, path: Path, **options: object) -> Transcript:
    return await pipeline.transcribe(Request(source=FileSource(path), **options))  # type: ignore[arg-type]


async def test_words_have_their_channel_and_are_ordered_by_time(
    pipeline: Pipeline, recording: Path
) -> None:
    transcript = await transcribed(pipeline, recording, channels="separate")
    words = [(word.channel, word.text) for word in transcript.words]
    assert words == [(channel, f"{hertz}.") for channel, hertz, _ in CALL]
    starts = [word.start_seconds for word in transcript.words]
    assert starts == pytest.approx([begins for _, _, begins in CALL], abs=0.1)
    assert transcript.seconds == pytest.approx(6.4, abs=0.1)
    assert transcript.channels == (1, 2)
    assert transcript.text.splitlines() == [
        "Channel 1: 400.", "Channel 2: 700.", "Channel 1: 500.", "Channel 2: 800.",
        "Channel 1: 600.",
    ]  # fmt: skip


async def test_every_format_contains_the_channel(pipeline: Pipeline, recording: Path) -> None:
    transcript = await transcribed(pipeline, recording, channels="separate")
    listed = render.json_document(transcript, timestamp=True)["timestamps"]
    assert isinstance(listed, dict)
    for kind in ("word", "segment", "char"):
        assert {entry["channel"] for entry in listed[kind]} == {1, 2}
    verbose = render.verbose_document(transcript)
    for kind in ("words", "segments"):
        entries = verbose[kind]
        assert isinstance(entries, list)
        assert [entry["channel"] for entry in entries] == [1, 2, 1, 2, 1]
    assert render.srt(transcript).count("[Channel 1] ") == 3
    assert render.vtt(transcript).count("<v Channel 2>") == 2
    rows = [line.split("\t") for line in render.tsv(transcript).splitlines()]
    assert rows[0] == ["start", "end", "channel", "text"]
    assert [row[2] for row in rows[1:]] == ["1", "2", "1", "2", "1"]


async def test_mixed_channels_have_no_labels(pipeline: Pipeline, recording: Path) -> None:
    transcript = await transcribed(pipeline, recording)
    assert transcript.channels == ()
    assert all(word.channel is None for word in transcript.words)
    assert (
        "hannel"
        not in render.srt(transcript)
        + render.vtt(transcript)
        + render.tsv(transcript)
        + transcript.text
    )


async def test_a_single_separate_channel_is_channel_1(pipeline: Pipeline, tmp_path: Path) -> None:
    path = recordings.encode(tmp_path / "one.wav", samples=recordings.tone(440, 1.0))
    transcript = await transcribed(pipeline, path, channels="separate")
    assert [(word.channel, word.text) for word in transcript.words] == [(1, "440.")]


async def test_a_clip_of_channels_has_the_times_of_the_whole(
    pipeline: Pipeline, recording: Path
) -> None:
    transcript = await transcribed(pipeline, recording, channels="separate", clip=Clip(2.6, 4.0))
    assert [(word.channel, word.text) for word in transcript.words] == [(1, "500."), (2, "800.")]
    assert transcript.words[0].start_seconds == pytest.approx(2.8, abs=0.1)
    assert transcript.seconds == pytest.approx(1.4, abs=0.1)


@pytest.mark.parametrize("count", [3, MAX_CHANNELS])
async def test_samples_of_many_channels_come_in_columns(
    ffmpeg: Path, tmp_path: Path, count: int
) -> None:
    path = recordings.encode(tmp_path / "many.wav", samples=call(count), channels=count)
    run = Decoding(path, ffmpeg=ffmpeg, max_seconds=60, timeout_seconds=60, channels="separate")
    columns = np.concatenate([block async for block in run.samples()])
    assert columns.dtype == np.float32
    expected = call(count).reshape(-1, count)
    assert columns.shape == expected.shape
    assert np.abs(columns - expected).max() < 1e-3


async def test_too_many_separate_channels_are_rejected_with_their_number(
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
            await transcribed(pipeline, path, channels=channels)


# in one pass


async def test_full_attention_is_one_chunk_of_any_length(
    pipeline: Pipeline, recording: Path
) -> None:
    pieces = await transcribed(pipeline, recording)
    whole = await transcribed(pipeline, recording, attention="full")
    assert pieces.stats.chunks > 1
    assert whole.stats.chunks == 1
    assert whole.text == pieces.text


async def test_full_attention_has_the_limit_of_the_models_authors(
    pipeline: Pipeline, tmp_path: Path
) -> None:
    short = recordings.encode(tmp_path / "short.flac", samples=recordings.tone(440, 60.0))
    long = recordings.repeat(short, tmp_path / "long.flac", 25)
    with pytest.raises(AudioTooLong) as raised:
        await transcribed(pipeline, long, attention="full")
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
        assert (await transcribed(pipeline, path)).words
        with pytest.raises(InvalidRequest, match="cut at pauses") as raised:
            await transcribed(pipeline, path, attention="full")
    assert raised.value.facts["field"] == "attention"
