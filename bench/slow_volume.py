"""A folder as a network volume shows it: every operation waits before it is done.

Runs under any Python with `mfusepy` (and libfuse), which is no part of this project's
environment: `python bench/slow_volume.py FOLDER MOUNT --milliseconds 1`. Ends with
`fusermount3 -u MOUNT` and prints how many operations there were. As a network file system does,
names and sizes are cached for a second; a new mount has an empty cache.
"""

import argparse
import errno
import itertools
import os
import time
from pathlib import Path

import mfusepy


class SlowVolume(mfusepy.Operations):  # type: ignore[misc]  # has no types here
    """Every call is passed on to the folder below, after a pause."""

    use_ns = True

    def __init__(self, below: Path, delay_seconds: float) -> None:
        self._below = str(below.resolve())
        self._delay_seconds = delay_seconds
        self._counted = itertools.count()  # many threads count here

    @property
    def operations(self) -> int:
        """How many there were; ends the count."""
        return next(self._counted)

    def _at(self, path: str) -> str:
        self._pause()
        return self._below + path

    def _pause(self) -> None:
        next(self._counted)
        time.sleep(self._delay_seconds)

    def getattr(self, path: str, _handle: int | None = None) -> dict[str, int]:
        status = os.lstat(self._at(path))
        names = ("st_mode", "st_nlink", "st_uid", "st_gid", "st_size")
        times = {f"st_{one}time": getattr(status, f"st_{one}time_ns") for one in "acm"}
        return {name: getattr(status, name) for name in names} | times

    def access(self, path: str, mode: int) -> int:
        if not os.access(self._at(path), mode):
            raise mfusepy.FuseOSError(errno.EACCES)
        return 0

    def readdir(self, path: str, _handle: int) -> list[str]:
        return [".", "..", *os.listdir(self._at(path))]  # noqa: PTH208  # names

    def readlink(self, path: str) -> str:
        return os.readlink(self._at(path))  # noqa: PTH115  # text

    def open(self, path: str, flags: int) -> int:
        return os.open(self._at(path), flags)

    def create(self, path: str, mode: int, _info: object = None) -> int:
        return os.open(self._at(path), os.O_RDWR | os.O_CREAT | os.O_TRUNC, mode)

    def read(self, _path: str, size: int, offset: int, handle: int) -> bytes:
        self._pause()
        return os.pread(handle, size, offset)

    def write(self, _path: str, content: bytes, offset: int, handle: int) -> int:
        self._pause()
        return os.pwrite(handle, content, offset)

    def truncate(self, path: str, length: int, _handle: int | None = None) -> None:
        os.truncate(self._at(path), length)

    def release(self, _path: str, handle: int) -> None:
        self._pause()
        os.close(handle)

    def flush(self, _path: str, _handle: int) -> int:
        self._pause()
        return 0

    def fsync(self, _path: str, _data_only: int, handle: int) -> None:
        self._pause()
        os.fsync(handle)

    def statfs(self, path: str) -> dict[str, int]:
        status = os.statvfs(self._at(path))
        names = ("f_bsize", "f_frsize", "f_blocks", "f_bfree", "f_bavail", "f_files", "f_ffree")
        return {name: getattr(status, name) for name in (*names, "f_namemax")}

    def mkdir(self, path: str, mode: int) -> None:
        os.mkdir(self._at(path), mode)  # noqa: PTH102

    def rmdir(self, path: str) -> None:
        os.rmdir(self._at(path))  # noqa: PTH106

    def unlink(self, path: str) -> None:
        os.unlink(self._at(path))  # noqa: PTH108

    def rename(self, old: str, new: str) -> None:
        os.rename(self._at(old), self._below + new)  # noqa: PTH104

    def symlink(self, path: str, target: str) -> None:
        os.symlink(target, self._at(path))  # noqa: PTH211

    def link(self, path: str, source: str) -> None:
        os.link(self._below + source, self._at(path))

    def chmod(self, path: str, mode: int) -> None:
        os.chmod(self._at(path), mode)  # noqa: PTH101

    def utimens(self, path: str, times: tuple[int, int] | None = None) -> None:
        os.utime(self._at(path), ns=times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("mount", type=Path)
    parser.add_argument("--milliseconds", type=float, default=1.0, help="before each operation")
    arguments = parser.parse_args()
    volume = SlowVolume(arguments.folder, arguments.milliseconds / 1000)
    mfusepy.FUSE(volume, str(arguments.mount), foreground=True, big_writes=True)
    print(volume.operations)


if __name__ == "__main__":
    main()
