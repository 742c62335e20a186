"""One job through the real loop, from the real pipeline to what the job API is posted for it."""

import asyncio
import json
import logging
from base64 import b64encode
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import imageio_ffmpeg
import numpy as np
import psutil
import pytest

import recordings
from faulty_worker import FaultyEngine, HeldEngine, faulty_pipeline
from job_api import JobApi
from loopback import WebServer, chunks, trickles
from parakeet_worker.engine.base import Engine, Hypothesis, Token
from parakeet_worker.engine.tones import ToneEngine
from parakeet_worker.entrypoints.queue.delivery import Delivery
from parakeet_worker.entrypoints.queue.handler import JobLog, answer_input, answer_job, body_of
from parakeet_worker.entrypoints.queue.loop import Job, JobLoop
from parakeet_worker.pipeline import Pipeline
from parakeet_worker.settings import Settings
from parakeet_worker.vad.base import Detector

PATIENCE_SECONDS = 60.0
PITCHES = (400, 500, 600, 700, 800)
TEXT = "400. 500. 600. 700. 800."
MEGABYTE = 1 << 20


@pytest.fixture
def api() -> Iterator[JobApi]:
    with JobApi() as opened:
        yield opened


@pytest.fixture
def settings(tmp_path: Path) -> Iterator[Settings]:
    yield Settings(
        engine="tones",
        scratch=tmp_path,
        segment_seconds=2.0,
        allow_private_addresses=True,
        ffmpeg=Path(imageio_ffmpeg.get_ffmpeg_exe()),
    )
    assert list(tmp_path.iterdir()) == []


def melody(*pitches: int, seconds: float = 0.8, rest_seconds: float = 1.0) -> bytes:
    rest = recordings.silence(rest_seconds)
    parts = [part for hz in pitches for part in (recordings.tone(hz, seconds), rest)]
    return recordings.wav(np.concatenate(parts))


def job_of(content: bytes, **options: object) -> dict[str, object]:
    return {"audio_base64": b64encode(content).decode(), **options}


@asynccontextmanager
async def working(
    api: JobApi,
    settings: Settings,
    engine: Engine | None = None,
    *,
    progress_seconds: float = 30.0,
    detector: Callable[[str], Detector] | None = None,
) -> AsyncIterator[Pipeline]:
    """A worker in this process that takes the API's jobs."""
    with faulty_pipeline(settings, engine or ToneEngine()) as made:
        pipeline = made if detector is None else replace(made, detector=detector)

        async def answer(job: Job, delivery: Delivery) -> None:
            await answer_job(pipeline, job, delivery, progress_seconds=progress_seconds)

        loop = JobLoop(api.sdk(), answer, slots=8, delivery_seconds=20.0)
        async with asyncio.timeout(2 * PATIENCE_SECONDS), asyncio.TaskGroup() as group:
            group.create_task(loop.run())
            try:
                yield pipeline
            finally:
                if isinstance(engine, HeldEngine):
                    engine.released.set()
                loop.end()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not condition():  # noqa: ASYNC110  # the API has its own thread
            await asyncio.sleep(0.01)


async def result(api: JobApi, job: str) -> Any:
    return await asyncio.to_thread(api.result, job)


# plain answers


async def test_a_job_in_openais_spelling_is_answered_in_it(api: JobApi, settings: Settings) -> None:
    file = b64encode(melody(*PITCHES)).decode()
    requested = {"file": file, "model": "whisper-1", "response_format": "verbose_json"}
    for job, route, body in (
        ("words", "/v1/audio/transcriptions", requested),
        ("text", "/v1/audio/transcriptions", {"file": file, "response_format": "text"}),
        ("models", "/v1/models", None),
        ("bad", "/v1/audio/transcriptions", {"file": file, "temperature": 2}),
        ("unknown", "/v1/embeddings", {}),
        ("stream", "/v1/audio/transcriptions", {"file": file, "stream": True}),
    ):
        api.submit(job, {"openai_route": route, "openai_input": body})
    async with working(api, settings):
        words = (await result(api, "words"))["output"]
        assert (words["task"], words["text"]) == ("transcribe", TEXT)
        assert await result(api, "text") == {"output": f"{TEXT}\n"}
        assert (await result(api, "models"))["output"]["data"][0]["id"] == "tones"
        assert (await result(api, "bad"))["error"].startswith("invalid_request: temperature: ")
        assert (await result(api, "unknown"))["error"].startswith("unknown_route: ")
        done = (await result(api, "stream"))["output"]
        assert (done["type"], done["text"]) == ("transcript.text.done", TEXT)
    assert api.deliveries["stream"].order == [*["chunk"] * len(PITCHES), "done"]


