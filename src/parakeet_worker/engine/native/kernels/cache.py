"""Cache of compiled kernels: reads from several folders, writes to one.

Triton's own cache is one writable folder, and its entries refer to their files by absolute path.
Here an image's read-only folder precedes a writable one, entries can be moved, and an entry with
missing or truncated files is ignored.
"""

import atexit
import json
import os
import platform
import sys
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from uuid import uuid4

from triton import knobs
from triton.runtime import build
from triton.runtime.cache import CacheManager, FileCacheManager

_used_keys: set[str] = set()


class KernelCache(CacheManager):  # type: ignore[misc]  # Triton has no types
    """One entry of the cache: the files of one kernel, or of one compiled module."""

    def __init__(self, folders: Sequence[Path], key: str) -> None:
        self._entries = [folder / key for folder in folders]

    def get_file(self, filename: str) -> str | None:
        """Return the file's path in the first folder that contains it."""
        for entry in self._entries:
            if (entry / filename).is_file():
                return str(entry / filename)
        return None

    def get_group(self, filename: str) -> dict[str, str] | None:
        """Return the paths by name of a group of files, if each has its recorded size."""
        for entry in self._entries:
            sizes = _recorded_sizes(entry / _group_name(filename))
            if sizes and all(_size(entry / name) == size for name, size in sizes.items()):
                return {name: str(entry / name) for name in sizes}
        return None

    def put(self, data: bytes | str, filename: str, binary: bool = True) -> str:  # noqa: ARG002
        """Write a file to the last folder, atomically. Raises `OSError`."""
        path = self._entries[-1] / filename
        write_atomic(path, data if isinstance(data, bytes) else str(data).encode())
        return str(path)

    def put_group(self, filename: str, group: dict[str, str]) -> str:
        """Commit the files of a kernel as an entry, by recording their sizes."""
        sizes = {name: Path(path).stat().st_size for name, path in group.items()}
        return self.put(json.dumps(sizes), _group_name(filename))


def write_atomic(path: Path, content: bytes) -> None:
    """Write a file atomically and durably: temporary name, fsync, rename. Raises `OSError`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{uuid4().hex}")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def with_writable(folders: Sequence[Path]) -> tuple[Path, ...]:
    """`folders`, plus a temporary folder of this process if the last is not writable."""
    if folders:
        with suppress(OSError):
            write_atomic(folders[-1] / ".written", b"")
            return tuple(folders)
    temporary = TemporaryDirectory(prefix="parakeet-kernels-")
    atexit.register(temporary.cleanup)
    return (*folders, Path(temporary.name))


def activate(folders: Sequence[Path], *, sources: bool = False) -> None:
    """Make Triton read compiled kernels from all of `folders` and write new ones to the last.

    `sources` keeps the intermediate representations (PTX and others) as well.
    """
    _used_keys.clear()
    # Part of the key of C modules. Triton's own version runs `file`; without it the key differs.
    build.platform_key = _platform
    knobs.compilation.store_binary_only = not sources
    knobs.cache.manager_class = partial(_manager, tuple(folders))


def _platform() -> str:
    return f"{sys.platform}-{platform.machine()}"


def used_keys() -> frozenset[str]:
    """Keys of the entries that this process has requested since `activate`."""
    return frozenset(_used_keys)


def _manager(
    folders: Sequence[Path],
    key: str,
    override: bool = False,
    dump: bool = False,
) -> CacheManager:
    if override or dump:  # requested by Triton's own environment variables
        return FileCacheManager(key, override=override, dump=dump)
    _used_keys.add(key)
    return KernelCache(folders, key)


def _group_name(filename: str) -> str:
    return f"whole-{filename}"


def _recorded_sizes(path: Path) -> dict[str, int]:
    try:
        sizes = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return sizes if isinstance(sizes, dict) else {}


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return -1
