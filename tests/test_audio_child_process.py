"""Real processes; `sh` replaces ffmpeg."""

import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from parakeet_worker.audio.child_process import Child, Children, Stopped
from parakeet_worker.errors import FfmpegMissing

pytestmark = pytest.mark.usefixtures("children")

PATIENCE_SECONDS = 20.0


def shell(script: str) -> list[str]:
    return ["sh", "-c", script]


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_a_read_has_the_requested_size_for_any_writes() -> None:
    with Children() as children:
        child = children.start(shell("for part in 1 2 3 4; do printf aaaa; sleep 0.05; done"))
        assert bytes(child.read(10, PATIENCE_SECONDS) or b"") == b"a" * 10
        assert bytes(child.read(10, PATIENCE_SECONDS) or b"") == b"a" * 6
        assert bytes(child.read(10, PATIENCE_SECONDS) or b"none") == b"none"
        assert child.status() == 0


def test_a_read_that_takes_too_long_is_none() -> None:
    with Children() as children:
        child = children.start(shell("printf a; exec sleep 60"))
        assert child.read(10, 0.3) is None


def test_a_long_log_does_not_wait_for_the_next_read():
    child = Child(["sh", "-c", "head -c 800000 /dev/zero >&2"])
    try:
        child._process.wait(60)
        assert len(child.report()) > 1000
    finally:
        child.end()


def test_an_endless_log_keeps_its_head_and_tail() -> None:
    with Children() as children:
        script = "echo first >&2; yes noise | head -c 2000000 >&2; printf out; echo last >&2"
        child = children.start(shell(script))
        assert bytes(child.read(10, PATIENCE_SECONDS) or b"") == b"out"
        report = child.report()
    assert report.startswith("first\n")
    assert report.endswith("last\n")
    assert len(report) < 100_000


def test_stopping_from_another_thread_ends_a_read_and_starts_no_more() -> None:
    children = Children()
    with children:
        child = children.start(shell("exec sleep 60"))
        threading.Timer(0.1, children.stop).start()
        started = time.monotonic()
        assert bytes(child.read(10, PATIENCE_SECONDS) or b"") == b""
        assert time.monotonic() - started < PATIENCE_SECONDS
        with pytest.raises(Stopped):
            children.check()
        with pytest.raises(Stopped):
            children.start(shell("true"))


def test_all_are_dead_and_closed_after_the_block(
    children: Callable[[], list[psutil.Process]],
) -> None:
    before = open_files()
    with Children() as several:
        for _ in range(3):
            several.start(shell("exec yes"))
        several.end(several.start(shell("exec yes")))
        assert len(children()) == 3
    assert children() == []
    assert open_files() <= before


def test_a_program_that_is_not_there_leaves_nothing_open(tmp_path: Path) -> None:
    before = open_files()
    with pytest.raises(FfmpegMissing):
        Child([str(tmp_path / "none")])
    assert open_files() <= before


def test_the_worker_s_own_threads_come_before_all_threads_of_its_children() -> None:
    two_threads = (
        "import os, threading, time\n"
        "threading.Thread(target=time.sleep, args=(60,)).start()\n"
        "print(f'{os.getpid():8}', flush=True)"
    )
    own = os.getpriority(os.PRIO_PROCESS, 0)
    with Children() as children:
        child = children.start([sys.executable, "-c", two_threads])
        process = psutil.Process(int(bytes(child.read(8, PATIENCE_SECONDS) or b"")))
        assert niceness(process) == [min(own + 5, 19)] * 2
        child.step_back()
        assert niceness(process) == [min(own + 15, 19)] * 2
    assert os.getpriority(os.PRIO_PROCESS, 0) == own


def niceness(process: psutil.Process) -> list[int]:
    return [os.getpriority(os.PRIO_PROCESS, thread.id) for thread in process.threads()]


def test_a_child_has_as_much_memory_as_it_is_given() -> None:
    with Children(memory_bytes=64 << 20) as children:
        child = children.start(shell("sleep 0.2; grep 'Max data size' /proc/self/limits"))
        log_text = bytes(child.read(1000, PATIENCE_SECONDS) or b"").decode()
    assert log_text.split()[3:5] == [str(64 << 20)] * 2


def test_a_child_cannot_allocate_beyond_its_limit() -> None:
    script = "import time; time.sleep(0.3); b = bytearray(200 << 20); print(len(b))"
    with Children(memory_bytes=64 << 20) as children:
        child = children.start([sys.executable, "-c", script])
        assert bytes(child.read(1000, PATIENCE_SECONDS) or b"") == b""
        assert "MemoryError" in child.report()
        assert child.status() == 1
