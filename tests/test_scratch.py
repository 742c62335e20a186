"""The folder for jobs' files, on a real disk; a full one is made by a limit on file sizes."""

import asyncio
import resource
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from confined import mounted
from parakeet_worker.errors import InvalidSetting, ScratchFull, ScratchUnusable
from parakeet_worker.scratch import Scratch
from test_audio_child_process import open_files

removing: dict[str, int] = {}
making: dict[str, int] = {}


def note(event: str, value: tuple[object, ...]) -> None:
    if event == "shutil.rmtree":
        removing[str(value[0])] = threading.get_ident()
    elif event == "os.mkdir":
        making[str(Path(str(value[0])).parent)] = threading.get_ident()


sys.addaudithook(note)

HOLDER = """
import asyncio, sys
from pathlib import Path
from parakeet_worker.scratch import Scratch
async def main():
    disk = Scratch(Path(sys.argv[1]), least_bytes=0, timeout_seconds=1.0)
    async with disk.made() as folder:
        (folder / "audio").write_bytes(bytes(1000))
        print(folder, flush=True)
        sys.stdin.read()
asyncio.run(main())
"""


def scratch(folder: Path, *, least_bytes: int = 0, timeout_seconds: float = 30.0) -> Scratch:
    return Scratch(folder, least_bytes=least_bytes, timeout_seconds=timeout_seconds)


@contextmanager
def full_disk(room_bytes: int = 1000) -> Iterator[None]:
    """No file can grow beyond so much; the error is one of those of a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


async def test_a_jobs_folder_is_removed_after_the_block(tmp_path: Path) -> None:
    before = open_files()
    async with scratch(tmp_path).made() as folder:
        (folder / "audio").write_bytes(b"a")
        assert list(tmp_path.iterdir()) == [folder]
    assert list(tmp_path.iterdir()) == []
    assert open_files() <= before


@pytest.mark.parametrize("kind", ["missing", "a file"])
def test_a_folder_that_cannot_be_written_to_is_a_setting_to_correct(
    tmp_path: Path, kind: str
) -> None:
    if kind == "a file":
        (tmp_path / "place").touch()
    with pytest.raises(InvalidSetting, match="place cannot be written to"):
        scratch(tmp_path / "place").prepare()


def test_what_a_killed_worker_left_is_removed_and_what_lives_is_not(tmp_path: Path) -> None:
    holders = [
        subprocess.Popen(
            [sys.executable, "-c", HOLDER, str(tmp_path)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )
        for _ in range(2)
    ]  # fmt: skip
    try:
        folders = [Path(holder.stdout.readline().strip()) for holder in holders if holder.stdout]
        holders[0].kill()
        holders[0].wait()
        (tmp_path / "parakeet-kernels").mkdir()  # not a job's
        scratch(tmp_path).prepare()
        assert sorted(tmp_path.iterdir()) == sorted([folders[1], tmp_path / "parakeet-kernels"])
        assert (folders[1] / "audio").stat().st_size == 1000
        holders[1].communicate()
        assert not folders[1].exists()
    finally:
        for holder in holders:
            holder.kill()
            holder.communicate()


async def test_a_full_disk_is_the_workers_state_and_nothing_is_taken_for_a_while(
    tmp_path: Path,
) -> None:
    disk = scratch(tmp_path)
    assert disk.shortage() is None
    with full_disk(), pytest.raises(ScratchFull, match="scratch_full: no room on"):
        async with disk.made() as folder:
            (folder / "audio").write_bytes(bytes(2000))
    assert isinstance(disk.shortage(), ScratchFull)
    assert list(tmp_path.iterdir()) == []


async def test_after_a_failed_job_none_is_taken_until_a_file_can_be_written(tmp_path: Path) -> None:
    # As with a quota, the free space of the disk shows nothing.
    disk = Scratch(tmp_path, least_bytes=5000, timeout_seconds=1.0, pause_seconds=0.0)
    with full_disk():
        with pytest.raises(ScratchFull):
            async with disk.made() as folder:
                (folder / "audio").write_bytes(bytes(2000))
        for _ in range(20):
            assert isinstance(disk.shortage(), ScratchFull)
            await asyncio.sleep(0.01)
    while disk.shortage() is not None:  # noqa: ASYNC110  # a disk has no event
        await asyncio.sleep(0.01)
    assert list(tmp_path.iterdir()) == []


async def test_a_folder_that_cannot_be_made_is_the_workers_fault(tmp_path: Path) -> None:
    place = tmp_path / "place"
    disk = scratch(place)
    with pytest.raises(ScratchUnusable):
        async with disk.made():
            pass
    place.mkdir()
    assert isinstance(disk.shortage(), ScratchUnusable)


# On a disk of its own: jobs and shortages, before and after each change by the shell.
CHANGING = """
import asyncio, subprocess, sys
from pathlib import Path
from parakeet_worker.errors import ParakeetError
from parakeet_worker.scratch import Scratch
async def job(disk):
    try:
        async with disk.made() as folder:
            (folder / "audio").write_bytes(b"a")
    except ParakeetError as error:
        return error.code
