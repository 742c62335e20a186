"""What each odd input costs a server that runs under limits of the system.

The server has few descriptors, a bound on its address space and on the size of a file, and, where
mounting is possible, 64 MiB of scratch and 1 MiB of /dev/shm. The peak is that of the whole tree
of its processes: the share of memory of each (PSS), summed, looked at every 20 ms.
"""

import json
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from base64 import b64encode
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil

from recordings import noise, tone, wav

DESCRIPTORS = 256
ADDRESS_SPACE_BYTES = 8 << 30
FILE_BYTES = 1 << 30
SCRATCH_MIB, SHARED_MIB = 64, 1
_LOOK_SECONDS = 0.02
_PATIENCE_SECONDS = 120.0
_JSON = "application/json"
_FORM = "multipart/form-data; boundary=b"


@dataclass(frozen=True, slots=True)
class Cost:
    """One input's."""

    name: str
    status: int
    code: str | None
    seconds: float
    peak_bytes: int
    """Beyond what the idle server has."""


def _rate(rate: int) -> bytes:
    content = bytearray(wav(noise(0.25)))
    content[24:28] = rate.to_bytes(4, "little")
    return bytes(content)


def _form(content: bytes) -> bytes:
    head = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
    return head + content + b"\r\n--b--\r\n"


def _inline(content: bytes, **fields: object) -> bytes:
    return json.dumps({"audio_base64": b64encode(content).decode(), **fields}).encode()


def inputs() -> dict[str, tuple[str, Callable[[], bytes], str]]:
    """Path, body and type of each by name; made when it is sent."""
    good = wav(tone(440, 1))
    words = [{"word": "a", "start": 0, "end": 0}]
    many = {"inputs": [{"audio_base64": b64encode(_rate(2)).decode()}] * 16}
    bodies: dict[str, tuple[str, Callable[[], bytes], str]] = {
        "a good recording": ("/transcribe", lambda: _form(good), _FORM),
        "two minutes": ("/transcribe", lambda: _form(wav(tone(440, 120))), _FORM),
        "4 MB of base64": ("/transcribe", lambda: _inline(wav(tone(440, 100))), _JSON),
        "16 WAVs of 2 Hz in a list": ("/transcribe", lambda: json.dumps(many).encode(), _JSON),
        "200,000 empty inputs": (
            "/transcribe", lambda: b'{"inputs": [' + b"{}," * 199_999 + b"{}]}", _JSON),
        "JSON nested 100,000 deep": ("/transcribe", lambda: b"[" * 100_000, _JSON),
        "10 million values": ("/transcribe", lambda: b"[" + b"0," * 10_000_000 + b"0]", _JSON),
        "a name of 10 MB": ("/transcribe", lambda: b'{"' + b"x" * 10_000_000 + b'": 1}', _JSON),
        "20,000 words to write": (
            "/render",
            lambda: json.dumps({"format": "srt", "words": words * 20_000}).encode(), _JSON),
        "a million granularities": (
            "/v1/audio/transcriptions",
            lambda: b'{"file": "UklGRg==", "timestamp_granularities": ['
            + b'"word",' * 400_000 + b'"word"]}', _JSON),
    }  # fmt: skip
    for hertz in (1, 2, 10, 10**8, 2 * 10**9):
        bodies[f"a WAV of {hertz} Hz"] = (
            "/transcribe", lambda hertz=hertz: _form(_rate(hertz)), _FORM)  # fmt: skip
    # The last one: the server refuses uploads for a while after it.
    bodies["a file larger than scratch"] = ("/transcribe", lambda: _form(bytes(80 << 20)), _FORM)
    return bodies


def can_mount() -> bool:
    """Whether a file system can be mounted that only one process sees."""
    if shutil.which("unshare") is None:
        return False
    probe = ["unshare", "--mount", "sh", "-c", "mount -t tmpfs none /mnt"]
    return subprocess.run(probe, capture_output=True, check=False).returncode == 0


def _command(scratch: Path) -> list[str]:
    server = [sys.executable, "-m", "parakeet_worker.entrypoints.cli", "serve"]
    if not can_mount():
        return server
    script = (
        f"mount -t tmpfs -o size={SCRATCH_MIB}m none '{scratch}' && "
        f'mount -t tmpfs -o size={SHARED_MIB}m none /dev/shm && exec "$@"'
    )
    return ["unshare", "--mount", "sh", "-c", script, "sh", *server]


