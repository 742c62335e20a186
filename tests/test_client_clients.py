"""The client against a whole endpoint: RunPod's two halves on loopback and a real worker."""

import asyncio
import inspect
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import aclosing
from pathlib import Path

import numpy as np
import pytest

from endpoint_api import KEY, EndpointApi
from job_api import running_worker
from loopback import WebServer, answers, in_turn
from parakeet_worker import Answer, AsyncClient, Client, Segment
from parakeet_worker.client.endpoint import Endpoint
from parakeet_worker.client.transports import ProgressCallbacks, QueuedJob
from parakeet_worker.errors import (
    AudioEmpty,
    AudioUndecodable,
    EndpointDenied,
    EndpointUnreachable,
    InvalidRequest,
    JobCancelled,
    JobExpired,
    JobFailed,
    SourceNotFound,
)
from parakeet_worker.settings import Settings
from recordings import headerless, silence, tone, wav

pytestmark = pytest.mark.usefixtures("without_waits")


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EndpointApi]:
    home = tmp_path_factory.mktemp("worker")
    tones = {
        "PARAKEET_ENGINE": "tones",
        "PARAKEET_ALLOW_PRIVATE_ADDRESSES": "true",
        "OMP_NUM_THREADS": "1",
    }
    with (
        (home / "log").open("w") as log,
        EndpointApi() as api,
        running_worker(api, home, tones, log=log),
    ):
        yield api


@pytest.fixture(autouse=True)
def no_faults_are_left(api: EndpointApi) -> Iterator[None]:
    yield
    assert not any(api.faults.values())
    assert not api.endings


@pytest.fixture
async def client(api: EndpointApi) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(api.url, KEY) as client:
        yield client


@pytest.fixture
def talk(tmp_path: Path) -> Path:
    path = tmp_path / "talk.wav"
    path.write_bytes(wav(tone(440, 0.8)))
    return path


async def test_a_file_is_transcribed_with_the_figures_of_the_platform(client, talk):
    answer = await client.transcribe(talk)
    assert isinstance(answer, Answer)
    assert (answer.text, answer.document, answer.content) == (
        "440.",
        {"text": "440."},
        '{\n  "text": "440."\n}\n',
    )
    usage = answer.usage
    assert usage.audio_seconds == pytest.approx(0.8)
    assert usage.worker == "worker-1"
    assert usage.queued_seconds is not None
    assert usage.executed_seconds is not None
    assert usage.started is not None


async def test_bytes_and_strings_are_transcribed_too(client, talk):
    assert (await client.transcribe(talk.read_bytes())).text == "440."
    assert (await client.transcribe(str(talk))).text == "440."


async def test_an_address_is_passed_on(client, api, web, talk):
    async def sends(_):
        from aiohttp import web as aio

        return aio.Response(body=talk.read_bytes())

    url = web.at("/talk.wav", sends)
    assert (await client.transcribe(url)).text == "440."
    assert api.inputs()[-1]["audio_url"] == url


async def test_the_options_reach_the_worker(client, tmp_path):
    path = tmp_path / "two.wav"
    path.write_bytes(wav(tone(440, 1.6)) + b"")
    srt = await client.transcribe(path, format="srt")
    assert srt.content == srt.document["srt"]
    assert srt.content.startswith("1\n00:00:00,000 --> ")
    verbose = await client.transcribe(path, format="verbose_json", debug=True)
    assert verbose.document["debug"]["audio_seconds"] == pytest.approx(1.6)
    clipped = await client.transcribe(path, start_seconds=0.8, timestamp=True)
    assert clipped.document["timestamps"]["word"][0]["start"] == pytest.approx(0.8, abs=0.1)


