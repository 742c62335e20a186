"""The server as a process: start, transcription, shutdown."""

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import openai
import psutil
import pytest

import recordings
from confined import held_ffmpeg
from http_server import PATIENCE_SECONDS, Process, figure, running_server
from speech import SAMPLES, all_samples
from test_http_routes import TEXT, TONE

SCRIPTED = {"PARAKEET_ENGINE": "tones"}


def upload(server: Process, content: bytes = TONE) -> httpx.Response:
    return httpx.post(f"{server.url}/transcribe", files={"file": content}, timeout=PATIENCE_SECONDS)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    """The demo checkpoint, which transcribes real speech."""
    home = tmp_path_factory.mktemp("demo")
    with running_server(home, {}, "--model", "demo") as server:
        yield server
        server.wait_until_ready()
        server.process.send_signal(signal.SIGTERM)
        assert server.ended() == 0, server.log.read_text()
        assert list(server.scratch.iterdir()) == []


@pytest.fixture(scope="module")
def client(demo: Process) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(api_key="none", base_url=f"{demo.url}/v1") as made:
        yield made


def test_it_answers_warming_before_the_model_is_loaded(demo: Process) -> None:
    # The first request, directly after the line with the address.
    assert httpx.get(f"{demo.url}/ping", timeout=PATIENCE_SECONDS).status_code == 204
    assert upload(demo).status_code == 503
    demo.wait_until_ready()


@pytest.mark.parametrize("file", ["en.ogg", "de.ogg", "fr.m4a"])
def test_openais_client_transcribes_a_recording(
    demo: Process, client: openai.OpenAI, file: str
) -> None:
    demo.wait_until_ready()
    message = next(entry.text for entry in all_samples() if entry.file == file)
    with (SAMPLES / file).open("rb") as recording:
        transcribed = client.audio.transcriptions.create(file=recording, model="demo")
    assert transcribed.text == message
    with (SAMPLES / file).open("rb") as recording:
        events = list(client.audio.transcriptions.create(file=recording, model="demo", stream=True))
    assert "".join(event.delta for event in events[:-1]) == message  # type: ignore[union-attr]
    with (SAMPLES / file).open("rb") as recording:
        verbose = client.audio.transcriptions.create(
            file=recording, model="whisper-1", response_format="verbose_json",
            timestamp_granularities=["word", "segment"],
        )  # fmt: skip
    assert " ".join(word.word for word in verbose.words or []) == message
    assert verbose.language
    assert client.models.list().data[0].id == "demo"


def test_thirty_two_concurrent_clients_get_their_own_transcripts(
    demo: Process, client: openai.OpenAI
) -> None:
    demo.wait_until_ready()
    requested = [entry for entry in all_samples() if entry.seconds < 10][:8] * 4
    assert len(requested) == 32
    before = psutil.Process(demo.process.pid).memory_info().rss

    def text(file: str) -> str:
        with (SAMPLES / file).open("rb") as recording:
            return client.audio.transcriptions.create(file=recording, model="demo").text

    with ThreadPoolExecutor(32) as callers:
        transcribed = list(callers.map(text, [entry.file for entry in requested]))
    assert transcribed == [entry.text for entry in requested]
    page = httpx.get(f"{demo.url}/metrics").text
    assert figure(page, "parakeet_batches_total") < figure(page, "parakeet_batch_chunks_total")
    assert psutil.Process(demo.process.pid).memory_info().rss - before < 1 << 30


