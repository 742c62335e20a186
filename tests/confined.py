"""Processes in namespaces and control groups, without flock, or with a slow ffmpeg."""

import secrets
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from parakeet_worker.audio.decoding import find_ffmpeg
from programs import require


def mounted(script: str) -> list[str]:
    """A command prefix: a mount namespace, set up by a shell script."""
    return _checked(["unshare", "--user", "--map-root-user", "--mount"], script)


def process_one() -> list[str]:
    """A command prefix: process 1 of a PID namespace, for which unhandled signals are ignored."""
    alone = ["unshare", "--user", "--map-root-user", "--pid", "--fork", "--kill-child"]
    return _checked(alone, "true")


def without_user() -> list[str]:
    """A command prefix: a user without a passwd entry."""
    return _checked(["unshare", "--user", "--map-user=12345"], "true")


@contextmanager
def control_group(*, processors: float, memory_bytes: int) -> Iterator[list[str]]:
    """A command prefix: a control group of the kernel, of version 1 or 2, with these limits."""
    root, name = Path("/sys/fs/cgroup"), f"parakeet-test-{secrets.token_hex(4)}"
    quota = str(round(100_000 * processors))
    if (root / "cgroup.controllers").exists():
        limits = {root / name: {"cpu.max": f"{quota} 100000", "memory.max": str(memory_bytes)}}
    else:
        limits = {
            root / "cpu" / name: {"cpu.cfs_quota_us": quota, "cpu.cfs_period_us": "100000"},
            root / "memory" / name: {"memory.limit_in_bytes": str(memory_bytes)},
        }
    made: list[Path] = []
    try:
        try:
            for folder, files in limits.items():
                folder.mkdir()
                made.append(folder)
                for file, content in files.items():
                    (folder / file).write_text(content)
        except OSError as failure:
            pytest.skip(f"this machine forbids control groups: {failure}")
        joined = "".join(f"echo $$ > {folder}/cgroup.procs\n" for folder in made)
        yield ["sh", "-ec", f'{joined}exec "$@"', "sh"]
    finally:
        for folder in made:
            folder.rmdir()


def _checked(space: Sequence[str], script: str) -> list[str]:
    prefix = [*space, "sh", "-ec", f'{script}\nexec "$@"', "sh"]
    ran = subprocess.run([*prefix, "true"], check=False, capture_output=True, text=True)
    if ran.returncode != 0:
        pytest.skip(f"this machine forbids this namespace: {ran.stderr.strip()}")
    return prefix


_NO_FLOCK = """
import ctypes, os, struct, sys
SYSCALLS = {"x86_64": 73, "aarch64": 32}
class Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_char_p)]
# A filter of system calls: load the number; flock is ENOSYS, others are allowed.
filter = struct.pack("HBBI" * 4, 0x20, 0, 0, 0, 0x15, 0, 1, SYSCALLS[os.uname().machine],
                     0x06, 0, 0, 0x00050026, 0x06, 0, 0, 0x7FFF0000)
libc = ctypes.CDLL(None, use_errno=True)
if libc.prctl(38, 1, 0, 0, 0) or libc.prctl(22, 2, ctypes.byref(Program(4, filter)), 0, 0):
    sys.exit(os.strerror(ctypes.get_errno()))
os.execvp(sys.argv[1], sys.argv[1:])
"""


def without_flock() -> list[str]:
    """A command prefix: the kernel answers ENOSYS to flock, as on some network file systems."""
    prefix = [sys.executable, "-c", _NO_FLOCK]
    ran = subprocess.run([*prefix, "true"], check=False, capture_output=True, text=True)
    if ran.returncode != 0:
        pytest.skip(f"this machine forbids filters of system calls: {ran.stderr.strip()}")
    return prefix


_FLOCK = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
int flock(int file, int operation) {
    char link[64], path[4096] = "";
    const char *volume = getenv("WITHOUT_FLOCK");
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    if (volume && readlink(link, path, sizeof path - 1) > 0
        && !strncmp(path, volume, strlen(volume))) { errno = ENOSYS; return -1; }
    return ((int (*)(int, int)) dlsym(RTLD_NEXT, "flock"))(file, operation);
}
"""


def without_flock_below(volume: Path, folder: Path) -> dict[str, str]:
    """Variables with which flock is ENOSYS below `volume` only, through a library in `folder`."""
    source, library = folder / "flock.c", folder / "flock.so"
    source.write_text(_FLOCK)
    compiler = [require("gcc"), "-shared", "-fPIC", "-o", library, source, "-ldl"]
    subprocess.run(compiler, check=True)
    return {"LD_PRELOAD": str(library), "WITHOUT_FLOCK": str(volume)}


def held_ffmpeg(folder: Path) -> Path:
    """An ffmpeg that writes its parent's id to `started` when it gets a file, and awaits `go`."""
    real = find_ffmpeg()
    held = folder / "ffmpeg"
    held.write_text(
        "#!/bin/sh\n"
        f'case "$*" in *-i*) echo $PPID > {folder}/parent; mv {folder}/parent {folder}/started\n'
        f"while [ ! -e {folder}/go ]; do sleep 0.05; done;; esac\n"
        f'exec {real} "$@"\n'
    )
    held.chmod(0o755)
    return held
