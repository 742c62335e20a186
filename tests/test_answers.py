"""A job's input to its answer, whole or by segments, for every transport."""

import asyncio
from base64 import b64encode
from collections.abc import Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import recordings
from faulty_worker import TOO_HIGH, FaultyEngine, HeldEngine, faulty_pipeline
from loopback import WebServer, stalls, takes
from parakeet_worker import answers
from parakeet_worker.engine.tones import ToneEngine
from parakeet_worker.errors import InvalidRequest, JobTimeout, OutOfMemory, ResultTooLarge
from parakeet_worker.outcome import Outcome
from parakeet_worker.pipeline import Pipeline
from parakeet_worker.settings import Settings

PITCHES = (400, 500, 600)
TEXT = "400. 500. 600."


@pytest.fixture
def settings(tmp_path: Path) -> Iterator[Settings]:
    yield Settings(
        engine="tones", scratch=tmp_path, segment_seconds=2.0, allow_private_addresses=True
    )
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def pipeline(settings: Settings) -> Iterator[Pipeline]:
    with faulty_pipeline(settings, ToneEngine()) as made:
        yield made


def job_of(*pitches: int, **options: object) -> dict[str, object]:
    rest = recordings.silence(1.0)
    parts = [part for hz in pitches for part in (recordings.tone(hz, 0.8), rest)]
    return {"audio_base64": b64encode(recordings.wav(np.concatenate(parts))).decode(), **options}


async def streamed(pipeline: Pipeline, payload: object, outcomes: list[Outcome]) -> list[Any]:
    async with aclosing(answers.stream(pipeline, payload, outcomes.append)) as parts:
        return [
            {"segment" if isinstance(part, answers.SegmentPart) else "result": part.document}
            async for part in parts
        ]


async def through(way: str, pipeline: Pipeline, payload: object) -> object:
    """The answer, whole or streamed."""
    if way == "answer":
        return await answers.answer(pipeline, payload)
    return (await streamed(pipeline, payload, []))[-1]["result"]


@pytest.mark.parametrize("format_", ["json", "verbose_json", "text", "srt", "vtt", "tsv"])
async def test_a_stream_ends_with_the_answer_that_is_given_without_one(
    pipeline: Pipeline, format_: str
) -> None:
    outcomes: list[Outcome] = []
    payload = job_of(*PITCHES, format=format_)
    *segments, last = await streamed(pipeline, payload, outcomes)
    assert [part["segment"]["text"] for part in segments] == ["400.", "500.", "600."]
    assert [part["segment"]["id"] for part in segments] == [0, 1, 2]
    assert last == {"result": await answers.answer(pipeline, payload)}
    (outcome,) = outcomes
    assert outcome.code is None
    assert outcome.transcript is not None
    assert outcome.transcript.text == TEXT


async def test_channels_are_streamed_with_their_names(pipeline: Pipeline) -> None:
    left, right = recordings.tone(400, 2.0), recordings.silence(2.0)
    both = np.concatenate(
        (np.stack((left, right), axis=1), np.stack((right, recordings.tone(500, 2.0)), axis=1))
    )
    path = recordings.encode(
        pipeline.settings.scratch / "call.wav", samples=both.reshape(-1), channels=2
    )
    payload = {"audio_base64": b64encode(path.read_bytes()).decode(), "channels": "separate"}
    path.unlink()
    *segments, last = await streamed(pipeline, payload, [])
    assert {(part["segment"]["channel"], part["segment"]["text"]) for part in segments} == {
        (1, "400."),
        (2, "500."),
    }
    assert last["result"]["text"] == "Channel 1: 400.\nChannel 2: 500."


async def test_silence_streams_nothing_but_an_empty_answer(pipeline: Pipeline) -> None:
    silence = b64encode(recordings.wav(recordings.silence(3.0))).decode()
    assert await streamed(pipeline, {"audio_base64": silence}, []) == [{"result": {"text": ""}}]


