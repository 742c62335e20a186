"""An environment's many small files in one: a network volume hands out one file fast.

What is large, and what only compilers read, is left on the volume, and linked to from the copy.
"""

import hashlib
import io
import os
import stat
import tarfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO

_SMALL_BYTES = 1 << 20
_AT_ONCE = 32
"""Files asked for at once: a network volume is slow to answer, not to answer many."""
_WINDOW = 512
_BUFFER_BYTES = 1 << 20
_HEADERS = "include"


class ArchiveDamaged(Exception):
    """It is not what was packed."""


@dataclass(frozen=True, slots=True)
class Archive:
    """What was packed, and what was left."""

    sha256: str
    bytes: int
    left: tuple[str, ...]
    """Files and folders, by their names in the environment, that a copy links to."""

    @classmethod
    def read(cls, record: object) -> "Archive":
        """What `asdict` made of one; raises `ArchiveDamaged`."""
        try:
            said = dict(record)  # type: ignore[call-overload]  # JSON
            return cls(str(said["sha256"]), int(said["bytes"]), tuple(map(str, said["left"])))
        except (KeyError, TypeError, ValueError) as failure:
            raise ArchiveDamaged("its record is torn") from failure

    @property
    def room_bytes(self) -> int:
        """What a copy takes at most, as file systems count."""
        return self.bytes * 3 // 2 + (64 << 20)


def survey(folder: Path) -> dict[str, os.stat_result]:
    """Every file and link below `folder`, by its name in it."""
    names = []
    for inner, folders, files in os.walk(folder):
        below = Path(inner)
        links = [name for name in folders if (below / name).is_symlink()]
        names += [str((below / name).relative_to(folder)) for name in (*files, *links)]
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        states = pool.map(lambda name: (folder / name).lstat(), names)
        return dict(zip(names, states, strict=True))


def pack(folder: Path, found: Mapping[str, os.stat_result], target: Path) -> Archive:
    """Write the small ones of what was `found` in `folder`; raises `OSError`."""
    left = {name: _left(name, state) for name, state in found.items()}
    wanted = sorted(name for name in found if left[name] is None)
    with (
        target.open("wb") as opened,
        tarfile.open(fileobj=(digesting := _Digesting(opened)), mode="w|") as archive,
        ThreadPoolExecutor(_AT_ONCE) as pool,
    ):
        for at in range(0, len(wanted), _WINDOW):
            some = wanted[at : at + _WINDOW]
            contents = pool.map(lambda name: _read(folder / name), some)
            for name, content in zip(some, contents, strict=True):
                archive.addfile(*_member(name, found[name], content))
    return Archive(
        sha256=digesting.digest.hexdigest(),
        bytes=target.stat().st_size,
        left=tuple(sorted({name for name in left.values() if name is not None})),
    )


def unpack(source: Path, archive: Archive, environment: Path, into: Path) -> None:
    """A copy of `environment` at `into`; raises `ArchiveDamaged` and `OSError`."""
    try:
        with (
            source.open("rb") as opened,
            tarfile.open(
                fileobj=(digesting := _Digesting(opened)), mode="r|", bufsize=_BUFFER_BYTES
            ) as members,
        ):
            # Links may lead out of it: to the container's Python. The digest says it is ours.
            members.extraction_filter = lambda member, _: member
            members.extractall(into)  # noqa: S202
            while digesting.read(_BUFFER_BYTES):
                pass
    except tarfile.TarError as failure:
        raise ArchiveDamaged(str(failure)) from failure
    if digesting.digest.hexdigest() != archive.sha256:
        raise ArchiveDamaged("its content is not what was packed")
    for name in archive.left:
        link = into / name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(environment / name)


def _left(name: str, state: os.stat_result) -> str | None:
    """A large file itself, the folder of headers that one is in, or None: it is packed."""
    folders = Path(name).parts[:-1]
    if _HEADERS in folders:
        return str(Path(*folders[: folders.index(_HEADERS) + 1]))
    return name if state.st_size >= _SMALL_BYTES else None


def _read(path: Path) -> bytes:
    """A file's content, or where a link leads."""
    return os.fsencode(path.readlink()) if path.is_symlink() else path.read_bytes()


def _member(
    name: str, state: os.stat_result, content: bytes
) -> tuple[tarfile.TarInfo, IO[bytes] | None]:
    member = tarfile.TarInfo(name)
    member.mode = stat.S_IMODE(state.st_mode)
    member.mtime = int(state.st_mtime)  # compiled modules know their sources by it
    if stat.S_ISLNK(state.st_mode):
        member.type, member.linkname = tarfile.SYMTYPE, os.fsdecode(content)
        return member, None
    member.size = len(content)
    return member, io.BytesIO(content)


class _Digesting(io.RawIOBase):
    """A stream that is hashed as it passes."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self.digest = hashlib.sha256()

    def read(self, size: int = -1, /) -> bytes:
        content = self._stream.read(size)
        self.digest.update(content)
        return content

    def write(self, content: bytes, /) -> int:  # type: ignore[override]  # tarfile gives bytes
        self.digest.update(content)
        return self._stream.write(content)