def _set_limits(pid: int) -> None:
    limits = {
        resource.RLIMIT_NOFILE: DESCRIPTORS,
        resource.RLIMIT_AS: ADDRESS_SPACE_BYTES,
        resource.RLIMIT_FSIZE: FILE_BYTES,
        resource.RLIMIT_CORE: 0,
    }
    for kind, limit in limits.items():
        resource.prlimit(pid, kind, (limit, limit))


@contextmanager
def limited_server(
    folder: Path, variables: Mapping[str, str]
) -> Iterator[tuple[str, psutil.Process]]:
    """Its address, and its process."""
    scratch, log = folder / "scratch", folder / "log"
    scratch.mkdir()
    environment = {
        "HOME": str(folder),
        "PATH": "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin",
        "PORT": "0",
        "OMP_NUM_THREADS": "1",
        "PARAKEET_ENGINE": "tones",
        "PARAKEET_SCRATCH": str(scratch),
        **variables,
    }
    with log.open("w") as output:
        process = subprocess.Popen(
            _command(scratch), env=environment, stdout=output, stderr=subprocess.STDOUT
        )
        try:
            _set_limits(process.pid)
            ends = time.monotonic() + _PATIENCE_SECONDS
            while not (address := re.search(r"listening on (http://\S+)", log.read_text())):
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < ends, log.read_text()
                time.sleep(0.05)
            while httpx.get(f"{address[1]}/ping").status_code != 200:
                time.sleep(0.05)
            yield address[1], psutil.Process(process.pid)
            assert process.poll() is None, log.read_text()
            assert "Traceback" not in log.read_text(), log.read_text()
        finally:
            process.terminate()
            process.wait(_PATIENCE_SECONDS)


def _tree_bytes(root: psutil.Process) -> int:
    """Memory of the process and all below it."""
    total = 0
    for process in (root, *root.children(recursive=True)):
        with suppress(OSError, psutil.Error, StopIteration):
            lines = Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines()
            total += int(next(line for line in lines if line.startswith("Pss:")).split()[1]) << 10
    return total


class _Peak(threading.Thread):
    """Looks again and again until it is stopped."""

    def __init__(self, root: psutil.Process) -> None:
        super().__init__(daemon=True)
        self._root, self._ended = root, threading.Event()
        self.bytes = 0

    def run(self) -> None:
        while not self._ended.wait(_LOOK_SECONDS):
            self.bytes = max(self.bytes, _tree_bytes(self._root))

    def stop(self) -> int:
        self._ended.set()
        self.join()
        return self.bytes


def costs(url: str, root: psutil.Process) -> Iterator[Cost]:
    """What each input costs, one at a time."""
    with httpx.Client(base_url=url, timeout=_PATIENCE_SECONDS) as client:
        for name, (path, body, kind) in inputs().items():
            content, idle, peak = body(), _tree_bytes(root), _Peak(root)
            peak.start()
            began = time.monotonic()
            answer = client.post(path, content=content, headers={"content-type": kind})
            seconds = time.monotonic() - began
            yield Cost(name, answer.status_code, _code(answer), seconds, max(0, peak.stop() - idle))


def _code(answer: httpx.Response) -> str | None:
    if answer.headers["content-type"] != _JSON:
        return None
    document = answer.json()
    first = document[0] if isinstance(document, list) else document
    error = first.get("error")
    return error["code"] if isinstance(error, dict) else first.get("code")


def main() -> None:
    print(f"{'input':32}{'answer':>8}  {'code':24}{'seconds':>9}{'peak MiB':>10}")  # noqa: T201
    with (
        tempfile.TemporaryDirectory() as folder,
        limited_server(Path(folder), {}) as (url, root),
    ):
        for cost in costs(url, root):
            print(  # noqa: T201
                f"{cost.name:32}{cost.status:>8}  {cost.code or '':24}{cost.seconds:>9.2f}"
                f"{cost.peak_bytes / 2**20:>10.0f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
