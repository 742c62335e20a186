"""The real RunPod SDK in front of the worker: one test input, its local API, and its job loop."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from base64 import b64encode
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import recordings
from job_api import JobApi, running_worker
from parakeet_worker.entrypoints.serverless import handler_of
from parakeet_worker.settings import Settings
from parakeet_worker.worker import open_pipeline

ROOT = Path(__file__).resolve().parent.parent
SCRIPTED = {"PARAKEET_ENGINE": "scripted"}


def tone(hertz: int, seconds: float = 0.8) -> str:
    return b64encode(recordings.wav(recordings.tone(hertz, seconds))).decode()


def plain_environment(home: Path) -> dict[str, str]:
    return {"PATH": os.environ["PATH"], "HOME": str(home), **SCRIPTED}


def run_handler(home: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, str(ROOT / "handler.py"), *arguments],
        cwd=home,
        env=plain_environment(home),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_a_test_input_on_the_command_line_is_answered(tmp_path: Path) -> None:
    job = {"input": {"audio_base64": tone(440)}}
    ended = run_handler(tmp_path, "--test_input", json.dumps(job))
    assert ended.returncode == 0, ended.stderr
    assert "{'output': {'text': '440.'}}" in ended.stdout


def test_a_test_input_in_a_file_is_answered_and_a_bad_one_fails(tmp_path: Path) -> None:
    (tmp_path / "test_input.json").write_text('{"input": {"audio_base64": "?"}}')
    ended = run_handler(tmp_path)
    assert ended.returncode == 1
    assert "invalid_request: audio_base64" in ended.stdout


def test_an_unknown_setting_stops_the_worker_with_the_nearest_name(tmp_path: Path) -> None:
    ended = subprocess.run(
        [sys.executable, str(ROOT / "handler.py")],
        cwd=tmp_path,
        env={**plain_environment(tmp_path), "PARAKEET_MODELL": "demo"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 1
    assert "PARAKEET_MODELL" in ended.stderr
    assert "did you mean PARAKEET_MODEL?" in ended.stderr


def test_a_missing_model_stops_the_worker_before_any_job(tmp_path: Path) -> None:
    with JobApi() as api:
        api.submit("never", {"audio_base64": tone(440)})
        missing = {"PARAKEET_MODEL": str(tmp_path / "nothing.nemo")}
        with running_worker(api, tmp_path, missing) as worker:
            output, _ = worker.communicate(timeout=60)
        assert worker.returncode == 1
        assert "weights_missing" in output
        assert api.takes == 0


@pytest.fixture(scope="module")
def local_api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """handler.py under the SDK's own HTTP server."""
    home = tmp_path_factory.mktemp("home")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, str(ROOT / "handler.py"), "--rp_serve_api"]
    log = (home / "log").open("w+")
    server = subprocess.Popen(
        [*command, "--rp_api_host", "127.0.0.1", "--rp_api_port", str(port)],
        cwd=home,
        env=plain_environment(home),
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(600):
            assert server.poll() is None, (home / "log").read_text()
            try:
                urllib.request.urlopen(f"{url}/docs", timeout=5).close()
                break
            except urllib.error.HTTPError:
                break
            except OSError:
                time.sleep(0.1)
        yield url
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()
        log.close()


def post(url: str, body: object) -> Any:
    request = urllib.request.Request(
        url, json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as response:
        return json.load(response)


def test_the_local_api_answers_callers_side_by_side_each_with_his_own_words(
    local_api: str,
) -> None:
    pitches = list(range(300, 1100, 50))

    def ask(hertz: int) -> Any:
        return post(f"{local_api}/runsync", {"input": {"audio_base64": tone(hertz)}})

    with ThreadPoolExecutor(8) as callers:
        answers = list(callers.map(ask, pitches))
    assert [answer["output"]["text"] for answer in answers] == [f"{hertz}." for hertz in pitches]


def test_the_local_api_passes_errors_on_and_goes_on(local_api: str) -> None:
    bad = post(f"{local_api}/runsync", {"input": {"audio_url": "http://127.0.0.1/a.wav"}})
    assert str(bad["error"]).startswith("source_forbidden: ")
    good = post(f"{local_api}/runsync", {"input": {"audio_base64": tone(500)}})
    assert good["output"] == {"text": "500."}


def test_the_job_loop_answers_every_job_with_its_own_words(tmp_path: Path) -> None:
    pitches = list(range(300, 1300, 50))
    with JobApi() as api:
        for hertz in pitches:
            api.submit(f"job-{hertz}", {"audio_base64": tone(hertz)})
        api.submit("bad", {"audio_base64": "?"})
        with running_worker(api, tmp_path, SCRIPTED):
            for hertz in pitches:
                assert api.result(f"job-{hertz}") == {"output": {"text": f"{hertz}."}}
            bad = api.result("bad")
            api.submit("after", {"inputs": [{"audio_base64": tone(440)}, {"audio_base64": "?"}]})
            after = api.result("after")["output"]
    # The platform takes a job for failed only where `error` is a string.
    assert bad["error"].startswith("invalid_request: audio_base64: ")
    assert bad["output"]["code"] == "invalid_request"
    assert bad["output"]["field"] == "audio_base64"
    assert after[0] == {"text": "440."}
    assert after[1]["error"].startswith("invalid_request: ")


@pytest.mark.parametrize("job", [{}, {"input": None}, {"input": []}, {"input": "text"}])
async def test_a_job_without_an_input_object_is_the_callers_error(
    tmp_path: Path, job: dict[str, Any]
) -> None:
    with open_pipeline(Settings(engine="scripted", scratch=tmp_path)) as pipeline:
        answer = await handler_of(pipeline)(job)
    assert isinstance(answer, dict)
    assert answer["error"].startswith("invalid_request: input: must be an object")


async def test_a_lost_engine_asks_the_platform_for_a_new_worker(tmp_path: Path) -> None:
    with open_pipeline(Settings(engine="scripted", scratch=tmp_path)) as pipeline:
        handle = handler_of(pipeline)
        pipeline.batcher.close()
        answer = await handle({"id": "1", "input": {"audio_base64": tone(440)}})
    assert isinstance(answer, dict)
    assert answer["error"].startswith("engine_lost: ")
    assert answer["refresh_worker"] is True