def code(error):
    return error and error.code
async def main():
    disk = Scratch(Path(sys.argv[1]), least_bytes=0, timeout_seconds=1.0)
    for change in sys.argv[2:]:
        subprocess.run(["sh", "-ec", change], cwd=disk.folder, check=False)
        print(code(disk.shortage()), await job(disk), code(disk.shortage()))
asyncio.run(main())
"""


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        ("mount -o remount,ro .", "scratch_unusable"),
        ("while touch $((number = number + 1)) 2>/dev/null; do :; done", "scratch_full"),
    ],
)
def test_a_disk_that_no_job_can_use_is_a_shortage_before_the_next_job(
    tmp_path: Path, fault: str, code: str
) -> None:
    prefix = mounted(f"mount -t tmpfs -o size=1m,nr_inodes=20 none {tmp_path}")
    command = [*prefix, sys.executable, "-c", CHANGING, str(tmp_path), "true", fault]
    ran = subprocess.run(command, check=True, capture_output=True, text=True)
    assert ran.stdout.splitlines() == ["None None None", f"{code} {code} {code}"]


async def test_other_failures_of_files_pass(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        async with scratch(tmp_path).made() as folder:
            (folder / "none").read_bytes()


def test_too_little_room_is_a_shortage(tmp_path: Path) -> None:
    free = shutil.disk_usage(tmp_path).free
    shortage = scratch(tmp_path, least_bytes=2 * free).shortage()
    assert isinstance(shortage, ScratchFull)
    assert isinstance(scratch(tmp_path / "missing").shortage(), ScratchUnusable)


async def test_what_may_be_written_together_fits_on_the_disk(tmp_path: Path) -> None:
    disk, order = scratch(tmp_path), []
    most = int(shutil.disk_usage(tmp_path).free * 0.6)

    async def job(name: str) -> None:
        async with disk.reserved(most):
            order.append(f"{name} begins")
            await asyncio.sleep(0.2)
            order.append(f"{name} ends")

    await asyncio.gather(job("a"), job("b"))
    assert order == ["a begins", "a ends", "b begins", "b ends"]


async def test_one_alone_may_try_and_one_more_is_refused_in_time(tmp_path: Path) -> None:
    disk = scratch(tmp_path, timeout_seconds=0.3)
    huge = shutil.disk_usage(tmp_path).free * 2
    async with disk.reserved(huge):
        with pytest.raises(ScratchFull):
            async with disk.reserved(1):
                pass
    async with disk.reserved(1), disk.reserved(1):
        pass


async def test_a_cancelled_wait_does_not_hold_up_others(tmp_path: Path) -> None:
    disk = scratch(tmp_path)
    huge = shutil.disk_usage(tmp_path).free * 2

    async def job() -> None:
        async with disk.reserved(huge):
            await asyncio.sleep(60)

    jobs = [asyncio.create_task(job()) for _ in range(3)]
    await asyncio.sleep(0.1)
    for each in jobs:
        each.cancel()
    await asyncio.gather(*jobs, return_exceptions=True)
    async with asyncio.timeout(5), disk.reserved(huge):
        pass


async def test_a_folder_is_made_and_removed_with_what_is_in_it_by_other_threads(
    tmp_path: Path,
) -> None:
    async with scratch(tmp_path).made() as folder:
        assert making[str(tmp_path)] != threading.get_ident()
        (folder / "recording").write_bytes(bytes(100_000))
        assert folder.parent == tmp_path
    assert not folder.exists()
    assert removing[str(folder)] != threading.get_ident()


async def test_a_folder_is_removed_of_a_request_that_is_cancelled_twice(tmp_path: Path) -> None:
    entered = asyncio.Event()

    async def request() -> None:
        async with scratch(tmp_path).made() as folder:
            (folder / "recording").write_bytes(bytes(100_000))
            entered.set()
            await asyncio.sleep(60)

    running = asyncio.create_task(request())
    await entered.wait()
    running.cancel()
    await asyncio.sleep(0)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    await emptied(tmp_path)


async def test_a_folder_is_removed_of_a_request_that_is_cancelled_while_it_is_made(
    tmp_path: Path,
) -> None:
    async def request() -> None:
        async with scratch(tmp_path).made():
            await asyncio.sleep(60)

    before = open_files()
    for steps in range(20):
        running = asyncio.create_task(request())
        for _ in range(steps):
            await asyncio.sleep(0)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    for _ in range(2000):  # the last thread may start late
        if str(tmp_path) in making:
            break
        await asyncio.sleep(0.01)
    assert making[str(tmp_path)]
    await emptied(tmp_path)
    for _ in range(2000):
        if open_files() <= before:
            return
        await asyncio.sleep(0.01)
    assert open_files() <= before


async def emptied(folder: Path) -> None:
    """Wait for the threads that remove what is in it."""
    for _ in range(2000):
        if not list(folder.iterdir()):
            return
        await asyncio.sleep(0.01)
    assert not list(folder.iterdir())
