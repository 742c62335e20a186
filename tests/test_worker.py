"""Opening a worker: threads that remain, and failures of its device."""

import asyncio
import gc
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from parakeet_worker.batcher import Batcher
from parakeet_worker.container import Container
from parakeet_worker.engine.base import Capacity, Engine
from parakeet_worker.engine.tones import ToneEngine
from parakeet_worker.errors import EngineLost
from parakeet_worker.pipeline import Pipeline
from parakeet_worker.request import FileSource, Request
from parakeet_worker.settings import Settings
from parakeet_worker.vad import backends, silero
from parakeet_worker.vad.detectors import Detectors
from parakeet_worker.worker import (
    _losing,
    batch_capacity,
    open_detectors,
    open_engine,
    open_pipeline,
    pipeline_around,
)
from speech import sample

PROCESSORS = Container.read().threads

# torch starts its second thread pool at the first `set_num_threads`, in any thread.
_OPENED = """
import os
import time
import torch
from parakeet_worker.settings import Settings
from parakeet_worker.worker import open_pipeline

torch.set_num_threads(2)
before = set(os.listdir("/proc/self/task"))
with open_pipeline(Settings(model="demo")) as pipeline:
    deadline = time.monotonic() + 5
    # The pool of an ended thread ends shortly afterwards; a permanent one remains.
    while len(new := set(os.listdir("/proc/self/task")) - before) > 1:
        if time.monotonic() > deadline:
            break
        time.sleep(0.01)
    print(len(new))
"""


def test_loading_leaves_no_compute_thread_except_the_engine() -> None:
    # Two OpenMP threads on any machine.
    environment = os.environ | {"OMP_NUM_THREADS": "2"}
    opened = subprocess.run(
        [sys.executable, "-c", _OPENED], env=environment, capture_output=True, text=True, check=True
    )
    assert int(opened.stdout) == 1, "the engine's thread alone may be new"


_TRANSCRIBED = """
import sys
import torch
from parakeet_worker import open_model

numbers = [torch.get_num_threads()]
limit = torch.set_num_threads
torch.set_num_threads = lambda number: numbers.append(number) or limit(number)
with open_model("demo", threads=int(sys.argv[2])) as model:
    print(model.transcribe(sys.argv[1]).text)
print(numbers[0], numbers[-1])
"""


