"""Where compiled kernels are kept: read from several folders, written to one.

Triton's own cache is one folder that must be writable, and its entries name their files by absolute
paths. Here an image's read-only folder stands before a writable one, entries can be moved, and an
entry whose files are not whole is not there.
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

_used: set[str] = set()


class KernelCache(CacheManager):  # type: ignore[misc]  # Triton has no types
    """One entry of the cache: the files of one kernel, or of one compiled module."""

    def __init__(self, folders: Sequence[Path], key: str) -> None:
        self._places = [folder / key for folder in folders]

    def get_file(self, filename: str) -> str | None:
        """Its path in the first folder that has it."""
        for place in self._places:
            if (place / filename).is_file():
                return str(place / filename)
        return None

    def get_group(self, filename: str) -> dict[str, str] | None:
        """Paths by name of all files that were put together, if each has its size."""
        for place in self._places:
            sizes = _sizes(place / _group(filename))
            if sizes and all(_size(place / name) == size for name, size in sizes.items()):
                return {name: str(place / name) for name in sizes}
        return None

    def put(self, data: bytes | str, filename: str, binary: bool = True) -> str:  # noqa: ARG002
        """Write a file to the last folder: all of it or nothing. Raises `OSError`."""
        path = self._places[-1] / filename
        write(path, data if isinstance(data, bytes) else str(data).encode())
        return str(path)

    def put_group(self, filename: str, group: dict[str, str]) -> str:
        """Make the files of a kernel an entry; until then they are none."""
        sizes = {name: Path(path).stat().st_size for name, path in group.items()}
        return self.put(json.dumps(sizes), _group(filename))


def write(path: Path, content: bytes) -> None:
    """Write a file that holds all of it or is not there, whatever happens. Raises `OSError`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{uuid4().hex}")
    try:
        with aside.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def writable(folders: Sequence[Path]) -> tuple[Path, ...]:
    """`folders`, and after them one for this process alone if the last cannot be written to."""
    if folders:
        with suppress(OSError):
            write(folders[-1] / ".written", b"")
            return tuple(folders)
    own = TemporaryDirectory(prefix="parakeet-kernels-")
    atexit.register(own.cleanup)
    return (*folders, Path(own.name))


def use(folders: Sequence[Path], *, sources: bool = False) -> None:
    """From now on read compiled kernels from all of `folders` and write new ones to the last.

    With `sources`, what a kernel was before it became machine code is kept too.
    """
    _used.clear()
    # Part of the key of C modules. Triton's own runs `file`, and has another one without it.
    build.platform_key = _platform
    knobs.compilation.store_binary_only = not sources
    knobs.cache.manager_class = partial(_opened, tuple(folders))


def _platform() -> str:
    return f"{sys.platform}-{platform.machine()}"


def used() -> frozenset[str]:
    """The entries that this process has asked for since `use`."""
    return frozenset(_used)


def _opened(
    folders: Sequence[Path],
    key: str,
    override: bool = False,
    dump: bool = False,
) -> CacheManager:
    if override or dump:  # what Triton's own variables ask for goes where they say
        return FileCacheManager(key, override=override, dump=dump)
    _used.add(key)
    return KernelCache(folders, key)


def _group(filename: str) -> str:
    return f"whole-{filename}"


def _sizes(path: Path) -> dict[str, int]:
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
