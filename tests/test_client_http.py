"""The client and the command line against a real `parakeet serve`."""

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import aiohttp.web
import numpy as np
import pytest
from click.testing import CliRunner

from faulty_worker import FaultyEngine, HeldEngine
from http_server import serving, until
from loopback import Behaviour, WebServer, answers, drops, in_turn, sends
from parakeet_worker import AsyncClient, Client, Segment
from parakeet_worker.client.http_client import Retry
from parakeet_worker.client.transports import ProgressCallbacks
from parakeet_worker.entrypoints.cli import main
from parakeet_worker.errors import (
    AudioTooLarge,
    AudioUndecodable,
    EndpointDenied,
    EndpointRefused,
    EndpointUnreachable,
    EngineLost,
    OutOfMemory,
    Overloaded,
)
from recordings import noise, silence, tone, wav

KEY = "sesame"
MAX_AUDIO_BYTES = 60_000


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Its URL immediately, while the model may still be loading."""
    home = tmp_path_factory.mktemp("server")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    settings = {
        "PARAKEET_ENGINE": "tones",
        "PARAKEET_API_KEYS": KEY,
        "PARAKEET_MAX_AUDIO_BYTES": str(MAX_AUDIO_BYTES),
        "PARAKEET_SCRATCH": str(home),
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-m", "parakeet_worker.entrypoints.cli", "serve"]
    with (home / "log").open("w") as log:
        process = subprocess.Popen(
            [*command, "--port", str(port)],
            env={"PATH": os.environ["PATH"], "HOME": str(home), **settings},
            stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@pytest.fixture
def talk(tmp_path: Path) -> Path:
    path = tmp_path / "talk.wav"
    path.write_bytes(wav(tone(440, 0.8)))
    return path


def metric(server: str, name: str) -> float:
    request = urllib.request.Request(
        f"{server}/metrics", headers={"Authorization": f"Bearer {KEY}"}
    )
    with urllib.request.urlopen(request) as response:
        lines = response.read().decode().splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith(name))


def test_a_server_that_is_only_starting_is_waited_for(server, talk):
    with Client(server, KEY) as client:
        answer = client.transcribe(talk)
        assert answer.document == {"text": "440."}
        assert answer.usage.audio_seconds == pytest.approx(0.8)
        assert answer.usage.executed_seconds is not None
        clipped = client.transcribe(
            talk.read_bytes(), format="verbose_json", start_seconds=0.4, language="de"
        )
        assert clipped.document["segments"][0]["start"] == pytest.approx(0.4, abs=0.1)


async def test_the_servers_errors_are_raised_as_what_they_are(server, tmp_path):
    (tmp_path / "text.mp3").write_text("no audio\n" * 100)
    async with AsyncClient(server, KEY) as client:
        with pytest.raises(AudioUndecodable):
            await client.transcribe(tmp_path / "text.mp3")
    async with AsyncClient(server, "wrong") as client:
        with pytest.raises(EndpointDenied, match="check the API key"):
            await client.transcribe(tmp_path / "text.mp3")
    async with AsyncClient(f"{server}/elsewhere", KEY) as client:
        with pytest.raises(EndpointDenied, match="does not exist"):
            await client.transcribe(tmp_path / "text.mp3")


async def test_a_file_over_the_servers_limit_is_sent_re_encoded(server, tmp_path):
    path = tmp_path / "long.wav"
    path.write_bytes(wav(tone(440, 4.0)))
    assert path.stat().st_size > MAX_AUDIO_BYTES
    async with AsyncClient(server, KEY) as client:
        assert (await client.transcribe(path)).text == "440."
        path.write_bytes(wav(noise(60.0, level=0.3)))
        with pytest.raises(AudioTooLarge) as raised:
            await client.transcribe(path)
    assert raised.value.facts["limit"] == MAX_AUDIO_BYTES


async def test_who_is_cancelled_hangs_up(web: WebServer, talk):
    async def waits(request):
        await request.read()
        await asyncio.Event().wait()

    web.at("/transcribe", waits)
    async with AsyncClient(web.address) as client:
        task = asyncio.create_task(client.transcribe(talk))
        await web.reached.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.wait_for(web.left.wait(), 10)


# streams


def test_a_stream_has_the_sentences_and_the_answer_of_a_server(server, tmp_path):
    path = tmp_path / "three.wav"
    tones = [np.concatenate([tone(hertz, 0.4), silence(0.2)]) for hertz in (440, 550, 660)]
    path.write_bytes(wav(np.concatenate(tones)))
    with Client(server, KEY) as client:
        *segments, answer = client.stream(path, format="vtt")
        whole = client.transcribe(path, format="vtt")
        with pytest.raises(AudioUndecodable):
            next(client.stream(b"no audio\n" * 100))
    assert all(isinstance(segment, Segment) for segment in segments)
    assert [segment.text for segment in segments] == ["440.", "550.", "660."]
    assert answer.document == whole.document
    assert answer.usage.audio_seconds == whole.usage.audio_seconds


async def test_a_stream_has_sentences_during_the_transcription_and_closing_it_cancels_that(
    tmp_path,
):
    engine = HeldEngine(batches=1)
    recording = wav(tone(440, 60.0))
    async with serving(tmp_path, engine) as running, AsyncClient(running.url) as client:
        try:
            stream = client.stream(recording)
            assert isinstance(await anext(stream), Segment)
            assert await asyncio.to_thread(engine.held.wait, 60)
            await stream.aclose()
            await until(lambda: running.inside == 0)
            assert await running.metric('parakeet_recordings_total{outcome="cancelled"}') == 1
        finally:
            engine.released.set()


@pytest.mark.usefixtures("without_waits")
async def test_a_stream_raises_what_its_transcription_ends_with(tmp_path):
    # No more than 16 chunks are at the engine at a time, and each is a batch: by the 21st the first
    # sentence was sent.
    engine = FaultyEngine(0, batches=20)
    recording = wav(tone(440, 60.0))
    async with (
        serving(tmp_path, engine, segment_seconds=2, batch_seconds=2) as running,
        AsyncClient(running.url) as client,
    ):
        stream = client.stream(recording)
        assert isinstance(await anext(stream), Segment)
        with pytest.raises(EngineLost):
            _ = [part async for part in stream]


def event(name: str, **document: object) -> bytes:
    return f"event: {name}\ndata: {json.dumps(document, ensure_ascii=False)}\n\n".encode()


def sentence(number: int) -> bytes:
    return event("segment", id=number, start=0.0, end=1.0, text=f"{number}\u2028.")


def stream_of(*events: bytes, whole: bool = True) -> Behaviour:
    """Server-sent events in small packets; then the connection is closed, or broken."""

    async def behave(request: aiohttp.web.Request) -> aiohttp.web.StreamResponse:
        response = aiohttp.web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        content = b"".join([b": keep-alive\n\n", *events])
        for start in range(0, len(content), 7):
            await response.write(content[start : start + 7])
        if not whole:
            assert request.transport is not None
            request.transport.close()
        return response

    return behave


@pytest.mark.usefixtures("without_waits")
@pytest.mark.parametrize(
    "end",
    [
        stream_of(sentence(0), sentence(1), whole=False),
        stream_of(sentence(0), sentence(1)),
        stream_of(sentence(0), event("error", error="engine_lost: x", code="engine_lost")),
    ],
)
async def test_a_stream_continues_after_a_broken_one(web: WebServer, talk, end):
    whole = stream_of(*map(sentence, range(3)), event("result", text="all"))
    web.at("/transcribe", in_turn(end, whole))
    async with AsyncClient(web.address) as client:
        parts = [part.text async for part in client.stream(talk)]
    assert parts == ["0\u2028.", "1\u2028.", "2\u2028.", "all"]
    assert len(web.received) == 2


@pytest.mark.parametrize(
    "end", [b"event: result\ndata: {\n\n", event("error", error="odd: x"), event("result", a=1)]
)
async def test_a_stream_that_ends_with_something_else_is_refused(web: WebServer, talk, end):
    web.at("/transcribe", stream_of(sentence(0), end))
    async with AsyncClient(web.address) as client:
        with pytest.raises(EndpointRefused):
            _ = [part async for part in client.stream(talk)]
    assert len(web.received) == 1


ANSWER = b'{"text": "440."}'


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


async def test_a_refused_connection_is_repeated_for_a_time_of_its_own(talk):
    retries: list[Retry] = []
    address = f"http://127.0.0.1:{free_port()}"
    async with AsyncClient(address, retry_seconds=300, refused_seconds=1.0) as client:
        with pytest.raises(EndpointUnreachable, match="onnect"):
            await client.transcribe(talk, callbacks=ProgressCallbacks(retrying=retries.append))
    assert retries
    assert all(0 < retry.seconds_left <= 1.0 for retry in retries)
    assert {retry.url for retry in retries} == {f"{address}/transcribe"}


def test_the_command_line_shows_what_it_retries(talk):
    address = f"http://127.0.0.1:{free_port()}"
    program = [sys.executable, "-m", "parakeet_worker.entrypoints.cli"]
    process = subprocess.Popen(
        [*program, "transcribe", talk, "-e", address], stderr=subprocess.PIPE, text=True
    )
    with process:
        assert process.stderr is not None
        line = process.stderr.readline()
        process.send_signal(signal.SIGINT)
        rest = process.stderr.read()
    assert re.fullmatch(
        rf"parakeet: {address}/transcribe: [^/]+; retrying for up to 1[45] s\n", line
    )
    assert (rest, process.returncode) == (
        "parakeet: interrupted; run the same command again to resume\n", 130,
    )  # fmt: skip


@pytest.mark.usefixtures("without_waits")
@pytest.mark.parametrize(
    "fault",
    [
        answers(429),
        answers(500),
        answers(502, "<html>Bad gateway</html>"),
        answers(503, '{"error": "overloaded: full", "code": "overloaded"}'),
        answers(500, '{"error": "engine_lost: x", "code": "engine_lost"}'),
        answers(400, "timed out waiting for worker"),
        drops(),
        drops(b'{"te', 16),
    ],
)
async def test_passing_faults_are_outlived(web: WebServer, talk, fault):
    web.at("/transcribe", in_turn(fault, fault, sends(ANSWER)))
    async with AsyncClient(web.address) as client:
        assert (await client.transcribe(talk)).text == "440."
    assert len(web.received) == 3


@pytest.mark.usefixtures("without_waits")
@pytest.mark.parametrize(
    ("status", "body", "error"),
    [
        (400, "bad", EndpointRefused),
        (200, "<html>", EndpointRefused),
        (200, '{"answer": 42}', EndpointRefused),
        (500, '{"error": "out_of_memory: 30 s", "code": "out_of_memory"}', OutOfMemory),
        (403, "no", EndpointDenied),
        (404, "nothing", EndpointDenied),
    ],
)
async def test_permanent_failures_are_raised_immediately(web: WebServer, talk, status, body, error):
    web.at("/transcribe", answers(status, body))
    async with AsyncClient(web.address) as client:
        with pytest.raises(error):
            await client.transcribe(talk)
    assert len(web.received) == 1


@pytest.mark.usefixtures("without_waits")
@pytest.mark.parametrize(
    ("code", "error"), [("overloaded", Overloaded), ("engine_lost", EngineLost)]
)
async def test_a_lasting_failure_is_raised_with_its_cause(web: WebServer, talk, code, error):
    web.at("/transcribe", answers(503, f'{{"error": "{code}: x", "code": "{code}"}}'))
    async with AsyncClient(web.address, retry_seconds=30) as client:
        with pytest.raises(error):
            await client.transcribe(talk)


def test_a_second_run_over_a_folder_sends_nothing(server, talk, monkeypatch):
    monkeypatch.chdir(talk.parent)

    def run(**settings: str) -> tuple[int, str, str]:
        environment = {"PARAKEET_API_KEY": KEY, **settings}
        ran = CliRunner().invoke(
            main, ["transcribe", ".", "-q", "-e", server, "-f", "vtt"], env=environment
        )
        return ran.exit_code, ran.stdout, ran.stderr

    assert run(PARAKEET_API_KEY="wrong")[0] == 2
    before = metric(server, "parakeet_jobs_total")
    assert run() == (0, "", "")
    assert (talk.parent / "talk.vtt").read_text().endswith("440.\n\n")
    assert metric(server, "parakeet_jobs_total") > before
    before = metric(server, "parakeet_jobs_total")
    assert run() == (0, "", "")
    assert metric(server, "parakeet_jobs_total") == before