def transcribed_with_threads(number: int) -> tuple[str, int, int]:
    """The text of a sample, torch's default number of threads, and the one that the engine set."""
    ran = subprocess.run(
        [sys.executable, "-c", _TRANSCRIBED, str(sample("en").path), str(number)],
        # Otherwise MKL lowers the default to the number of physical cores.
        env=os.environ | {"OMP_NUM_THREADS": str(number), "MKL_DYNAMIC": "FALSE"},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    text, numbers = ran.stdout.splitlines()
    default, threads = numbers.split()
    return text, int(default), int(threads)


def test_several_threads_find_the_words_of_one() -> None:
    for number in (1, 2):
        text, default, threads = transcribed_with_threads(number)
        assert text == sample("en").text
        assert threads == min(number, default)


def on_a_failing_device(_: Settings, on_device_failure: Callable[[str], None]) -> Detectors:
    """Detection as on a GPU on which every batch fails with a CUDA error."""

    def fail(*_: Any) -> None:
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

    network = silero.load()
    network.register_forward_pre_hook(fail)
    on_cpu = backends.PerThreadVad(silero.load())
    batched = backends.BatchedVad(network, on_cpu, on_device_failure)
    return Detectors(batched)


class ClosableEngine(ToneEngine):
    """Records that it was closed."""

    closed = False

    def close(self) -> None:
        self.closed = True


def transcribe(pipeline: Pipeline) -> str:
    return asyncio.run(pipeline.transcribe(Request(source=FileSource(sample("en").path)))).text


def test_a_device_failure_in_detection_loses_the_engine(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    engine = ClosableEngine()
    settings = Settings(engine="tones", scratch=tmp_path)
    with pipeline_around(engine, settings, on_a_failing_device) as pipeline:
        assert not pipeline.batcher.lost
        with (
            caplog.at_level(logging.ERROR),
            pytest.raises(EngineLost, match=r"voice activity detection.*illegal memory access"),
        ):
            transcribe(pipeline)
        assert pipeline.batcher.lost
        assert "runs on the CPU from now on" in caplog.text
        with pytest.raises(EngineLost):
            transcribe(pipeline)
    assert not engine.closed, "a failed device is not used again"


def test_a_working_engine_is_closed(tmp_path: Path) -> None:
    engine = ClosableEngine()
    with pipeline_around(engine, Settings(scratch=tmp_path), open_detectors):
        assert not engine.closed
    assert engine.closed


def test_a_device_may_fail_before_the_batcher_exists() -> None:
    created: Future[Batcher] = Future()
    _losing(created)("a CUDA error while the engine was warmed up")
    capacity = Capacity(1.0, 1, packed=False)
    with Batcher(ToneEngine(), capacity=capacity, queue_seconds=1.0) as batcher:
        assert not batcher.lost
        created.set_result(batcher)
        assert batcher.lost


def test_the_batch_limit_of_the_settings_applies() -> None:
    settings = Settings(engine="tones", segment_seconds=20.0)
    assert batch_capacity(ToneEngine(), settings) == ToneEngine().capacity(20.0)
    limited = settings.model_copy(update={"batch_seconds": 7.0})
    assert batch_capacity(ToneEngine(), limited).seconds == 7.0


def test_float32_is_exact_before_a_model_is_loaded() -> None:
    flags = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = True
    try:
        open_engine(Settings(model="demo", device="cpu")).close()
        assert not torch.backends.cudnn.allow_tf32
    finally:
        torch.backends.cudnn.allow_tf32 = flags


def test_loaded_objects_are_excluded_from_garbage_collection(tmp_path: Path) -> None:
    with open_pipeline(Settings(engine="tones", scratch=tmp_path)):
        assert gc.get_freeze_count() > 10_000
    assert gc.get_freeze_count() == 0


def test_the_words_of_long_recordings_cause_no_full_collection(tmp_path: Path) -> None:
    before = gc.get_threshold()
    with open_pipeline(Settings(engine="tones", scratch=tmp_path)):
        full = gc.get_stats()[2]["collections"]
        words = [[number] for number in range(300_000)]
        assert gc.get_stats()[2]["collections"] == full, "of at least two by default"
        del words
    assert gc.get_threshold() == before


def test_the_language_identifier_is_loaded_with_the_pipeline() -> None:
    """In a new process, since other tests have loaded it in this one."""
    program = (
        "import sys; from parakeet_worker import language\n"
        "from parakeet_worker.settings import Settings\n"
        "from parakeet_worker.worker import open_pipeline\n"
        "with open_pipeline(Settings.of({'engine': 'tones'})):\n"
        "    print(language._identifier.cache_info().currsize)\n"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    assert ran.stdout.strip() == b"1"


class Asynchronous(ToneEngine):
    """Has the depth of an engine on a GPU."""

    depth = 2


@pytest.mark.parametrize(
    ("engine", "chosen", "count"),
    [
        (ToneEngine(), None, 0),
        (ToneEngine(), 1, 1),
        (Asynchronous(), None, min(8, PROCESSORS // 2) if PROCESSORS >= 4 else 0),
        (Asynchronous(), 0, 0),
    ],
)
def test_ingest_processes_are_for_a_gpu_unless_they_are_chosen(
    engine: Engine, chosen: int | None, count: int, tmp_path: Path
) -> None:
    settings = Settings(engine="tones", scratch=tmp_path, ingest_processes=chosen)
    with pipeline_around(engine, settings, open_detectors) as pipeline:
        pids = [process.pid for process in pipeline.processes or ()]
        assert len(pids) == count
    assert not any(psutil.pid_exists(pid) for pid in pids)


def test_ingest_processes_end_if_the_engine_cannot_be_warmed_up(tmp_path: Path) -> None:
    class Broken(ToneEngine):
        def warm_up(self, chunk_seconds: float) -> None:
            raise RuntimeError(f"no memory for {chunk_seconds} s")

    settings = Settings(engine="tones", scratch=tmp_path, ingest_processes=1)
    with (
        pytest.raises(RuntimeError, match="no memory"),
        pipeline_around(Broken(), settings, open_detectors),
    ):
        pass
    assert psutil.Process().children() == []
