"""The real RunPod SDK in front of the worker: one test input, its local API, and its job loop."""

import asyncio
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from base64 import b64decode, b64encode
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

import recordings
from confined import held_ffmpeg, mounted
from endpoint_api import KEY, EndpointApi
from http_server import PATIENCE_SECONDS
from job_api import JobApi, running_worker
from loopback import WebServer, sends, trickles
from parakeet_worker.entrypoints.queue.main import handler_of
from parakeet_worker.settings import Settings
from parakeet_worker.worker import open_pipeline

ROOT = Path(__file__).resolve().parent.parent
SCRIPTED = {"PARAKEET_ENGINE": "tones"}


def tone(hertz: int, seconds: float = 0.8, rate: int = recordings.RATE) -> str:
    return b64encode(recordings.wav(recordings.tone(hertz, seconds, rate), rate)).decode()


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
        ends = time.monotonic() + PATIENCE_SECONDS
        while True:
            assert server.poll() is None, (home / "log").read_text()
            assert time.monotonic() < ends, (home / "log").read_text()
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


def test_the_local_api_answers_concurrent_callers_with_their_own_words(
    local_api: str,
) -> None:
    pitches = list(range(300, 1100, 50))

    def send(hertz: int) -> Any:
        return post(f"{local_api}/runsync", {"input": {"audio_base64": tone(hertz)}})

    with ThreadPoolExecutor(8) as callers:
        answers = list(callers.map(send, pitches))
    assert [answer["output"]["text"] for answer in answers] == [f"{hertz}." for hertz in pitches]


def test_the_local_api_returns_errors_and_continues(local_api: str) -> None:
    bad = post(f"{local_api}/runsync", {"input": {"audio_url": "http://127.0.0.1/a.wav"}})
    assert str(bad["error"]).startswith("source_forbidden: ")
    good = post(f"{local_api}/runsync", {"input": {"audio_base64": tone(500)}})
    assert good["output"] == {"text": "500."}


def local_job(local_api: str, job_input: dict[str, Any]) -> str:
    accepted = post(f"{local_api}/run", {"input": job_input})
    return str(accepted["id"])


def test_the_local_api_streams_segments_and_keeps_the_answer_for_status(local_api: str) -> None:
    job = local_job(local_api, {"audio_base64": tone(600), "stream": True})
    streamed = post(f"{local_api}/stream/{job}", {})
    assert streamed["status"] == "COMPLETED"
    (part,) = streamed["stream"]
    assert part["output"]["segment"]["text"] == "600."
    assert post(f"{local_api}/status/{job}", {}) == {
        "id": job,
        "status": "COMPLETED",
        "output": {"text": "600."},
    }


def test_the_local_api_streams_nothing_of_a_job_without_a_stream(local_api: str) -> None:
    job = local_job(local_api, {"audio_base64": tone(600)})
    assert post(f"{local_api}/stream/{job}", {}) == {
        "id": job,
        "status": "COMPLETED",
        "stream": [],
    }


def test_the_local_api_reports_the_error_of_a_stream(local_api: str) -> None:
    job = local_job(local_api, {"audio_base64": "?", "stream": True})
    failed = post(f"{local_api}/stream/{job}", {})
    assert failed["status"] == "FAILED"
    assert failed["error"].startswith("invalid_request: audio_base64")
    assert post(f"{local_api}/stream/unknown", {})["error"] == "Job ID not found"


def test_runsync_of_the_local_api_answers_a_stream_with_the_whole_answer(local_api: str) -> None:
    body = {"input": {"audio_base64": tone(600), "stream": True}}
    assert post(f"{local_api}/runsync", body)["output"] == {"text": "600."}


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
    with open_pipeline(Settings(engine="tones", scratch=tmp_path)) as pipeline:
        answer = await handler_of(pipeline)(job)
    assert isinstance(answer, dict)
    assert answer["error"].startswith("invalid_request: input: must be an object")


async def test_a_lost_engine_sets_stop_pod(tmp_path: Path) -> None:
    with open_pipeline(Settings(engine="tones", scratch=tmp_path)) as pipeline:
        handle = handler_of(pipeline)
        pipeline.batcher.close()
        answer = await handle({"id": "1", "input": {"audio_base64": tone(440)}})
    assert isinstance(answer, dict)
    assert answer["error"].startswith("engine_lost: ")
    assert answer["refresh_worker"] is True


