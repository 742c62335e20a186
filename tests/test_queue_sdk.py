"""The RunPod SDK is what the job loop was written against; what it was not would be noticed.

Each question is put to the real SDK in a process of its own: it reads its addresses once in the
life of a process.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

BASE = "http://127.0.0.1:9/v2/loopback"
SHAPE = """
import inspect, json
from parakeet_worker.entrypoints.queue import sdk
parts = sdk.load()
parts.in_progress.add("a")
result = {
    "one": parts.take_url(1),
    "many": parts.take_url(7),
    "done": parts.done_url,
    "stream": parts.stream_url,
    "stops": inspect.iscoroutinefunction(parts.stop_signals),
    "fitness": inspect.iscoroutinefunction(parts.check_fitness),
}
parts.in_progress.remove("a")
print(json.dumps({**result, "idle": parts.take_url(1)}))
"""
CHANGES = {
    "del rp_job._job_get_url": "_job_get_url",
    "del rp_job.get_stop_signals": "get_stop_signals",
    "del rp_http.JOB_DONE_URL": "JOB_DONE_URL",
    "rp_http.JOB_STREAM_URL = None": "None is not a URL",
    "del rp_fitness.run_fitness_checks": "run_fitness_checks",
    "del worker_state.PingJobMirror": "PingJobMirror",
    "del worker_state.JobsProgress.set_mirror": "set_mirror",
    "del worker_state.JobsProgress.remove": "no signature found",
    "rp_job._job_get_url = lambda size=1: ''": "has no parameter 'batch_size'",
    "rp_ping.Heartbeat.start_ping = lambda self: None": "has no parameter 'mirror'",
    "rp_ping.Heartbeat.process_loop = lambda: None": "has no parameter 'mirror'",
}
CHANGED = f"""
import json, os
import runpod.serverless
from runpod.serverless.modules import rp_fitness, rp_http, rp_job, rp_ping, worker_state
from parakeet_worker.entrypoints.queue import sdk
sdk.load()
result = {{}}
for change in {list(CHANGES)!r}:
    read, write = os.pipe()
    if os.fork() == 0:
        exec(change)
        try:
            sdk.load()
        except sdk.SdkChanged as failure:
            os.write(write, str(failure).encode())
        os._exit(0)
    os.close(write)
    os.wait()
    result[change] = os.read(read, 9999).decode()
print(json.dumps(result))
"""


def run(script: str, home: Path, **environment: str) -> str:
    ended = subprocess.run(
        [sys.executable, "-c", script],
        env={"PATH": os.environ["PATH"], "HOME": str(home), **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout.strip().rpartition("\n")[2]


STARTED = """
import sys
started = []
sys.addaudithook(lambda event, its: event == "subprocess.Popen" and started.append(its[0]))
from parakeet_worker.entrypoints.queue import sdk
runpod = sdk.import_sdk()
import cpuinfo
print(started.count(sys.executable), runpod.__name__, cpuinfo.get_cpu_info.__module__)
"""


def test_the_import_starts_no_interpreter_to_describe_the_processor(tmp_path: Path) -> None:
    assert run(STARTED, tmp_path) == "0 runpod cpuinfo.cpuinfo"


def test_the_addresses_are_those_of_the_platform(tmp_path: Path) -> None:
    reported = json.loads(
        run(
            SHAPE,
            tmp_path,
            RUNPOD_POD_ID="worker-1",
            RUNPOD_WEBHOOK_GET_JOB=f"{BASE}/job-take/$ID?gpu=x",
            RUNPOD_WEBHOOK_POST_OUTPUT=f"{BASE}/job-done/$RUNPOD_POD_ID/$ID?gpu=x",
            # One without a query: parameters are appended with `&` nevertheless.
            RUNPOD_WEBHOOK_POST_STREAM=f"{BASE}/job-stream/$RUNPOD_POD_ID/$ID",
        )
    )
    take = "job-take/worker-1?gpu=x"
    batch = "job-take-batch/worker-1?gpu=x&batch_size=7"
    assert reported == {
        "one": f"{BASE}/{take}&job_in_progress=1",
        "many": f"{BASE}/{batch}&job_in_progress=1",
        "idle": f"{BASE}/{take}&job_in_progress=0",
        "done": f"{BASE}/job-done/worker-1/$ID?gpu=x",
        "stream": f"{BASE}/job-stream/worker-1/$ID?",
        "stops": True,
        "fitness": True,
    }


def test_an_sdk_that_is_another_is_noticed_before_it_is_used(tmp_path: Path) -> None:
    message = json.loads(run(CHANGED, tmp_path))
    for change, reason in CHANGES.items():
        assert reason in message[change], change


MIRRORS = """
import json, os
from parakeet_worker.entrypoints.queue.sdk import ForkedMirror
mirror = ForkedMirror(8)
ids = ["a", "a,bb", "aaaa,bbbb", None, "ccc"]
read, write = os.pipe()
go, result = os.pipe()
if os.fork() == 0:
    seen = []
    for _ in ids:
        os.read(go, 1)
        seen.append(mirror.get())
        os.write(write, b"x")
    os.write(write, json.dumps(seen).encode())
    os._exit(0)
for each in ids:
    mirror.set(each)
    os.write(result, b"x")
    os.read(read, 1)
print(os.read(read, 9999).decode())
"""


def test_a_fork_sees_the_ids_that_are_set_after_it(tmp_path: Path) -> None:
    # The third has no room for both.
    assert json.loads(run(MIRRORS, tmp_path)) == ["a", "a,bb", "aaaa", None, "ccc"]


SIGNALLED = """
import multiprocessing, os, signal, sys
from parakeet_worker.entrypoints.queue import sdk
os.setsid()
scheduled, schedule = os.pipe()
read, write = os.pipe()
heartbeat = sdk._child(lambda mirror, test: os.write(write, b"pings"))

def target():
    os.read(scheduled, 1)
    heartbeat(None, False)

with sdk.group_signals_blocked():
    process = multiprocessing.get_context("fork").Process(target=target)
    process.start()
received = []
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda number, _: received.append(number))
    os.killpg(0, number)
os.write(schedule, b"x")
process.join()
os.write(write, b".")
print(os.read(read, 99).decode(), process.exitcode, received == [2, 15])
"""


def test_a_signal_to_the_group_does_not_end_a_heartbeat_that_starts(tmp_path: Path) -> None:
    assert run(SIGNALLED, tmp_path) == "pings. 0 True"