async def test_an_answer_in_openais_spelling_has_the_same_limit(
    api: JobApi, settings: Settings
) -> None:
    body = {"file": b64encode(melody(*PITCHES)).decode()}
    api.submit("job", {"openai_route": "/v1/audio/transcriptions", "openai_input": body})
    async with working(api, settings.model_copy(update={"max_result_bytes": 20})):
        assert (await result(api, "job"))["error"].startswith("result_too_large: ")


async def test_a_job_is_answered_with_its_words(api: JobApi, settings: Settings) -> None:
    api.submit("job", job_of(melody(*PITCHES)))
    async with working(api, settings):
        assert await result(api, "job") == {"output": {"text": TEXT}}
    assert api.deliveries["job"].streamed == [False]
    assert api.deliveries["job"].order == ["done"]


async def test_an_error_is_a_string_with_its_facts(api: JobApi, settings: Settings) -> None:
    api.submit("job", job_of(b"", stream="yes"))
    async with working(api, settings):
        body = await result(api, "job")
    assert body["error"].startswith("invalid_request: stream: ")
    assert body["output"] == {"code": "invalid_request", "field": "stream"}


async def test_a_list_is_answered_as_a_list(api: JobApi, settings: Settings) -> None:
    api.submit("job", {"inputs": [job_of(melody(400)), {"audio_base64": "?"}]})
    async with working(api, settings):
        first, second = (await result(api, "job"))["output"]
    assert first == {"text": "400."}
    assert second["code"] == "invalid_request"


@pytest.mark.parametrize(
    ("output", "stop", "body"),
    [
        ({"text": "a"}, False, {"output": {"text": "a"}}),
        ([{"text": "a"}], False, {"output": [{"text": "a"}]}),
        ({"text": "a"}, True, {"output": {"text": "a"}, "stopPod": True}),
        ([{"error": "x"}], True, {"output": [{"error": "x"}], "stopPod": True}),
        ({"error": "x: y", "code": "x"}, False, {"output": {"code": "x"}, "error": "x: y"}),
        (
            {"error": "x: y", "code": "x", "refresh_worker": True},
            False,
            {"output": {"code": "x"}, "error": "x: y", "stopPod": True},
        ),
    ],
)
def test_a_body_is_what_the_platform_reads(output: object, body: object, *, stop: bool) -> None:
    assert body_of(output, stop=stop) == body


class Unsure(ToneEngine):
    """Not a number is how sure it is."""

    def transcribe(self, batch: Any, _scripts: Any = ()) -> list[Hypothesis]:
        return [Hypothesis((Token("▁a", 0, 1, float("nan")),), 0.08) for _ in batch]