async def test_of_a_list_a_stream_has_the_answer_only_and_all_of_it(pipeline: Pipeline) -> None:
    payload = {"inputs": [job_of(400), job_of(500)]}
    (last,) = await streamed(pipeline, payload, [])
    assert last == {"result": [{"text": "400."}, {"text": "500."}]}


async def test_a_stream_without_a_reader_is_cancelled(pipeline: Pipeline) -> None:
    outcomes: list[Outcome] = []
    async with aclosing(answers.stream(pipeline, job_of(*PITCHES), outcomes.append)) as parts:
        async for _ in parts:
            break
    assert [outcome.code for outcome in outcomes] == ["cancelled"]
    assert list(pipeline.settings.scratch.iterdir()) == []


async def test_every_recording_of_a_list_is_reported_once(pipeline: Pipeline) -> None:
    outcomes: list[Outcome] = []
    payload = {"inputs": [job_of(400), {"audio_base64": "bm90aGluZw=="}, job_of(500)]}
    await answers.answer(pipeline, payload, outcomes.append)
    assert sorted(str(outcome.code) for outcome in outcomes) == [
        "None",
        "None",
        "audio_undecodable",
    ]


# what is too large


@pytest.mark.parametrize("kind", ["plain", "listed", "streamed"])
async def test_an_answer_that_is_too_large_is_written_to_the_named_location(
    settings: Settings, web: WebServer, kind: str
) -> None:
    got: list[bytes] = []
    output = {"output_url": web.at("/a.json", takes(got))}
    small = settings.model_copy(update={"max_result_bytes": 5})
    with faulty_pipeline(small, ToneEngine()) as pipeline:
        payload: dict[str, object] = {**job_of(*PITCHES), **output}
        if kind == "listed":
            payload = {"inputs": [job_of(*PITCHES)], **output}
        if kind == "streamed":
            *segments, last = await streamed(pipeline, payload, [])
            assert len(segments) == 3
            result = last["result"]
        else:
            result = await answers.answer(pipeline, payload)
    assert result == {"written_to": {"url": f"{web.address}/a.json", "bytes": len(got[0])}}
    assert TEXT.encode() in got[0]


async def test_an_answer_that_is_too_large_for_anywhere_is_an_error(settings: Settings) -> None:
    small = settings.model_copy(update={"max_result_bytes": 5})
    with faulty_pipeline(small, ToneEngine()) as pipeline:
        with pytest.raises(ResultTooLarge):
            await answers.answer(pipeline, job_of(400))
        with pytest.raises(ResultTooLarge):
            await streamed(pipeline, job_of(400), [])


# what takes too long


@pytest.mark.parametrize("way", ["answer", "stream"])
async def test_the_writing_of_an_answer_counts_for_the_time_of_its_job(
    settings: Settings, web: WebServer, way: str
) -> None:
    output = {"output_url": web.at("/a.json", stalls())}
    hasty = settings.model_copy(update={"max_result_bytes": 5, "job_timeout_seconds": 1.5})
    with (
        faulty_pipeline(hasty, ToneEngine()) as pipeline,
        pytest.raises(JobTimeout),
    ):
        await through(way, pipeline, {**job_of(400), **output})


async def test_a_slow_reader_uses_the_time_of_its_job(settings: Settings) -> None:
    hasty = settings.model_copy(update={"job_timeout_seconds": 1.0})
    engine = HeldEngine(batches=1)
    with faulty_pipeline(hasty, engine) as pipeline:
        async with aclosing(answers.stream(pipeline, job_of(*PITCHES))) as parts:
            await anext(parts)
            await asyncio.sleep(1.1)
            with pytest.raises(JobTimeout):
                async for _ in parts:
                    pass
        engine.released.set()


# what has no room


@pytest.mark.parametrize("way", ["answer", "stream"])
async def test_full_attention_without_memory_is_an_error(settings: Settings, way: str) -> None:
    with faulty_pipeline(settings, FaultyEngine(seed=1)) as pipeline:
        for attention, kind in (("full", InvalidRequest), ("pieces", OutOfMemory)):
            payload = job_of(TOO_HIGH, attention=attention)
            with pytest.raises(kind):
                await through(way, pipeline, payload)
