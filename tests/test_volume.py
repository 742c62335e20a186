"""A shared volume: process identity, the fenced lease, atomic writes and translated errors."""

import errno
import json
import os
import time
from pathlib import Path

import pytest

from parakeet_worker.errors import SetupError
from parakeet_worker.volume.files import (
    read_json,
    remove,
    replace_symlink,
    translate_os_errors,
    write_atomic,
)
from parakeet_worker.volume.lease import Fenced, Leases
from parakeet_worker.volume.owner import Owner


def test_liveness_is_known_for_processes_of_this_machine_only() -> None:
    own = Owner.current()
    assert own.is_alive()
    assert Owner.from_json(json.dumps(own.to_dict())) == own
    assert Owner(own.machine, own.pid, "1").is_alive() is False
    assert Owner("elsewhere", own.pid, own.started).is_alive() is None
    assert Owner.from_json("{}") is Owner.from_json("[") is Owner.from_json("3") is None


def test_a_lease_without_a_heartbeat_is_taken_over_and_its_holder_fenced(tmp_path: Path) -> None:
    slow, quick = Leases(tmp_path / "leases", 0.2), Leases(tmp_path / "leases", 0.2)
    first = slow.try_acquire()
    assert first is not None
    first.check()
    assert quick.try_acquire() is None
    time.sleep(0.3)  # it was never entered, so there is no heartbeat
    second = quick.try_acquire()
    assert second is not None
    with pytest.raises(Fenced):
        first.check()
    with first:
        assert not first.is_held()
    with second:
        second.check()
        assert slow.try_acquire() is None


def test_a_lease_with_a_heartbeat_outlives_its_timeout(tmp_path: Path) -> None:
    own, other = Leases(tmp_path, 1.0), Leases(tmp_path, 1.0)
    lease = own.try_acquire()
    assert lease is not None
    with lease:
        lease.set_step("thinking")
        ends = time.monotonic() + 1.5
        while time.monotonic() < ends:
            assert other.try_acquire() is None
            time.sleep(0.1)
        assert "thinking" in other.holder()
    assert other.try_acquire() is not None


def test_a_reader_never_sees_a_partial_lease(tmp_path: Path) -> None:
    lease = Leases(tmp_path, 0.01).try_acquire()  # a heartbeat each millisecond
    assert lease is not None
    with lease:
        ends = time.monotonic() + 0.5
        while (tmp_path / "1").stat().st_size == 0:
            assert time.monotonic() < ends
        while time.monotonic() < ends:
            assert Owner.from_json((tmp_path / "1").read_text()) == Owner.current()


def test_a_lease_is_released_by_its_name_if_its_file_cannot_be_written(tmp_path: Path) -> None:
    own, other = Leases(tmp_path, 3600.0), Leases(tmp_path, 3600.0)
    lease = own.try_acquire()
    assert lease is not None
    with lease:
        assert other.try_acquire() is None
        # A folder in the place of the file: opening it for writing fails, renaming it does not.
        (tmp_path / "1").unlink()
        (tmp_path / "1").mkdir()
    assert (tmp_path / "1.released").exists()
    assert other.try_acquire() is not None


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (errno.ENOSPC, "volume_full"),
        (errno.EDQUOT, "volume_full"),
        (errno.EROFS, "volume_readonly"),
        (errno.EACCES, "volume_readonly"),
        (errno.EIO, "volume_unusable"),
    ],
)
def test_os_errors_are_translated(number: int, code: str) -> None:
    with pytest.raises(SetupError) as raised, translate_os_errors(Path("/volume")):
        raise OSError(number, os.strerror(number))
    assert raised.value.code == code


def test_an_atomic_write_leaves_no_temporary_file(tmp_path: Path) -> None:
    write_atomic(tmp_path / "file", "1")
    write_atomic(tmp_path / "file", "2")
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError, match="folder"):
        write_atomic(tmp_path / "folder", "3")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]
    assert (tmp_path / "file").read_text() == "2"


def test_a_folder_in_the_place_of_a_link_is_moved(tmp_path: Path) -> None:
    (tmp_path / "target").mkdir()
    (tmp_path / "link").mkdir()
    moved = replace_symlink(tmp_path / "link", tmp_path / "target")
    assert moved is not None
    assert moved.is_dir()
    assert (tmp_path / "link").resolve() == tmp_path / "target"
    assert replace_symlink(tmp_path / "link", tmp_path / "target") is None


def test_a_folder_is_removed_and_a_missing_one_ignored(tmp_path: Path) -> None:
    (tmp_path / "folder" / "inner").mkdir(parents=True)
    remove(tmp_path / "folder")
    remove(tmp_path / "folder")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", ["", '{"a": ', "3", "[]"])
def test_only_a_complete_object_is_read(tmp_path: Path, content: str) -> None:
    (tmp_path / "file").write_text(content)
    assert read_json(tmp_path / "file") is None
    assert read_json(tmp_path / "missing") is None
