"""Files on a shared volume: atomic writes, atomic removal, and errors translated."""

import errno
import fcntl
import json
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from parakeet_worker.errors import VolumeFull, VolumeReadonly, VolumeUnusable

REMOVED_PREFIX = ".removed-"
"""Prefix of folders that are being removed."""
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_READONLY = (errno.EROFS, errno.EACCES, errno.EPERM)


@contextmanager
def translate_os_errors(folder: Path) -> Iterator[None]:
    """Raise `VolumeFull`, `VolumeReadonly` or `VolumeUnusable` from an `OSError`."""
    try:
        yield
    except OSError as failure:
        reason = failure.strerror or str(failure)
        if failure.errno in _FULL:
            raise VolumeFull(str(folder)) from failure
        if failure.errno in _READONLY:
            raise VolumeReadonly(str(folder), reason) from failure
        raise VolumeUnusable(str(folder), reason) from failure


def write_atomic(target: Path, content: str) -> None:
    """Write a temporary file and rename it: `target` never has partial content."""
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
    try:
        temporary.write_text(content)
        temporary.replace(target)
    except OSError:
        with suppress(OSError):
            temporary.unlink()
        raise


def replace_symlink(link: Path, target: Path) -> Path | None:
    """Point `link` at `target` atomically, by a relative path.

    Returns the new path of a folder that was in the place of the link, else None.
    """
    relative = os.path.relpath(target, link.parent)
    if link.is_symlink() and str(link.readlink()) == relative:
        return None
    moved = None
    if link.is_dir() and not link.is_symlink():
        moved = link.rename(link.with_name(f"{link.name}.replaced-{secrets.token_hex(4)}"))
    temporary = link.with_name(f".{link.name}.{secrets.token_hex(4)}")
    temporary.symlink_to(relative)
    try:
        temporary.replace(link)
    except OSError:
        temporary.unlink()
        raise
    return moved


def remove(folder: Path) -> None:
    """Rename a folder, then delete it, so that no process sees it partly deleted."""
    doomed = folder.with_name(f"{REMOVED_PREFIX}{secrets.token_hex(4)}")
    with suppress(OSError):
        if not folder.name.startswith(REMOVED_PREFIX):
            folder.rename(doomed)
            folder = doomed
        shutil.rmtree(folder, ignore_errors=True)


def supports_flock(folder: Path) -> bool:
    """Whether files in a folder can be locked; some network file systems have no locks."""
    with tempfile.TemporaryFile(dir=folder) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
    return True


def read_json(path: Path) -> dict[str, object] | None:
    """Read a JSON object; None if the file is missing, incomplete or something else."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None