async def test_an_answer_that_json_has_no_word_for_becomes_an_error(
    api: JobApi, settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    api.submit("job", job_of(melody(400), format="verbose_json"))
    async with working(api, settings, Unsure()):
        body = await result(api, "job")
    assert body["error"].startswith("internal_error: ")
    assert "not JSON compliant" in caplog.text


async def test_an_unexpected_exception_is_answered_without_details(
    api: JobApi, settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    def detector(_: str) -> Detector:
        raise KeyError("a secret")

    api.submit("job", job_of(melody(400)))
    async with working(api, settings, detector=detector):
        body = await result(api, "job")
    assert body == {
        "error": "internal_error: unexpected error; the worker's log has the details",
        "output": {"code": "internal_error"},
    }
    assert "a secret" in caplog.text


@pytest.mark.parametrize("options", [{}, {"stream": True}, {"listed": True}])
async def test_a_lost_engine_requests_a_worker_replacement(
    api: JobApi, settings: Settings, options: dict[str, Any]
) -> None:
    payload: dict[str, Any] = job_of(melody(400))
    payload = {"inputs": [payload]} if options.get("listed") else {**payload, **options}
    api.submit("job", payload)
    async with working(api, settings, FaultyEngine(seed=1, batches=0)):
        body = await result(api, "job")
    assert body["stopPod"] is True
    assert "engine_lost" in json.dumps(body)


# streams


async def test_segments_come_as_they_are_done_and_the_whole_at_the_end(
    api: JobApi, settings: Settings
) -> None:
    engine = HeldEngine(batches=1)
    api.submit("job", job_of(melody(*PITCHES), stream=True, format="verbose_json"))
    delivery = api.deliveries["job"]
    async with working(api, settings, engine):
        await until(lambda: bool(delivery.chunks))
        assert delivery.bodies == []
        assert delivery.chunks[0]["segment"]["text"] == "400."
        engine.released.set()
        body = await result(api, "job")
    assert delivery.order == ["chunk"] * 5 + ["done"]
    assert delivery.streamed == [True]
    segments = [chunk["segment"] for chunk in delivery.chunks]
    assert " ".join(segment["text"] for segment in segments) == body["output"]["text"] == TEXT
    whole = body["output"]["segments"]
    assert [{key: segment[key] for key in whole[0]} for segment in segments] == whole
    words = [word for segment in segments for word in segment["words"]]
    assert words == body["output"]["words"]


async def test_the_stream_of_a_job_that_fails_ends_with_its_error(
    api: JobApi, settings: Settings
) -> None:
    cut_off = melody(*PITCHES)
    half = cut_off[: len(cut_off) // 2]
    api.submit("job", job_of(half, stream=True, on_damage="refuse"))
    async with working(api, settings):
        body = await result(api, "job")
    assert body["error"].startswith("audio_truncated: ")
    assert api.deliveries["job"].streamed == [True]
    assert api.deliveries["job"].order[-1] == "done"


async def test_a_list_cannot_be_streamed(api: JobApi, settings: Settings) -> None:
    api.submit("job", {"inputs": [job_of(melody(400))], "stream": True})
    async with working(api, settings):
        body = await result(api, "job")
    assert body["error"].startswith("invalid_request: stream: ")


@pytest.mark.usefixtures("without_waits")
async def test_a_stream_whose_road_is_bad_misses_nothing(api: JobApi, settings: Settings) -> None:
    api.faults["job-stream"].extend([500, "drop", 429])
    api.submit("job", job_of(melody(*PITCHES), stream=True))
    async with working(api, settings):
        await result(api, "job")
    texts = [chunk["segment"]["text"] for chunk in api.deliveries["job"].chunks]
    assert " ".join(texts) == TEXT


async def test_a_stream_that_is_refused_ends_there_and_the_whole_comes_all_the_same(
    api: JobApi, settings: Settings
) -> None:
    requested = job_of(melody(*PITCHES), stream=True)
    api.submit("job", requested)
    async with working(api, settings):
        # The first passes, the second does not, and nothing comes after a gap.
        await until(lambda: bool(api.deliveries["job"].chunks or api.deliveries["job"].bodies))
        api.faults["job-stream"].extend([413] * 9)
        body = await result(api, "job")
    assert body == {"output": {"text": TEXT}}
    texts = [chunk["segment"]["text"] for chunk in api.deliveries["job"].chunks]
    assert TEXT.startswith(" ".join(texts))
    assert api.requests["job-stream"] <= len(texts) + 1


class Breathless(ToneEngine):
    """Emits words indefinitely, without a full stop."""

    def transcribe(self, batch: Any, _scripts: Any = ()) -> list[Hypothesis]:
        words = [Token(f"▁wört{number}", number, 1, -0.1) for number in range(3000)]
        return [Hypothesis(tuple(words), 0.0002) for _ in batch]


async def test_every_chunk_is_far_below_a_megabyte_even_without_full_stops(
    api: JobApi, settings: Settings
) -> None:
    api.submit("job", job_of(melody(*PITCHES), stream=True))
    async with working(api, settings, Breathless()):
        body = await result(api, "job")
    results = api.deliveries["job"].chunks
    assert " ".join(chunk["segment"]["text"] for chunk in results) == body["output"]["text"]
    assert len(body["output"]["text"].split()) > 10_000
    assert max(len(json.dumps(chunk)) for chunk in results) < MEGABYTE / 4


# progress


async def test_progress_is_periodic_and_never_after_the_end(
    api: JobApi, settings: Settings
) -> None:
    engine = HeldEngine(batches=2)
    api.submit("job", job_of(melody(*PITCHES), progress=True))
    delivery = api.deliveries["job"]
    # One chunk fits into a batch, so that the third batch is held at any speed.
    small = settings.model_copy(update={"batch_seconds": 2.0})
    async with working(api, small, engine, progress_seconds=0.1):
        await until(lambda: len(delivery.progress) >= 3)
        engine.released.set()
        await result(api, "job")
        await asyncio.sleep(0.5)
    assert delivery.order == ["progress"] * len(delivery.progress) + ["done"]
    assert delivery.chunks == []
    seconds = [reported["audio_seconds"] for reported in delivery.progress]
    assert seconds == sorted(seconds)
    assert 0 < max(seconds) < 9
    assert delivery.bodies == [{"output": {"text": TEXT}}]


async def test_progress_keeps_its_distance(api: JobApi, settings: Settings) -> None:
    engine = HeldEngine()
    api.submit("often", job_of(melody(400), progress=True))
    api.submit("never", job_of(melody(400)))
    async with working(api, settings, engine, progress_seconds=0.5):
        await until(engine.held.is_set)
        await asyncio.sleep(1.2)
        assert len(api.deliveries["often"].progress) <= 3
        assert api.deliveries["never"].progress == []


async def test_progress_counts_the_recordings_of_a_list(api: JobApi, settings: Settings) -> None:
    engine = HeldEngine(batches=1)
    job = {"inputs": [{"audio_base64": "?"}, job_of(melody(500))], "progress": True}
    first = {"inputs": [job_of(melody(400))]}
    async with working(api, settings, engine, progress_seconds=0.1):
        api.submit("first", first)
        await result(api, "first")
        api.submit("job", job)
        await until(lambda: bool(api.deliveries["job"].progress))
        assert api.deliveries["job"].progress[0]["recordings"] <= 1
        engine.released.set()
        assert len((await result(api, "job"))["output"]) == 2


async def test_slow_progress_does_not_come_after_the_answer(
    api: JobApi, settings: Settings
) -> None:
    engine = HeldEngine()
    api.progress_delay_seconds = 0.5
    api.submit("job", job_of(melody(400), progress=True))
    async with working(api, settings, engine, progress_seconds=0.1):
        await until(lambda: api.requests["progress"] > 0)
        engine.released.set()
        await result(api, "job")
        await asyncio.sleep(0.7)
    assert api.deliveries["job"].order[-1] == "done"


# cancelling


async def test_cancelled_work_never_reaches_the_engine_and_leaves_nothing(
    api: JobApi,
    settings: Settings,
    web: WebServer,
    tmp_path: Path,
    children: Callable[[], list[psutil.Process]],
) -> None:
    # More than is held ahead, so that ffmpeg is still at work.
    target = tmp_path / "long.flac"
    recordings.encode(target, samples=np.concatenate([recordings.tone(440, 120)]))
    content = target.read_bytes()
    target.unlink()
    url = web.at("/long.flac", chunks(content))
    engine = HeldEngine()
    async with working(api, settings, engine) as pipeline:
        api.submit("first", job_of(melody(900)))
        await until(engine.held.is_set)
        api.submit("job", {"audio_url": url, "progress": True, "stream": True})
        await until(lambda: pipeline.batcher.load.waiting_seconds > 10)
        assert children()
        assert len(list(tmp_path.iterdir())) >= 1
        api.stop("job")
        await until(lambda: pipeline.batcher.load.waiting_seconds == 0)
        await until(lambda: not children())
        engine.released.set()
        assert await result(api, "first") == {"output": {"text": "900."}}
        api.submit("after", job_of(melody(500)))
        assert await result(api, "after") == {"output": {"text": "500."}}
    assert "440" not in engine.text
    assert api.deliveries["job"].order == []


async def test_the_download_of_a_cancelled_job_ends(
    api: JobApi, settings: Settings, web: WebServer
) -> None:
    url = web.at("/slow.wav", trickles(melody(400), pause_seconds=0.05))
    api.submit("job", {"audio_url": url})
    async with working(api, settings):
        await asyncio.wait_for(web.reached.wait(), PATIENCE_SECONDS)
        api.stop("job")
        await asyncio.wait_for(web.left.wait(), PATIENCE_SECONDS)
    assert api.deliveries["job"].order == []


async def test_a_job_cancelled_during_a_progress_post_posts_nothing_more(
    api: JobApi, settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    engine = HeldEngine()
    api.progress_delay_seconds = 30.0
    api.submit("job", job_of(melody(400), progress=True))
    async with working(api, settings, engine, progress_seconds=0.1):
        await until(lambda: api.requests["progress"] > 0)
        api.stop("job")
        await until(lambda: "job cancelled" in caplog.text)
    # It was abandoned before it failed on its own.
    assert "progress not delivered" not in caplog.text
    assert api.deliveries["job"].order == []


# time


@pytest.mark.parametrize("kind", ["plain", "listed", "streamed"])
async def test_a_job_that_takes_too_long_ends_with_job_timeout(
    api: JobApi, settings: Settings, tmp_path: Path, kind: str
) -> None:
    impatient = settings.model_copy(update={"job_timeout_seconds": 1.5})
    payload: dict[str, Any] = job_of(melody(*PITCHES))
    if kind == "listed":
        payload = {"inputs": [payload, {"audio_base64": "?"}]}
    if kind == "streamed":
        payload["stream"] = True
    engine = HeldEngine()
    async with working(api, impatient, engine) as pipeline:
        api.submit("job", payload)
        body = await result(api, "job")
        assert body["error"] == "job_timeout: the job took longer than 1.5 s"
        assert body["output"] == {"code": "job_timeout", "limit": 1.5}
        assert api.deliveries["job"].streamed == [kind == "streamed"]
        assert pipeline.batcher.load.waiting_seconds == 0
        assert list(tmp_path.iterdir()) == []


# the log


def line_of(caplog: pytest.LogCaptureFixture, job: str) -> logging.LogRecord:
    """The one line about a job's end."""
    (line,) = [
        record
        for record in caplog.records
        if getattr(record, "job", None) == job and hasattr(record, "facts")
    ]
    return line


@pytest.mark.parametrize("with_text", [False, True])
async def test_a_job_has_one_log_line_without_text_by_default(
    api: JobApi, settings: Settings, caplog: pytest.LogCaptureFixture, *, with_text: bool
) -> None:
    caplog.set_level(logging.INFO)
    api.submit("job", job_of(melody(*PITCHES)))
    async with working(api, settings.model_copy(update={"log_text": with_text})):
        await result(api, "job")
    line = line_of(caplog, "job")
    facts = line.__dict__["facts"]
    assert line.getMessage() == "job ok"
    assert facts["audio_seconds"] == pytest.approx(9.0)
    assert facts["words"] == 5
    assert list(facts["seconds"]) == ["fetch", "decode", "recognize", "total"]
    assert facts.get("text") == ([TEXT] if with_text else None)
    if not with_text:
        assert "400" not in caplog.text


async def test_a_failed_job_is_logged_with_its_status(
    api: JobApi, settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    api.submit("job", job_of(b"no sound"))
    api.submit("list", {"inputs": [job_of(melody(400)), job_of(b"no sound")]})
    async with working(api, settings):
        await result(api, "job")
        await result(api, "list")
    failed = line_of(caplog, "job")
    assert failed.getMessage() == "job audio_undecodable"
    assert failed.__dict__["facts"]["codes"] == ["audio_undecodable"]
    listed = line_of(caplog, "list")
    assert listed.getMessage() == "job ok"
    assert listed.__dict__["facts"]["codes"] == ["audio_undecodable"]
    assert listed.__dict__["facts"]["words"] == 1


async def test_an_undelivered_answer_is_logged(
    api: JobApi, settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    api.faults["job-done"].append(401)
    api.submit("job", job_of(melody(400)))
    async with working(api, settings):
        await until(lambda: "job undelivered" in caplog.text)


# the public start


async def test_without_a_way_to_send_segments_the_whole_is_the_answer(settings: Settings) -> None:
    with faulty_pipeline(settings, ToneEngine()) as pipeline:
        results = await answer_input(pipeline, job_of(melody(*PITCHES), stream=True), JobLog())
    assert results == {"text": TEXT}