# one worker, at the queue


@pytest.fixture(scope="module")
def queue() -> Iterator[EndpointApi]:
    with EndpointApi() as api:
        yield api


@pytest.fixture(scope="module")
def log(
    queue: EndpointApi, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[], list[dict[str, Any]]]]:
    """A worker at that queue; what it has logged so far."""
    home = tmp_path_factory.mktemp("worker")
    options = {"PARAKEET_ALLOW_PRIVATE_ADDRESSES": "true", "PARAKEET_SEGMENT_SECONDS": "2"}
    with (
        (home / "log").open("w") as written,
        running_worker(queue, home, {**SCRIPTED, **options}, log=written) as worker,
    ):
        yield lambda: [json.loads(line) for line in (home / "log").read_text().splitlines()]
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(60) == 0


def melody(*pitches: int) -> str:
    rest = recordings.silence(0.6)
    parts = [part for hz in pitches for part in (recordings.tone(hz, 0.8), rest)]
    return b64encode(recordings.wav(np.concatenate(parts))).decode()


@pytest.mark.usefixtures("log")
def test_a_streamed_job_sends_its_segments_and_then_the_whole(queue: EndpointApi) -> None:
    queue.submit("streamed", {"audio_base64": melody(400, 500, 600), "stream": True})
    assert queue.result("streamed") == {"output": {"text": "400. 500. 600."}}
    delivery = queue.deliveries["streamed"]
    texts = [chunk["segment"]["text"] for chunk in delivery.chunks]
    assert texts == ["400.", "500.", "600."]
    assert delivery.order == ["chunk"] * 3 + ["done"]
    assert delivery.streamed == [True]


