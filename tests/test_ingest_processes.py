"""Real processes, ffmpeg and Silero's network."""

import logging
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import numpy as np
import psutil
import pytest

import recordings
from parakeet_worker.engine.base import Samples
from parakeet_worker.errors import AudioTooLong, AudioUndecodable, DecoderKilled, ParakeetError
from parakeet_worker.ingest.cutting import Cutting, InThread
from parakeet_worker.ingest.processes import InProcess, Processes
from parakeet_worker.recognition.chunks import Chunk
from parakeet_worker.request import Clip
from parakeet_worker.vad.backends import open_backend
from parakeet_worker.vad.base import Inference, NetworkState, VadBackend
from parakeet_worker.vad.detectors import Detectors
from speech import named
from test_ingest_cutting import cutting

PATIENCE_SECONDS = 60.0


@pytest.fixture(scope="module")
def backend() -> VadBackend:
    return open_backend("cpu")


@pytest.fixture
def processes(backend: VadBackend) -> Iterator[Processes]:
    with closing(Processes(2, backend)) as started:
        eventually(lambda: all(process.ready for process in started))
        yield started
        pids = [process.pid for process in started]
    assert not any(psutil.pid_exists(pid) for pid in pids)


@pytest.fixture
def minutes(tmp_path: Path) -> Path:
    """Six minutes of speech."""
    return recordings.repeat(named("minute").path, tmp_path / "minutes.wav", 6)


