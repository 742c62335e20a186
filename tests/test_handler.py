"""RunPod's entry point: the module it execs, and signals during its start."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest

from confined import process_one
from job_api import JobApi
from wheelhouse import Site

ROOT = Path(__file__).resolve().parent.parent
JOBS = {"RUNPOD_WEBHOOK_GET_JOB": "https://example.com/job-take/$ID?gpu=none"}
ENDPOINT = {"RUNPOD_ENDPOINT_ID": "abc"}
PORT = {"PORT": "8000"}


def handler() -> ModuleType:
    spec = importlib.util.spec_from_file_location("handler", ROOT / "handler.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("arguments", "variables", "expected"),
    [
        ([], {**JOBS, **ENDPOINT}, "queue"),
        ([], {**JOBS, **ENDPOINT, **PORT}, "queue"),
        ([], ENDPOINT, "http"),
        ([], {**ENDPOINT, **PORT}, "http"),
        ([], {**ENDPOINT, "RUNPOD_WEBHOOK_GET_JOB": ""}, "http"),
        ([], PORT, "http"),
        ([], {}, "queue"),
        ([], {"PORT": ""}, "queue"),
        (["--test_input", "{}"], PORT, "queue"),
        (["--test_input={}"], ENDPOINT, "queue"),
        (["--rp_serve_api", "--rp_api_port", "8000"], PORT, "queue"),
    ],
)
def test_the_environment_selects_the_module(
    arguments: list[str], variables: dict[str, str], expected: str
) -> None:
    module = handler().entry_module(arguments, variables)
    assert module == f"parakeet_worker.entrypoints.{expected}"


@pytest.mark.parametrize(("variables", "expected"), [({}, "queue"), (PORT, "http")])
def test_the_handler_execs_the_module(
    tmp_path: Path, variables: dict[str, str], expected: str
) -> None:
    site = Site.at(tmp_path)
    folder = site.root / "src" / "parakeet_worker" / "entrypoints"
    # An image may contain it by mistake: the server must not run it and exit.
    (tmp_path / "test_input.json").write_text("{}")
    folder.joinpath("http.py").write_text('print("http")')
    folder.joinpath("queue.py").write_text('print("queue")')
    ran = subprocess.run(
        site.command,
        env={**site.environment, **variables},
        cwd=tmp_path, capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    assert ran.stdout.splitlines() == [expected]


# A slow installer, so that the signal arrives during the installation.
_SLOW_UV = """#!/bin/sh
case "$1" in --version) echo "uv 0" ;; *) exec sleep 60 ;; esac
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_during_installation_ends_process_1_and_releases_the_lease(
    tmp_path: Path, number: signal.Signals
) -> None:
    site = Site.at(tmp_path)
    uv = tmp_path / "uv"
    uv.write_text(_SLOW_UV)
    uv.chmod(0o755)
    waiting = subprocess.Popen(
        [*process_one(), *site.command],
        env={**site.environment, "PARAKEET_UV": str(uv)},
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        lease = site.volume / "leases" / "1"
        for _ in range(600):
            if lease.exists() and '"step": "installing' in lease.read_text():
                break
            time.sleep(0.1)
        (first,) = children(waiting.pid)
        os.kill(first, number)
        _, log = waiting.communicate(timeout=30)
        assert json.loads(lease.read_text())["released"] is True
        assert "Traceback" not in log
    finally:
        waiting.kill()
        waiting.communicate()


def children(pid: int) -> list[int]:
    listed = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(child) for child in listed.split()]


def _catches(pid: int, number: signal.Signals) -> bool | None:
    """Whether a process handles or blocks a signal; None if it has exited."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return None
    masks = [int(line.split()[1], 16) for line in status.splitlines()
             if line.startswith(("SigCgt", "SigBlk"))]  # fmt: skip
    return any(mask >> (number - 1) & 1 for mask in masks)


@pytest.mark.parametrize("entry", ["queue", "http"])
def test_sigterm_is_handled_or_blocked_from_the_first_line(tmp_path: Path, entry: str) -> None:
    with JobApi(hold_seconds=600) as api:
        jobs = api.environment(tmp_path) if entry == "queue" else {"PORT": "0"}
        ready = "taking jobs" if entry == "queue" else "ready after"
        with (tmp_path / "log").open("w") as log:
            worker = subprocess.Popen(
                [sys.executable, str(ROOT / "handler.py")],
                env={"PATH": os.environ["PATH"], "HOME": str(tmp_path), **jobs,
                     "PARAKEET_ENGINE": "tones"},
                cwd=tmp_path, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        try:
            caught: list[bool] = []
            while ready not in (tmp_path / "log").read_text():
                result = _catches(worker.pid, signal.SIGTERM)
                assert result is not None, (tmp_path / "log").read_text()
                caught.append(result)
                time.sleep(0.001)
            first = caught.index(True)
            assert all(caught[first:])
            assert first < len(caught) / 4
            worker.send_signal(signal.SIGTERM)
            assert worker.wait(30) == 0
        finally:
            if worker.poll() is None:
                os.killpg(worker.pid, signal.SIGKILL)
                worker.wait()


@pytest.mark.parametrize("delay_seconds", [0.15, 0.5, 1.0])
def test_as_process_1_it_ends_by_a_signal_at_any_time_of_its_start(
    tmp_path: Path, delay_seconds: float
) -> None:
    with JobApi(hold_seconds=600) as api:
        waiting = subprocess.Popen(
            [*process_one(), sys.executable, str(ROOT / "handler.py")],
            env={"PATH": os.environ["PATH"], **api.environment(tmp_path),
                 "PARAKEET_ENGINE": "tones"},
            cwd=tmp_path, start_new_session=True,
        )  # fmt: skip
        try:
            ends = time.monotonic() + 30
            while not (result := children(waiting.pid)) or not _catches(result[0], signal.SIGTERM):
                assert time.monotonic() < ends
                time.sleep(0.01)
            time.sleep(delay_seconds)
            os.kill(result[0], signal.SIGTERM)
            waiting.wait(30)
        finally:
            waiting.kill()
            waiting.wait()