def test_both_ports_are_served_and_the_variables_name_them(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        health = str(probe.getsockname()[1])
    module = "parakeet_worker.entrypoints.http"
    with running_server(tmp_path, {**SCRIPTED, "PORT_HEALTH": health}, module=module) as server:
        server.wait_until_ready()
        assert httpx.get(f"http://127.0.0.1:{health}/ping").status_code == 200
        assert upload(server).json() == {"text": TEXT}


def test_a_signal_lets_what_runs_finish_and_nothing_begin(tmp_path: Path) -> None:
    # Each batch is longer than the whole recording takes to upload.
    with running_server(tmp_path, {**SCRIPTED, "PARAKEET_SEGMENT_SECONDS": "2"}) as server:
        server.wait_until_ready()
        long = recordings.wav(recordings.tone(440, 1800))
        answers: list[httpx.Response] = []
        call = threading.Thread(target=lambda: answers.append(upload(server, long)))
        call.start()
        ends = time.monotonic() + PATIENCE_SECONDS
        while not figure(httpx.get(f"{server.url}/metrics").text, "parakeet_batches_total"):
            assert time.monotonic() < ends
        server.process.send_signal(signal.SIGTERM)
        while _accepts(server):
            assert time.monotonic() < ends
        call.join(PATIENCE_SECONDS)
        assert answers[0].status_code == 200
        assert server.ended() == 0
        assert list(server.scratch.iterdir()) == []


def test_a_bucket_that_trickles_does_not_keep_the_process_alive(tmp_path: Path) -> None:
    with trickling_bucket() as (endpoint, sent):
        bucket = {
            "S3_ENDPOINT": endpoint, "S3_BUCKET": "talks", "S3_ACCESS_KEY": "a",
            "S3_SECRET_KEY": "b", "PARAKEET_STOP_TIMEOUT_SECONDS": "1",
        }  # fmt: skip
        with (
            running_server(tmp_path, {**SCRIPTED, **bucket}) as server,
            ThreadPoolExecutor(3) as callers,
        ):
            server.wait_until_ready()
            payload = {"audio_s3": {"key": "talk.wav"}}
            for _ in range(3):
                callers.submit(post, server, payload)
            assert sent.wait(PATIENCE_SECONDS)
            server.process.send_signal(signal.SIGTERM)
            server.process.wait(20)


def post(server: Process, payload: Mapping[str, object]) -> None:
    with suppress(httpx.HTTPError):
        httpx.post(f"{server.url}/transcribe", json=payload, timeout=PATIENCE_SECONDS)


@contextmanager
def trickling_bucket() -> Iterator[tuple[str, threading.Event]]:
    """An S3 service that sends a byte each 0.25 s, for longer than any test waits.

    Yields its address, and an event that is set when it has sent a byte.
    """
    sent, ended = threading.Event(), threading.Event()

    class Trickle(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", "1000000")
            self.end_headers()
            with suppress(OSError):
                while not ended.wait(0.25):
                    self.wfile.write(b"x")
                    sent.set()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Trickle) as bucket:
        serving = threading.Thread(target=bucket.serve_forever, daemon=True)
        serving.start()
        try:
            yield f"http://127.0.0.1:{bucket.server_address[1]}", sent
        finally:
            ended.set()
            bucket.shutdown()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_process_group_lets_ffmpeg_finish(
    tmp_path: Path, number: signal.Signals
) -> None:
    variables = {**SCRIPTED, "PARAKEET_FFMPEG": str(held_ffmpeg(tmp_path))}
    with running_server(tmp_path, variables) as server, ThreadPoolExecutor(1) as caller:
        server.wait_until_ready()
        # Of another rate, so that ffmpeg decodes it.
        call = caller.submit(upload, server, recordings.wav(recordings.tone(440, 0.8, 8000), 8000))
        ends = time.monotonic() + PATIENCE_SECONDS
        while not (tmp_path / "started").exists():
            assert time.monotonic() < ends
        os.killpg(server.process.pid, number)
        while _accepts(server):
            assert time.monotonic() < ends
        (tmp_path / "go").touch()
        assert call.result(PATIENCE_SECONDS).json() == {"text": "440."}
        assert server.ended() == 0


def test_a_recording_whose_ingest_process_is_killed_is_answered(tmp_path: Path) -> None:
    started, go = tmp_path / "started", tmp_path / "go"
    variables = {
        **SCRIPTED,
        "PARAKEET_FFMPEG": str(held_ffmpeg(tmp_path)),
        "PARAKEET_INGEST_PROCESSES": "2",
    }
    content = recordings.wav(recordings.tone(440, 0.8, 8000), 8000)
    with running_server(tmp_path, variables) as server, ThreadPoolExecutor(1) as caller:
        server.wait_until_ready()
        call = caller.submit(upload, server, content)
        while (parent := decoding_process(started)) == server.process.pid:
            # A thread decodes while the processes start.
            go.touch()
            assert call.result(PATIENCE_SECONDS).json() == {"text": "440."}
            go.unlink()
            started.unlink()
            call = caller.submit(upload, server, content)
        started.unlink()
        os.kill(parent, signal.SIGKILL)
        assert decoding_process(started) not in (parent, server.process.pid)
        go.touch()
        assert call.result(PATIENCE_SECONDS).json() == {"text": "440."}
        assert upload(server, content).json() == {"text": "440."}


def decoding_process(started: Path) -> int:
    """The id of the process that starts the next `held_ffmpeg`."""
    ends = time.monotonic() + PATIENCE_SECONDS
    while not started.exists():
        assert time.monotonic() < ends
        time.sleep(0.01)
    return int(started.read_text())


def test_few_descriptors_are_left_to_requests_where_connections_are_many(tmp_path: Path) -> None:
    prefix = ["prlimit", "--nofile=256:256"]
    with running_server(tmp_path, SCRIPTED, prefix=prefix) as server, ExitStack() as open_:
        server.wait_until_ready()
        address = ("127.0.0.1", httpx.URL(server.url).port or 0)
        for _ in range(320):
            with suppress(OSError):
                open_.enter_context(socket.create_connection(address, timeout=5))
        for _ in range(3):
            answer = httpx.get(f"{server.url}/ping", timeout=10)
            assert answer.status_code in (200, 503)
        message = server.log.read_text()
        open_.close()
        server.wait_until_ready()
        assert upload(server).json() == {"text": TEXT}
    assert (message.count("Traceback"), len(message.splitlines()) < 50) == (0, True)


def _accepts(server: Process) -> bool:
    try:
        httpx.get(f"{server.url}/ping")
    except httpx.TransportError:
        return False
    return True


def test_a_lost_engine_ends_the_process_with_a_word(tmp_path: Path) -> None:
    with running_server(tmp_path, SCRIPTED, "1", module="faulty_server") as server:
        server.wait_until_ready()
        assert upload(server).json() == {"text": TEXT}
        lost = upload(server)
        assert (lost.status_code, lost.json()["code"]) == (500, "engine_lost")
        assert server.ended() == 1
        assert "the engine is lost" in server.log.read_text()
        assert list(server.scratch.iterdir()) == []


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"PARAKEET_MODEL": "/missing.nemo"}, "weights_missing"),
        ({**SCRIPTED, "PARAKEET_API_KEYS": ","}, "invalid_setting: PARAKEET_API_KEYS"),
        ({**SCRIPTED, "PORT": "99999"}, "invalid_setting: PORT"),
        ({**SCRIPTED, "PORT": "taken"}, "invalid_setting: PORT"),
    ],
)
def test_a_startup_failure_is_reported_and_exits(
    tmp_path: Path, variables: dict[str, str], message: str
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        if variables.get("PORT") == "taken":
            variables = {**variables, "PORT": str(taken.getsockname()[1])}
        environment = {"HOME": str(tmp_path), "PATH": "/usr/bin:/bin", "PORT": "0", **variables}
        ended = subprocess.run(
            [sys.executable, "-m", "parakeet_worker.entrypoints.cli", "serve"],
            env=environment, capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=False,
        )  # fmt: skip
    assert ended.returncode == 1
    assert f"parakeet: {message}" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_server_without_a_working_ffmpeg_does_not_serve(tmp_path: Path) -> None:
    with running_server(tmp_path, {**SCRIPTED, "PARAKEET_FFMPEG": "/bin/false"}) as server:
        assert server.ended() == 1
        last = server.log.read_text().splitlines()[-1]
        assert last == "parakeet: /bin/false exits with status 1"


def test_each_retry_of_a_source_is_a_line_with_the_time_left(tmp_path: Path) -> None:
    private = {"PARAKEET_ALLOW_PRIVATE_ADDRESSES": "true"}
    with running_server(tmp_path, {**SCRIPTED, **private}) as server:
        server.wait_until_ready()
        job = {"audio_url": "http://127.0.0.1:9/a.wav?key=secret"}
        answer = httpx.post(f"{server.url}/transcribe", json=job, timeout=PATIENCE_SECONDS)
        assert answer.json()["code"] == "source_unreachable"
        log = server.log.read_text()
        assert re.search(r"attempt 4 failed, .* s left: .*http://127.0.0.1:9/a.wav: Cannot", log)
        assert "stamina" not in log
        assert "secret" not in log


def test_a_clients_key_in_place_of_the_servers_is_noticed(tmp_path: Path) -> None:
    with running_server(tmp_path, {**SCRIPTED, "PARAKEET_API_KEY": "mine"}) as server:
        server.wait_until_ready()
        assert "the server reads PARAKEET_API_KEYS" in server.log.read_text()
