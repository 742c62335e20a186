"""An entry of the kernel cache is complete or absent, in any of its folders."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from triton import knobs
from triton.runtime.cache import get_cache_manager

from parakeet_worker.engine.native.kernels import cache

KEY = "ab" * 32
FILES = {"kernel.cubin": b"\x7fELF" + bytes(1000), "kernel.json": b'{"shared": 0}'}


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    """Restore Triton's own cache."""
    yield
    knobs.cache.manager_class = None
    knobs.compilation.store_binary_only = False


def store(folders: list[Path]) -> None:
    """Write an entry as Triton does: each file, the metadata last, then the group."""
    cache.activate(folders)
    manager = get_cache_manager(KEY)
    paths = {name: manager.put(content, name) for name, content in FILES.items()}
    manager.put_group("kernel.json", paths)


def load(folders: list[Path]) -> dict[str, bytes] | None:
    cache.activate(folders)
    group = get_cache_manager(KEY).get_group("kernel.json")
    return None if group is None else {n: Path(p).read_bytes() for n, p in group.items()}


def test_an_entry_is_found_in_any_of_the_folders(tmp_path: Path) -> None:
    image, own = tmp_path / "image", tmp_path / "own"
    store([image])
    assert load([own, image]) == load([image, own]) == FILES
    assert not own.exists(), "reading writes nothing"
    assert load([own]) is None


def test_new_entries_are_written_to_the_last_folder(tmp_path: Path) -> None:
    store([tmp_path / "image", tmp_path / "own"])
    assert not (tmp_path / "image").exists()
    assert load([tmp_path / "own"]) == FILES


def test_a_folder_may_be_moved(tmp_path: Path) -> None:
    store([tmp_path / "before"])
    (tmp_path / "before").rename(tmp_path / "after")
    assert load([tmp_path / "after"]) == FILES


@pytest.mark.parametrize("name", FILES)
def test_an_entry_with_a_truncated_or_missing_file_is_ignored(tmp_path: Path, name: str) -> None:
    """The entry of another folder is used instead."""
    store([tmp_path / "one"])
    store([tmp_path / "two"])
    (path,) = (tmp_path / "one").rglob(name)
    path.write_bytes(FILES[name][:-1])
    assert load([tmp_path / "one"]) is None
    assert load([tmp_path / "one", tmp_path / "two"]) == FILES
    path.unlink()
    assert load([tmp_path / "one"]) is None


def test_an_unreadable_group_is_ignored(tmp_path: Path) -> None:
    store([tmp_path])
    (group,) = tmp_path.rglob("whole-*")
    for text in ("", "[]", json.dumps({})):
        group.write_text(text)
        assert load([tmp_path]) is None


KILLED = """
import os, signal, sys
from pathlib import Path
from parakeet_worker.engine.native.kernels import cache

def killed(_):
    os.kill(os.getpid(), signal.SIGKILL)

os.fsync = killed
cache.write_atomic(Path(sys.argv[1]), b"half")
"""


def test_a_process_killed_while_writing_leaves_no_entry(tmp_path: Path) -> None:
    """A later write succeeds."""
    path = tmp_path / "kernel.cubin"
    process = subprocess.run([sys.executable, "-c", KILLED, str(path)], check=False)
    assert process.returncode == -signal.SIGKILL
    assert len(list(tmp_path.iterdir())) == 1, "the write had started"
    assert not path.exists()
    cache.write_atomic(path, b"whole")
    assert path.read_bytes() == b"whole"


def test_a_failed_write_leaves_no_temporary_file(tmp_path: Path) -> None:
    (tmp_path / "kernel.cubin").mkdir()
    with pytest.raises(OSError, match="directory"):
        cache.write_atomic(tmp_path / "kernel.cubin", b"whole")
    assert [path.name for path in tmp_path.iterdir()] == ["kernel.cubin"]


def test_without_a_writable_folder_a_temporary_one_is_added(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    assert cache.with_writable([tmp_path / "image", tmp_path / "own"])[-1] == tmp_path / "own"
    for folders in ([], [tmp_path / "image", file / "kernels"]):
        *before, own = cache.with_writable(folders)
        assert before == folders
        store([*before, own])
        assert load([own]) == FILES


def test_the_key_of_a_c_module_is_independent_of_installed_tools(
    tmp_path: Path,
) -> None:
    """Triton's own key depends on the command `file`, which an image may lack."""
    from triton.runtime import build

    cache.activate([tmp_path])
    assert build.platform_key() == f"{sys.platform}-{os.uname().machine}"