def limited(url: str, max_audio_bytes: int) -> Endpoint:
    """The endpoint, with a maximum size of files for its route with the larger limit."""
    most = max_audio_bytes * 4 // 3 + 4096 + 8
    return Endpoint.queue(url, most // 2, most)


@pytest.mark.parametrize(("limit", "route"), [(30_000, "runsync"), (60_000, "run")])
async def test_a_file_goes_the_way_that_has_room_for_it(api, talk, limit, route):
    before = api.received[route]
    async with AsyncClient(limited(api.url, limit), KEY) as client:
        assert (await client.transcribe(talk)).text == "440."
    assert api.received[route] == before + 1


async def test_a_too_large_file_is_sent_re_encoded(api, talk):
    async with AsyncClient(limited(api.url, 15_000), KEY) as client:
        answer = await client.transcribe(talk)
    assert answer.text == "440."
    assert answer.usage.audio_seconds == pytest.approx(0.8, abs=0.02)
    assert len(api.inputs()[-1]["audio_base64"]) < 20_000


@pytest.mark.parametrize(("limit", "sent"), [(30_000, "S16LE:16000"), (15_000, None)])
async def test_a_format_without_a_header_is_sent_only_with_the_unchanged_file(
    api, tmp_path, limit, sent
):
    path = tmp_path / "talk.raw"
    path.write_bytes(headerless(tone(440, 0.8)))
    async with AsyncClient(limited(api.url, limit), KEY) as client:
        answer = await client.transcribe(path, audio_format="S16LE:16000")
    assert answer.text == "440."
    assert answer.usage.audio_seconds == pytest.approx(0.8, abs=0.02)
    assert api.inputs()[-1].get("audio_format") == sent


async def test_a_file_too_large_in_every_encoding_goes_through_the_bucket(api, talk, s3):
    settings = Settings(
        s3_access_key=s3.access_key,
        s3_secret_key=s3.secret_key,
        s3_endpoint=s3.endpoint,
        s3_bucket=s3.bucket,
    )
    async with AsyncClient(limited(api.url, 100), KEY, settings=settings) as client:
        assert (await client.transcribe(talk)).text == "440."
        url = api.inputs()[-1]["audio_url"]
        assert url.startswith(f"{s3.endpoint}/{s3.bucket}/parakeet/")
        with pytest.raises(SourceNotFound):
            await client.transcribe(url)


@pytest.mark.parametrize(
    "options", [{"format": "docx"}, {"language": "xx"}, {"start_seconds": 2.0, "end_seconds": 1.0}]
)
async def test_wrong_options_are_refused_before_anything_is_sent(client, api, talk, options):
    before = sum(api.received.values())
    with pytest.raises(InvalidRequest):
        await client.transcribe(talk, **options)
    assert sum(api.received.values()) == before


async def test_the_workers_errors_are_raised_as_what_they_are(client, tmp_path):
    path = tmp_path / "noise.mp3"
    path.write_text("no audio at all" * 100)
    with pytest.raises(AudioUndecodable, match="the file is text"):
        await client.transcribe(path)
    with pytest.raises(SourceNotFound):
        await client.transcribe(tmp_path / "none.wav")
    with pytest.raises(AudioEmpty):
        await client.transcribe(b"")


@pytest.mark.parametrize("fault", [429, 500, 503, "drop"])
@pytest.mark.parametrize("route", ["run", "status"])
async def test_passing_faults_are_outlived_and_the_job_is_done_once(
    client, api, talk, route, fault
):
    before = len(api.posted)
    api.faults[route].extend([fault] * 3)
    assert (await client.transcribe(talk)).text == "440."
    assert len(api.posted) == before + 1


async def test_a_lost_answer_to_a_post_makes_a_second_job_and_one_result(client, api, talk):
    before = len(api.posted)
    api.faults["run"].append("lose")
    assert (await client.transcribe(talk)).text == "440."
    assert len(api.posted) == before + 2


async def test_lasting_failures_are_raised_after_the_retries(api, talk):
    async with AsyncClient(api.url, KEY, retry_seconds=30) as client:
        api.faults["run"].extend([503] * 100)
        with pytest.raises(EndpointUnreachable, match="status 503"):
            await client.transcribe(talk)


async def test_an_endpoint_that_is_not_there_is_unreachable(talk, unused_port):
    async with AsyncClient(f"http://127.0.0.1:{unused_port}", retry_seconds=30) as client:
        with pytest.raises(EndpointUnreachable):
            await client.transcribe(talk)


@pytest.fixture
def unused_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


async def test_a_wrong_key_or_id_is_raised_immediately(api, talk):
    before = sum(api.received.values())
    async with AsyncClient(api.url, "wrong") as client:
        with pytest.raises(EndpointDenied, match="check the API key"):
            await client.transcribe(talk)
    async with AsyncClient(api.url + "x", KEY) as client:
        with pytest.raises(EndpointDenied, match="endpoint does not exist"):
            await client.transcribe(talk)
    assert sum(api.received.values()) == before + 2


def test_a_runpod_endpoint_requires_a_key_before_any_request():
    with pytest.raises(InvalidRequest, match="api_key"):
        AsyncClient("abc123")


RAISED = json.dumps(
    {"error_type": "<class KeyError>", "error_message": "a", "error_traceback": "/its/own/path"}
)
CODED = {"error": "audio_empty: no bytes", "output": {"code": "audio_empty"}}


@pytest.mark.parametrize(
    ("ending", "error", "message"),
    [
        ({"status": "CANCELLED"}, JobCancelled, "was cancelled"),
        ({"status": "TIMED_OUT"}, JobExpired, "expired"),
        ({"status": "FAILED", "error": "job timed out after 1 retries"}, JobFailed, "after 1 ret"),
        ({"status": "FAILED"}, JobFailed, "no reason given"),
        ({"status": "FAILED", "error": RAISED}, JobFailed, "<class KeyError>: a$"),
        ({"status": "FAILED", **CODED}, AudioEmpty, "no bytes"),
        ({"status": "COMPLETED"}, JobFailed, "without an answer"),
        ({"status": "COMPLETED", "output": {}}, JobFailed, "without an answer"),
        ({"status": "ODD"}, JobFailed, "'ODD'"),
    ],
)
async def test_every_final_job_status_has_its_error(client, api, talk, ending, error, message):
    api.endings.append(ending)
    with pytest.raises(error, match=message):
        await client.transcribe(talk)


async def test_a_job_that_failed_for_the_workers_sake_is_sent_again(client, api, talk):
    lost = {"status": "FAILED", "error": "engine_lost: the engine failed"}
    full = {"status": "FAILED", "error": "overloaded: 100 s are queued"}
    api.endings.extend([lost, full])
    assert (await client.transcribe(talk)).text == "440."


async def test_cancelling_a_waiting_client_cancels_the_job(client, api, tmp_path):
    path = tmp_path / "long.wav"
    path.write_bytes(wav(silence(2)))
    sent = asyncio.Event()
    jobs: list[QueuedJob] = []

    def note(job: QueuedJob) -> None:
        jobs.append(job)
        sent.set()

    api.endings.append({"status": "IN_QUEUE"})
    task = asyncio.create_task(client.transcribe(path, callbacks=ProgressCallbacks(sent=note)))
    await sent.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert api.cancelled[-1] == jobs[0].id


async def test_cancelling_during_the_post_cancels_the_resulting_job(client, api, talk):
    before = len(api.posted)
    api.endings.append({"status": "IN_QUEUE"})
    api.faults["run"].append("late")
    task = asyncio.create_task(client.transcribe(talk))
    while len(api.posted) == before:  # noqa: ASYNC110  # the server runs in another thread
        await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert api.cancelled[-1] == list(api.posted)[-1]


async def test_a_job_of_an_earlier_run_is_fetched_and_not_sent_again(client, api, talk):
    jobs: list[QueuedJob] = []
    first = await client.transcribe(talk, callbacks=ProgressCallbacks(sent=jobs.append))
    before = len(api.posted)
    again = await client.transcribe(talk, resume=jobs[0])
    assert again.document == first.document
    assert len(api.posted) == before


@pytest.mark.parametrize("ending", [None, {"status": "CANCELLED"}, {"status": "TIMED_OUT"}])
async def test_a_missing_job_is_sent_again(client, api, talk, ending):
    jobs: list[QueuedJob] = [QueuedJob("expired-e1", 0.0)]
    if ending is not None:
        api.endings.append(ending)
        with pytest.raises((JobCancelled, JobExpired)):
            await client.transcribe(
                talk, callbacks=ProgressCallbacks(sent=lambda job: jobs.insert(0, job))
            )
    assert (await client.transcribe(talk, resume=jobs[0])).text == "440."


# streams


@pytest.fixture
def sentences(tmp_path: Path) -> Path:
    """A recording of three sentences."""
    path = tmp_path / "sentences.wav"
    tones = [np.concatenate([tone(hertz, 1.0), silence(1.0)]) for hertz in (440, 550, 660)]
    path.write_bytes(wav(np.concatenate(tones)))
    return path


@pytest.fixture
def held_results(api: EndpointApi) -> Iterator[None]:
    """No job ends: its results stay in transit."""
    api.results_open = False
    yield
    api.results_open = True


@pytest.mark.usefixtures("held_results")
async def test_a_stream_has_each_sentence_before_the_job_ends_and_then_its_answer(
    client, api, sentences
):
    parts: list[Segment | Answer] = []
    async with aclosing(client.stream(sentences, format="srt")) as stream:
        async for part in stream:
            parts.append(part)
            if len(parts) == 3:
                assert not api.deliveries[list(api.posted)[-1]].bodies
                api.results_open = True
    *segments, answer = parts
    assert [segment.text for segment in segments] == ["440.", "550.", "660."]
    assert [segment.document["id"] for segment in segments] == [0, 1, 2]
    assert segments[1].start_seconds == pytest.approx(2.0, abs=0.1)
    assert segments[1].end_seconds > segments[1].start_seconds
    assert segments[1].document["words"][0]["word"] == "550."
    whole = await client.transcribe(sentences, format="srt")
    assert (answer.document, answer.format) == (whole.document, "srt")
    assert answer.usage.worker == "worker-1"


async def test_a_segment_that_was_delivered_twice_is_yielded_once(client, api, sentences):
    api.faults["job-stream"].append("lose")
    parts = [part async for part in client.stream(sentences)]
    assert len(api.deliveries[list(api.posted)[-1]].chunks) == 4
    assert [part.text for part in parts] == ["440.", "550.", "660.", "440. 550. 660."]


async def test_a_stream_has_no_gap_after_a_lost_segment(web: WebServer, talk):
    def part(number: int) -> dict[str, object]:
        segment = {"id": number, "start": 0.0, "end": 1.0, "text": f"{number}."}
        return {"output": {"segment": segment}}

    def status(**facts: object) -> str:
        return json.dumps({"id": "1", "status": "IN_PROGRESS", **facts})

    url = web.at("/v2/loopback/run", answers(200, status())).removesuffix("/run")
    arriving = [[part(0)], [], [part(2)], [part(3)]]
    ended = {"status": "COMPLETED", "output": {"text": "0. 1. 2. 3."}}
    web.at(
        "/v2/loopback/stream/1",
        in_turn(
            *(answers(200, status(stream=each)) for each in arriving), answers(200, status(**ended))
        ),
    )
    web.at("/v2/loopback/status/1", answers(200, status(**ended)))
    async with AsyncClient(url, KEY) as client:
        texts = [part.text async for part in client.stream(talk)]
    assert texts == ["0.", "0. 1. 2. 3."]


async def test_a_stream_continues_after_a_job_that_failed_for_the_workers_sake(
    client, api, sentences
):
    api.endings.append({"status": "FAILED", "error": "engine_lost: the engine failed"})
    parts = [part async for part in client.stream(sentences)]
    assert [part.text for part in parts] == ["440.", "550.", "660.", "440. 550. 660."]


async def test_a_stream_raises_what_transcribe_raises(client, api, tmp_path):
    path = tmp_path / "noise.mp3"
    path.write_text("no audio at all" * 100)
    with pytest.raises(AudioUndecodable):
        await anext(client.stream(path))
    with pytest.raises(SourceNotFound):
        await anext(client.stream(tmp_path / "none.wav"))
    before = sum(api.received.values())
    with pytest.raises(InvalidRequest):
        await anext(client.stream(path, language="xx"))
    assert sum(api.received.values()) == before


@pytest.mark.usefixtures("held_results")
async def test_closing_a_stream_or_its_client_cancels_the_job(api, sentences):
    async with AsyncClient(api.url, KEY) as client:
        stream = client.stream(sentences)
        assert isinstance(await anext(stream), Segment)
        await stream.aclose()
        assert api.cancelled[-1] == list(api.posted)[-1]
        stream = client.stream(sentences)
        assert isinstance(await anext(stream), Segment)
    assert api.cancelled[-1] == list(api.posted)[-1]
    assert len(set(api.cancelled[-2:])) == 2


async def test_cancelling_the_reader_of_a_stream_cancels_the_job(client, api, talk):
    api.endings.append({"status": "IN_QUEUE"})
    before = len(api.posted)
    reader = asyncio.ensure_future(anext(client.stream(talk)))
    while len(api.posted) == before:  # noqa: ASYNC110  # the server runs in another thread
        await asyncio.sleep(0.01)
    reader.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reader
    assert api.cancelled[-1] == list(api.posted)[-1]


# without async


def test_a_stream_without_async_is_the_same(api, sentences):
    with Client(api.url, KEY) as client:
        parts = list(client.stream(sentences))
        assert [part.text for part in parts] == ["440.", "550.", "660.", "440. 550. 660."]
        with pytest.raises(SourceNotFound):
            next(client.stream(sentences.with_name("none.wav")))


@pytest.mark.usefixtures("held_results")
def test_a_stream_that_is_left_early_without_async_cancels_the_job(api, sentences):
    with Client(api.url, KEY) as client:
        for part in client.stream(sentences):
            assert part.text == "440."
            break
        assert api.cancelled[-1] == list(api.posted)[-1]
        stream = client.stream(sentences)
        next(stream)
    assert api.cancelled[-1] == list(api.posted)[-1]
    stream.close()


def test_threads_share_a_client_and_get_their_own_answers(api):
    pitches = list(range(300, 700, 50))
    with Client(api.url, KEY) as client, ThreadPoolExecutor(8) as callers:
        message = callers.map(lambda hertz: client.transcribe(wav(tone(hertz, 0.8))).text, pitches)
        assert list(message) == [f"{hertz}." for hertz in pitches]
    client.close()


@pytest.mark.parametrize("received", ["run", "status"], ids=["without its id", "with its id"])
def test_closing_a_client_ends_the_calls_of_other_threads_and_cancels_their_jobs(
    api, talk, received
):
    api.endings.append({"status": "IN_QUEUE"})
    api.faults["run"].append("late" if received == "run" else None)
    posted, requests = len(api.posted), api.received[received]
    with ThreadPoolExecutor(1) as callers:
        with Client(api.url, KEY) as client:
            waiting = callers.submit(client.transcribe, talk)
            api.wait_until(lambda: len(api.posted) > posted and api.received[received] > requests)
        with pytest.raises(CancelledError):
            waiting.result(timeout=60)
    assert api.cancelled[-1] == list(api.posted)[-1]


def test_a_closed_client_refuses_calls(api, talk):
    client = Client(api.url, KEY)
    client.close()
    with pytest.raises(RuntimeError, match="closed"):
        client.transcribe(talk)


def test_ctrl_c_in_a_program_cancels_its_job(api, talk):
    api.endings.append({"status": "IN_QUEUE"})
    before = len(api.posted)
    program = (
        "import sys\n"
        "from parakeet_worker import Client\n"
        "with Client(sys.argv[1], sys.argv[2]) as client:\n"
        "    client.transcribe(sys.argv[3])\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, api.url, KEY, str(talk)], stderr=subprocess.PIPE, text=True
    ) as process:
        api.wait_until(lambda: len(api.posted) > before)
        process.send_signal(signal.SIGINT)
        try:
            _, message = process.communicate(timeout=60)
        finally:
            process.kill()
    assert "KeyboardInterrupt" in message
    assert api.cancelled[-1:] == list(api.posted)[before:]


def test_the_two_clients_take_the_same_options():
    for name in ("__init__", "transcribe", "stream"):
        plain = inspect.signature(getattr(Client, name)).parameters
        with_async = inspect.signature(getattr(AsyncClient, name)).parameters
        extra = {"callbacks", "resume"} if name == "transcribe" else set()
        assert {**plain}.keys() == with_async.keys() - extra


# RunPod's own client


def test_runpods_own_client_talks_to_the_worker_through_the_same_api(api, talk, tmp_path):
    program = (
        "import base64, json, sys, runpod\n"
        "audio = base64.b64encode(open(sys.argv[1], 'rb').read()).decode()\n"
        "endpoint = runpod.Endpoint('loopback', api_key=sys.argv[2])\n"
        "job = endpoint.run({'audio_base64': audio})\n"
        "texts = [job.output(timeout=30), endpoint.run_sync({'audio_base64': audio})]\n"
        "bad = endpoint.run({'audio_base64': '?'})\n"
        "bad.output(timeout=30)\n"
        "print(json.dumps([*texts, bad.status(), endpoint.health()['jobs']['inQueue']]))\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program, str(talk), KEY],
        env={
            "PATH": os.environ["PATH"],
            "HOME": str(tmp_path),
            "RUNPOD_ENDPOINT_BASE_URL": api.base_url,
        },
        capture_output=True, text=True, timeout=90, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.splitlines()[-1] == '[{"text": "440."}, {"text": "440."}, "FAILED", 0]'
