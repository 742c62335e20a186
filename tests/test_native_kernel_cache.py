"""What is kept of a kernel is whole or not there, in whichever folder it lies."""

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
    """Triton's own cache is the process's again."""
    yield
    knobs.cache.manager_class = None
    knobs.compilation.store_binary_only = False


def keep(folders: list[Path]) -> None:
    """As Triton does: each file, the metadata last, then the group."""
    cache.use(folders)
    manager = get_cache_manager(KEY)
    paths = {name: manager.put(content, name) for name, content in FILES.items()}
    manager.put_group("kernel.json", paths)


def found(folders: list[Path]) -> dict[str, bytes] | None:
    cache.use(folders)
    group = get_cache_manager(KEY).get_group("kernel.json")
    return None if group is None else {n: Path(p).read_bytes() for n, p in group.items()}


def test_what_is_kept_is_found_in_any_of_the_folders(tmp_path: Path) -> None:
    image, own = tmp_path / "image", tmp_path / "own"
    keep([image])
    assert found([own, image]) == found([image, own]) == FILES
    assert not own.exists(), "reading writes nothing"
    assert found([own]) is None


def test_new_entries_go_to_the_last_folder(tmp_path: Path) -> None:
    keep([tmp_path / "image", tmp_path / "own"])
    assert not (tmp_path / "image").exists()
    assert found([tmp_path / "own"]) == FILES


def test_a_folder_may_be_moved(tmp_path: Path) -> None:
    keep([tmp_path / "before"])
    (tmp_path / "before").rename(tmp_path / "after")
    assert found([tmp_path / "after"]) == FILES


@pytest.mark.parametrize("name", FILES)
def test_an_entry_with_a_file_that_is_not_whole_is_none(tmp_path: Path, name: str) -> None:
    """A disk may have lost it; another folder's entry is taken then."""
    keep([tmp_path / "one"])
    keep([tmp_path / "two"])
    (path,) = (tmp_path / "one").rglob(name)
    path.write_bytes(FILES[name][:-1])
    assert found([tmp_path / "one"]) is None
    assert found([tmp_path / "one", tmp_path / "two"]) == FILES
    path.unlink()
    assert found([tmp_path / "one"]) is None


def test_a_group_that_cannot_be_read_is_none(tmp_path: Path) -> None:
    keep([tmp_path])
    (group,) = tmp_path.rglob("whole-*")
    for text in ("", "[]", json.dumps({})):
        group.write_text(text)
        assert found([tmp_path]) is None


KILLED = """
import os, signal, sys
from pathlib import Path
from parakeet_worker.engine.native.kernels import cache

def killed(_):
    os.kill(os.getpid(), signal.SIGKILL)

os.fsync = killed
cache.write(Path(sys.argv[1]), b"half")
"""


def test_a_process_that_is_killed_while_it_writes_leaves_no_entry(tmp_path: Path) -> None:
    """And the next one writes it."""
    path = tmp_path / "kernel.cubin"
    ran = subprocess.run([sys.executable, "-c", KILLED, str(path)], check=False)
    assert ran.returncode == -signal.SIGKILL
    assert len(list(tmp_path.iterdir())) == 1, "it had begun"
    assert not path.exists()
    cache.write(path, b"whole")
    assert path.read_bytes() == b"whole"


def test_what_cannot_be_written_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "kernel.cubin").mkdir()
    with pytest.raises(OSError, match="directory"):
        cache.write(tmp_path / "kernel.cubin", b"whole")
    assert [path.name for path in tmp_path.iterdir()] == ["kernel.cubin"]


def test_a_process_has_a_folder_of_its_own_where_none_can_be_written_to(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    assert cache.writable([tmp_path / "image", tmp_path / "own"])[-1] == tmp_path / "own"
    for folders in ([], [tmp_path / "image", file / "kernels"]):
        *before, own = cache.writable(folders)
        assert before == folders
        keep([*before, own])
        assert found([own]) == FILES


def test_the_key_of_a_c_module_does_not_depend_on_the_tools_of_the_machine(
    tmp_path: Path,
) -> None:
    """Triton's own asks the command `file`, which an image may lack."""
    from triton.runtime import build

    cache.use([tmp_path])
    assert build.platform_key() == f"{sys.platform}-{os.uname().machine}"