@pytest.fixture
def endpoint(queue: EndpointApi, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """RunPod's own client, of the endpoint in front of that queue."""
    import runpod

    monkeypatch.setattr(runpod, "endpoint_url_base", queue.base_url)
    original = runpod.Endpoint
    results: Callable[..., Any] = partial(original, "loopback", api_key=KEY)
    monkeypatch.setattr(runpod, "Endpoint", lambda *_, **__: results())
    return results


@pytest.mark.usefixtures("log", "endpoint")
async def test_the_python_of_calling_reads_a_stream(web: WebServer) -> None:
    page = (ROOT / "docs" / "calling.md").read_text()
    (code,) = re.findall(r"^```python\n(import runpod\n.*?)^```", page, re.MULTILINE | re.DOTALL)
    url = web.at("/talk.ogg", sends(b64decode(melody(400, 500))))
    printed: list[str] = []
    script = code.replace("https://example.com/talk.ogg", url).replace("print(", "printed.append(")
    program = compile(script, "calling.md", "exec")
    await asyncio.to_thread(exec, program, {"printed": printed})
    assert printed == ["400.", "500.", "400. 500."]


@pytest.mark.usefixtures("log")
def test_a_job_that_fails_is_failed_for_the_sdks_own_client(endpoint: Callable[..., Any]) -> None:
    job = endpoint().run({"input": {"audio_base64": "?"}})
    job.output(timeout=60)
    assert job.status() == "FAILED"


@pytest.mark.usefixtures("log")
async def test_the_sdk_client_cancels_a_running_job(
    queue: EndpointApi, web: WebServer, endpoint: Callable[..., Any]
) -> None:
    slow = trickles(recordings.wav(recordings.tone(440, 3)), 0.05)
    payload = {"audio_url": web.at("/slow.wav", slow)}
    job = await asyncio.to_thread(endpoint().run, {"input": payload})
    await asyncio.wait_for(web.reached.wait(), 60)
    await asyncio.to_thread(job.cancel)
    await asyncio.wait_for(web.left.wait(), 60)
    assert await asyncio.to_thread(job.status) == "CANCELLED"
    assert queue.deliveries[job.job_id].order == []


def test_delivery_is_retried_and_each_retry_is_logged(
    queue: EndpointApi, log: Callable[[], list[dict[str, Any]]]
) -> None:
    queue.faults["job-done"].extend([500, 429, "drop", "lose"])
    queue.submit("delivered", {"audio_base64": tone(440)})
    queue.wait_until(lambda: len(queue.deliveries["delivered"].bodies) == 2)
    assert queue.deliveries["delivered"].bodies == [{"output": {"text": "440."}}] * 2
    failed = [line["message"] for line in log()
              if line["requestId"] == "delivered" and "failed" in line["message"]]  # fmt: skip
    assert len(failed) == 4
    assert re.fullmatch(
        r"attempt 1 failed, next attempt in \d\.\d s, (300|299) s left: "
        r"http://127\.0\.0\.1:\d+/v2/\w+/job-done/\S+/delivered: the platform answered 500",
        failed[0],
    )
    assert not any("stamina" in line["message"] for line in log())


async def test_a_stopped_job_posts_nothing_and_its_download_ends(
    queue: EndpointApi, log: Callable[[], list[dict[str, Any]]], web: WebServer
) -> None:
    url = web.at("/slow.wav", trickles(recordings.wav(recordings.tone(440, 3)), 0.05))
    queue.submit("stopped", {"audio_url": url, "progress": True})
    await asyncio.wait_for(web.reached.wait(), 60)
    queue.stop("stopped")
    await asyncio.wait_for(web.left.wait(), 60)
    await asyncio.to_thread(
        queue.wait_until, lambda: "job cancelled" in [line["message"] for line in log()]
    )
    assert queue.deliveries["stopped"].order == []


def test_every_job_has_one_line_of_json_with_its_stages_and_no_text(
    queue: EndpointApi, log: Callable[[], list[dict[str, Any]]]
) -> None:
    queue.submit("logged", {"audio_base64": tone(777)})
    queue.result("logged")
    queue.wait_until(lambda: any(line["requestId"] == "logged" for line in log()))
    (line,) = [line for line in log() if line["requestId"] == "logged"]
    assert line["message"] == "job ok"
    assert line["level"] == "INFO"
    assert line["audio_seconds"] == pytest.approx(0.8)
    assert line["words"] == 1
    assert list(line["seconds"]) == ["fetch", "decode", "recognize", "total"]
    assert not any("780." in json.dumps(line) for line in log())


@pytest.mark.usefixtures("log")
def test_the_heartbeat_reaches_the_platform(queue: EndpointApi) -> None:
    before = queue.requests["ping"]
    queue.wait_until(lambda: queue.requests["ping"] > before + 1)
    assert queue.unhealthy == []


# its end


def test_sigterm_ends_an_idle_worker_inside_its_poll_and_later_jobs_stay_queued(
    tmp_path: Path,
) -> None:
    with JobApi(hold_seconds=600) as api, running_worker(api, tmp_path, SCRIPTED) as worker:
        assert api.polled()
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(60) == 0
        api.submit("after", {"audio_base64": tone(440)})
        assert api.queued == 1


async def test_sigterm_lets_running_jobs_finish_and_delivers_them(
    tmp_path: Path, web: WebServer
) -> None:
    slow = trickles(recordings.wav(recordings.tone(440, 0.8)), pause_seconds=0.1, step=1000)
    payload = {"audio_url": web.at("/slow.wav", slow)}
    options = {**SCRIPTED, "PARAKEET_ALLOW_PRIVATE_ADDRESSES": "true"}
    names = ["a", "b", "c"]
    with JobApi(hold_seconds=600) as api, running_worker(api, tmp_path, options) as worker:
        for name in names:
            api.submit(name, payload)
        for name in names:
            assert await asyncio.to_thread(api.taken, name, 60)
        api.faults["job-done"].append("drop")
        worker.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(worker.wait, 60) == 0
        for name in names:
            assert api.deliveries[name].bodies == [{"output": {"text": "440."}}]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_process_group_reaches_neither_ffmpeg_nor_heartbeat(
    tmp_path: Path, number: signal.Signals
) -> None:
    options = {**SCRIPTED, "PARAKEET_FFMPEG": str(held_ffmpeg(tmp_path))}
    with JobApi(hold_seconds=600) as api, running_worker(api, tmp_path, options) as worker:
        api.submit("job", {"audio_base64": tone(440, rate=8000)})
        api.wait_until((tmp_path / "started").exists)
        os.killpg(worker.pid, number)
        before = api.requests["ping"]
        api.wait_until(lambda: api.requests["ping"] > before + 1)
        assert worker.poll() is None
        (tmp_path / "go").touch()
        assert api.result("job") == {"output": {"text": "440."}}
        assert worker.wait(60) == 0


def test_the_heartbeat_ends_with_a_worker_that_is_killed(tmp_path: Path) -> None:
    with JobApi(hold_seconds=600) as api, running_worker(api, tmp_path, SCRIPTED) as worker:
        assert api.polled()
        (heartbeat,) = psutil.Process(worker.pid).children()
        worker.kill()
        assert heartbeat.wait(60) is None


@pytest.mark.parametrize("shared_memory", ["read-only", "missing"])
def test_a_worker_without_shared_memory_pings_with_its_jobs(
    tmp_path: Path, shared_memory: str
) -> None:
    mounts = {
        "read-only": "mount -t tmpfs -o ro none /dev/shm",
        "missing": f"""cd {tmp_path}; mkdir -p dev; mount -t tmpfs none dev
            for name in null urandom; do touch dev/$name; mount --bind /dev/$name dev/$name; done
            mount --rbind dev /dev""",
    }
    options = {**SCRIPTED, "PARAKEET_FFMPEG": str(held_ffmpeg(tmp_path))}
    with (
        JobApi(hold_seconds=600) as api,
        running_worker(api, tmp_path, options, prefix=mounted(mounts[shared_memory])),
    ):
        api.submit("job", {"audio_base64": tone(440, rate=8000)})
        api.wait_until((tmp_path / "started").exists)
        api.wait_until(lambda: "job" in api.pinged)
        (tmp_path / "go").touch()
        assert api.result("job") == {"output": {"text": "440."}}


def test_a_job_submitted_at_the_moment_of_sigterm_is_answered_or_stays_queued(
    tmp_path: Path,
) -> None:
    chance = random.Random(2)  # noqa: S311  # the same every time
    became: Counter[str] = Counter()
    environment = {**SCRIPTED, "PYTHONPATH": str(ROOT / "tests")}
    module = ("odd_workers", "serial")
    with (
        JobApi(hold_seconds=600) as api,
        (tmp_path / "log").open("w") as log,
        running_worker(api, tmp_path, environment, module=module, log=log),
    ):

        def printed(word: str) -> list[list[str]]:
            lines = (tmp_path / "log").read_text().splitlines()
            return [line.split() for line in lines if line.startswith(word)]

        for number in range(20):
            assert api.polled()
            api.wait_until(lambda number=number: len(printed("began")) == number + 1)
            _, worker = printed("began")[number]
            job, pause = f"job-{number}", chance.uniform(0, 0.02)
            if chance.random() < 0.5:
                api.submit(job, {"audio_base64": tone(440)})
                time.sleep(pause)
                os.kill(int(worker), signal.SIGTERM)
            else:
                os.kill(int(worker), signal.SIGTERM)
                time.sleep(pause)
                api.submit(job, {"audio_base64": tone(440)})
            api.wait_until(lambda number=number: len(printed("ended")) == number + 1)
            assert printed("ended")[number] == ["ended", worker, "0"]
            answered, queued = len(api.deliveries[job].bodies), api.withdraw(job)
            assert answered + queued == 1, job
            became["queued" if queued else "answered"] += 1
    assert became.total() == 20
    assert became["answered"] > 0


# its log


def test_a_log_that_is_not_read_holds_up_neither_jobs_nor_sigterm(tmp_path: Path) -> None:
    names = [f"{'job' * 100}-{number}" for number in range(300)]
    with JobApi(hold_seconds=600) as api:
        for name in names:
            api.submit(name, {"audio_base64": "?"})
        reader, writer = os.pipe()
        try:
            with running_worker(api, tmp_path, SCRIPTED, log=writer) as worker:
                assert api.answered(names, 60)
                worker.send_signal(signal.SIGTERM)
                assert worker.wait(60) == 0
        finally:
            os.close(reader)
            os.close(writer)


def test_an_empty_address_for_jobs_is_none_for_handler_and_worker_alike(tmp_path: Path) -> None:
    empty = {**plain_environment(tmp_path), "RUNPOD_WEBHOOK_GET_JOB": ""}
    module = "parakeet_worker.entrypoints.queue"
    for command in ([str(ROOT / "handler.py")], ["-m", module]):
        ended = subprocess.run(
            [sys.executable, *command], cwd=tmp_path, env=empty, capture_output=True, text=True,
            timeout=60, check=False,
        )  # fmt: skip
        assert "test_input.json not found" in ended.stdout
        assert "no jobs for" not in ended.stdout + ended.stderr


# its disk


def test_a_worker_whose_disk_is_full_leaves_the_other_jobs_in_the_queue(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    options = {**SCRIPTED, "PARAKEET_SCRATCH": str(disk), "PARAKEET_SCRATCH_LEAST_BYTES": "65536",
               "PARAKEET_CONCURRENCY": "2"}  # fmt: skip
    prefix = mounted(f"mount -t tmpfs -o size=200k none {disk}")
    names = [f"job-{number}" for number in range(10)]
    with JobApi(hold_seconds=600) as api:
        for name in names:
            api.submit(name, {"audio_base64": tone(440, 10)})  # 320 KB
        with running_worker(api, tmp_path, options, prefix=prefix):
            bodies = [api.result(name) for name in names[:2]]
            time.sleep(1)
            assert api.queued == len(names) - 2
    for body in bodies:
        assert body["error"].startswith("scratch_full: no room on this worker's disk; ")
        assert body["output"]["code"] == "scratch_full"


def test_a_worker_without_its_scratch_folder_does_not_start(tmp_path: Path) -> None:
    with JobApi() as api:
        missing = {**SCRIPTED, "PARAKEET_SCRATCH": str(tmp_path / "missing")}
        with running_worker(api, tmp_path, missing) as worker:
            printed, _ = worker.communicate(timeout=60)
    assert worker.returncode == 1
    assert printed.splitlines()[-1].startswith("parakeet: invalid_setting: PARAKEET_SCRATCH: ")


# its beginning


def test_an_sdk_with_another_name_in_it_is_served_by_its_own_start(tmp_path: Path) -> None:
    environment = {**SCRIPTED, "PYTHONPATH": str(ROOT / "tests")}
    with (
        JobApi(hold_seconds=1) as api,
        running_worker(api, tmp_path, environment, module=("odd_workers", "renamed")) as worker,
    ):
        api.submit("job", {"audio_base64": tone(440), "stream": True})
        assert api.result("job") == {"output": {"text": "440."}}
        worker.send_signal(signal.SIGTERM)
        printed, _ = worker.communicate(timeout=60)
    assert "unsupported SDK version" in printed
    assert "get_stop_signals" in printed


def test_a_worker_without_a_working_ffmpeg_takes_no_job(tmp_path: Path) -> None:
    broken = tmp_path / "ffmpeg"
    broken.write_text("#!/bin/sh\nexit 7\n")
    broken.chmod(0o755)
    with JobApi() as api:
        api.submit("never", {"audio_base64": tone(440)})
        with running_worker(api, tmp_path, {**SCRIPTED, "PARAKEET_FFMPEG": str(broken)}) as worker:
            printed, _ = worker.communicate(timeout=60)
        assert worker.returncode == 1
        (reported,) = api.unhealthy
        assert api.requests["job-take"] == 0
    assert reported["check"] == "check_ffmpeg"
    assert reported["reason"] == f"FitnessError: {broken} exits with status 7"
    assert "exits with status 7" in printed


def test_a_worker_whose_model_transcribes_nothing_takes_no_job(tmp_path: Path) -> None:
    environment = {"PYTHONPATH": str(ROOT / "tests"), "OMP_NUM_THREADS": "1"}
    with JobApi() as api:
        api.submit("never", {"audio_base64": tone(440)})
        module = ("odd_workers", "silent")
        with running_worker(api, tmp_path, environment, module=module) as worker:
            worker.communicate(timeout=120)
        assert worker.returncode == 1
        (reported,) = api.unhealthy
        assert api.requests["job-take"] == 0
    assert reported["check"] == "check_transcription"
    assert reported["reason"] == "FitnessError: the model emits no words for a clip of clear speech"


def test_a_worker_whose_engine_is_lost_is_replaced_and_takes_no_more(tmp_path: Path) -> None:
    environment = {**SCRIPTED, "PYTHONPATH": str(ROOT / "tests")}
    with JobApi(hold_seconds=600) as api:
        # It dies at its first batch.
        module = ("faulty_worker", "1", "0")
        with running_worker(api, tmp_path, environment, module=module) as worker:
            api.submit("job", {"audio_base64": tone(440), "stream": True})
            body = api.result("job")
            assert worker.wait(60) == 1
        api.submit("after", {"audio_base64": tone(440)})
        assert api.queued == 1
    assert body["stopPod"] is True
    assert body["error"].startswith("engine_lost: ")