def eventually(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def ffmpegs(pid: int) -> list[psutil.Process]:
    return psutil.Process(pid).children()


def check_equal(chunks: list[Chunk], expected: list[Chunk]) -> None:
    assert len(chunks) == len(expected)
    for one, other in zip(chunks, expected, strict=True):
        assert np.array_equal(one.samples, other.samples)
        assert (one.start_seconds, one.speech) == (other.start_seconds, other.speech)
        assert (one.channel, one.cut_in_speech) == (other.channel, other.cut_in_speech)
        assert (one.overlap is None) == (other.overlap is None)
        if one.overlap is not None and other.overlap is not None:
            assert np.array_equal(one.overlap.samples, other.overlap.samples)
        if one.frames is not None and other.frames is not None:
            assert np.array_equal(one.frames.probabilities, other.frames.probabilities)
        assert (one.frames is None) == (other.frames is None)


def check_like_in_a_thread(processes: Processes, described: Cutting) -> list[Chunk]:
    ingest = InProcess(processes, described)
    local = InThread(described, Detectors(processes.backend))
    chunks = list(ingest.chunks())
    check_equal(chunks, list(local.chunks()))
    assert ingest.decoded == local.decoded
    return chunks


def test_chunks_are_the_same_as_in_a_thread(processes: Processes, minutes: Path) -> None:
    assert len(check_like_in_a_thread(processes, cutting(minutes, chunk_seconds=30.0))) > 10
    assert len(check_like_in_a_thread(processes, cutting(minutes, whole=True))) == 1
    clip = cutting(minutes, clip=Clip(100.0, 130.0), vad="off", chunk_seconds=4.0)
    assert len(check_like_in_a_thread(processes, clip)) > 6


def test_channels_have_a_state_each(processes: Processes, tmp_path: Path) -> None:
    minute = recordings.decode(named("minute").path)
    sides = np.stack((minute, np.roll(minute, 160_000)), axis=1)
    path = recordings.encode(tmp_path / "call.wav", samples=sides.ravel(), channels=2)
    chunks = check_like_in_a_thread(processes, cutting(path, channels="separate"))
    assert {chunk.channel for chunk in chunks} == {1, 2}


def test_warnings_and_errors_are_those_of_the_decoder(processes: Processes, tmp_path: Path) -> None:
    whole = recordings.encode(tmp_path / "whole.flac", samples=recordings.tone(440, 60.0))
    damaged = recordings.cut(whole, tmp_path / "cut.flac")
    check_like_in_a_thread(processes, cutting(damaged))
    ingest = InProcess(processes, cutting(damaged))
    assert list(ingest.chunks()) == []
    assert [warning.code for warning in ingest.decoded.warnings] == ["audio_cut"]
    (tmp_path / "text.txt").write_text("no audio")
    with pytest.raises(AudioUndecodable) as undecodable:
        list(InProcess(processes, cutting(tmp_path / "text.txt")).chunks())
    assert undecodable.value.facts == _failure(cutting(tmp_path / "text.txt")).facts
    with pytest.raises(AudioTooLong, match="20 s"):
        list(InProcess(processes, cutting(whole, max_audio_seconds=20.0)).chunks())


def _failure(described: Cutting) -> ParakeetError:
    with pytest.raises(ParakeetError) as raised:
        list(InThread(described, Detectors(None)).chunks())
    return raised.value


def test_an_unexpected_exception_costs_its_recording_only(
    processes: Processes, minutes: Path
) -> None:
    with pytest.raises(TypeError) as raised:
        list(InProcess(processes, cutting(minutes, chunk_seconds="30")).chunks())
    assert "in an ingest process" in raised.value.__notes__[0]
    before = [process.pid for process in processes]
    check_like_in_a_thread(processes, cutting(minutes))
    assert [process.pid for process in processes] == before


class Failing:
    """A network that fails for one recording."""

    def __init__(self, network: VadBackend) -> None:
        self._network = network
        self.failing = True

    def probabilities(self, block: Samples, state: NetworkState | None) -> Inference:
        if self.failing:
            raise RuntimeError("no such kernel")
        return self._network.probabilities(block, state)


def test_a_failure_of_the_network_is_raised(backend: VadBackend, minutes: Path) -> None:
    network = Failing(backend)
    with closing(Processes(1, network)) as processes:
        eventually(lambda: all(process.ready for process in processes))
        with pytest.raises(RuntimeError, match="no such kernel"):
            list(InProcess(processes, cutting(minutes)).chunks())
        eventually(lambda: ffmpegs(next(iter(processes)).pid) == [])
        network.failing = False
        check_like_in_a_thread(processes, cutting(minutes))


def busy(processes: Processes) -> list[int]:
    """Processes with recordings."""
    return [process.pid for process in processes if process.recordings]


def test_recordings_of_a_killed_process_are_repeated_without_their_first_chunks(
    processes: Processes, minutes: Path, caplog: pytest.LogCaptureFixture
) -> None:
    expected = list(InThread(cutting(minutes), Detectors(processes.backend)).chunks())
    first, second = (InProcess(processes, cutting(minutes)).chunks() for _ in range(2))
    chunks = [[next(first)], [next(second)]]
    chunks[0] += [next(first) for _ in range(3)]
    pids = busy(processes)
    assert len(pids) == 2, "of two processes each has one of two recordings"
    os.kill(pids[0], signal.SIGKILL)
    with caplog.at_level(logging.WARNING):
        for known, rest in zip(chunks, (first, second), strict=True):
            check_equal(known + list(rest), expected)
    assert caplog.text.count("an ingest process ended") == 1
    eventually(lambda: all(process.ready for process in processes))
    check_like_in_a_thread(processes, cutting(minutes))
    assert {process.pid for process in processes} & set(pids) == {pids[1]}


def test_a_recording_that_ends_two_processes_is_an_error(
    processes: Processes, minutes: Path
) -> None:
    chunks = InProcess(processes, cutting(minutes)).chunks()
    for _ in range(3):
        next(chunks)
    (first,) = busy(processes)
    os.kill(first, signal.SIGKILL)
    next(chunks)
    (second,) = busy(processes)
    assert second != first
    os.kill(second, signal.SIGKILL)
    with pytest.raises(DecoderKilled):
        next(chunks)
    check_like_in_a_thread(processes, cutting(minutes))


class Changing:
    """A network with another result when the recording is repeated."""

    def __init__(self, network: VadBackend) -> None:
        self._network = network
        self.level: float | None = None

    def probabilities(self, block: Samples, state: NetworkState | None) -> Inference:
        probabilities, after = self._network.probabilities(block, state)
        if self.level is not None:
            probabilities = np.full_like(probabilities, self.level)
        return probabilities, after


@pytest.mark.parametrize("level", [0.9, 0.0])
def test_a_repetition_with_other_chunks_is_an_error(
    backend: VadBackend, minutes: Path, level: float
) -> None:
    """Words would be lost or repeated. Differences of the network in other batches are tiny, but
    may move a cut."""
    network = Changing(backend)
    with closing(Processes(2, network)) as processes:
        eventually(lambda: all(process.ready for process in processes))
        chunks = InProcess(processes, cutting(minutes)).chunks()
        next(chunks)
        next(chunks)
        network.level = level
        os.kill(busy(processes)[0], signal.SIGKILL)
        with pytest.raises(DecoderKilled):
            list(chunks)


def test_while_processes_start_threads_decode(backend: VadBackend, minutes: Path) -> None:
    with closing(Processes(1, backend)) as processes:
        (process,) = processes
        os.kill(process.pid, signal.SIGSTOP)
        continuing = threading.Timer(PATIENCE_SECONDS, os.kill, (process.pid, signal.SIGCONT))
        continuing.start()
        check_like_in_a_thread(processes, cutting(minutes))
        assert not process.ready, "the recording waited for the process"
        continuing.cancel()
        os.kill(process.pid, signal.SIGCONT)
        eventually(lambda: process.ready)
        chunks = InProcess(processes, cutting(minutes)).chunks()
        next(chunks)
        assert busy(processes) == [process.pid]
        chunks.close()


def test_threads_decode_where_no_process_can_be_started(
    processes: Processes,
    minutes: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(sys, "executable", "/nonexistent/python")
    chunks = InProcess(processes, cutting(minutes)).chunks()
    first = [next(chunks), next(chunks)]
    for process in processes:
        os.kill(process.pid, signal.SIGKILL)
    eventually(lambda: all(process.ended for process in processes))
    expected = list(InThread(cutting(minutes), Detectors(processes.backend)).chunks())
    check_equal(first + list(chunks), expected)
    assert caplog.text.count("cannot be started") == 2
    monkeypatch.undo()
    check_like_in_a_thread(processes, cutting(minutes))
    eventually(lambda: all(process.ready for process in processes))


def test_a_process_sends_no_chunk_that_is_not_requested(
    processes: Processes, minutes: Path
) -> None:
    ingest = InProcess(processes, cutting(minutes, vad="off"))
    with closing(ingest.chunks()) as chunks:
        next(chunks)
        assert ingest._link is not None
        readable, _, _ = select.select([ingest._link._socket], [], [], 1.0)
        assert not readable


@pytest.mark.parametrize("how", ["stop", "close"])
def test_a_recording_that_is_stopped_ends_its_ffmpeg(
    processes: Processes, tmp_path: Path, how: str
) -> None:
    hours = recordings.repeat(named("minute").path, tmp_path / "hours.mp3", 120)
    ingest = InProcess(processes, cutting(hours, max_audio_seconds=9000.0, vad="off"))
    chunks = ingest.chunks()
    next(chunks)
    (pid,) = busy(processes)
    assert ffmpegs(pid) != []
    if how == "stop":
        threading.Timer(0.05, ingest.stop).start()
        list(chunks)
    else:
        chunks.close()
    eventually(lambda: ffmpegs(pid) == [])
    assert busy(processes) == []
    assert psutil.pid_exists(pid)


def test_stopping_ends_an_ffmpeg_without_output(processes: Processes, tmp_path: Path) -> None:
    script = tmp_path / "ffmpeg"
    script.write_text("#!/bin/sh\nexec sleep 600\n")
    script.chmod(0o755)
    ingest = InProcess(processes, cutting(named("minute").path, ffmpeg=script))
    with ThreadPoolExecutor(1) as pool:
        chunks = pool.submit(list, ingest.chunks())
        eventually(lambda: any(ffmpegs(pid) for pid in busy(processes)))
        (pid,) = busy(processes)
        ingest.stop()
        assert chunks.result(PATIENCE_SECONDS) == []
    eventually(lambda: ffmpegs(pid) == [])


def test_a_recording_that_is_stopped_first_has_no_chunks(
    processes: Processes, minutes: Path
) -> None:
    ingest = InProcess(processes, cutting(minutes))
    ingest.stop()
    assert list(ingest.chunks()) == []


def test_signals_to_the_group_end_no_recording(processes: Processes, minutes: Path) -> None:
    expected = list(InThread(cutting(minutes), Detectors(processes.backend)).chunks())
    chunks = InProcess(processes, cutting(minutes)).chunks()
    first = next(chunks)
    (pid,) = busy(processes)
    os.kill(pid, signal.SIGTERM)
    os.kill(pid, signal.SIGINT)
    check_equal([first, *chunks], expected)
    assert psutil.pid_exists(pid)


WORKER = """
import sys
from pathlib import Path
from parakeet_worker.ingest.processes import InProcess, Processes
from test_ingest_cutting import cutting
processes = Processes(1, None)
while not next(iter(processes)).ready:
    pass
chunks = InProcess(processes, cutting(Path(sys.argv[1]), max_audio_seconds=9000.0)).chunks()
next(chunks)
print(next(iter(processes)).pid, flush=True)
sys.stdin.read()
"""


def test_a_killed_worker_leaves_no_process(tmp_path: Path) -> None:
    hours = recordings.repeat(named("minute").path, tmp_path / "hours.mp3", 120)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with subprocess.Popen(
        [sys.executable, "-c", WORKER, str(hours)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment,
    ) as worker:
        assert worker.stdout is not None
        pid = int(worker.stdout.readline())
        started = [psutil.Process(pid), *ffmpegs(pid)]
        assert len(started) > 1
        worker.kill()
    eventually(lambda: not any(process.is_running() for process in started))


def test_each_recording_goes_to_the_process_with_the_fewest(
    processes: Processes, minutes: Path
) -> None:
    recordings_ = [InProcess(processes, cutting(minutes)).chunks() for _ in range(4)]
    for chunks in recordings_:
        next(chunks)
    assert [process.recordings for process in processes] == [2, 2]
    for chunks in recordings_:
        chunks.close()
    assert [process.recordings for process in processes] == [0, 0]


def test_a_fork_of_the_worker_does_not_keep_the_processes(backend: VadBackend) -> None:
    """As the heartbeat is one, which ends after the worker."""
    with closing(Processes(2, backend)) as processes:
        pids = [process.pid for process in processes]
        ended, end = os.pipe()
        fork = os.fork()
        if fork == 0:
            os.read(ended, 1)
            os._exit(0)
        eventually(lambda: all(process.ready for process in processes))
        started = time.monotonic()
    try:
        assert not any(psutil.pid_exists(pid) for pid in pids)
        assert time.monotonic() - started < 5.0, "they were not killed after the time limit"
    finally:
        os.write(end, b"x")
        os.waitpid(fork, 0)
        os.close(ended)
        os.close(end)
