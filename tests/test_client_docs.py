"""Examples of clients and curl in the pages run against a queue endpoint and a server."""

import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from endpoint_api import KEY, EndpointApi
from job_api import running_worker
from parakeet_worker.entrypoints.cli import main
from programs import require
from recordings import encode, tone

ROOT = Path(__file__).resolve().parent.parent


def blocks(page: str) -> list[tuple[str, str]]:
    text = (ROOT / page).read_text()
    return re.findall(r"^```(\w+)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


BLOCKS = [
    *blocks("docs/client.md"),
    *(block for block in blocks("docs/python.md") if "Client" in block[1]),
]
CURL = [
    (kind, code)
    for page in ("README.md", "docs/calling.md")
    for kind, code in blocks(page)
    if code.startswith("curl ")
]
TONES = {
    "PARAKEET_ENGINE": "tones",
    "PARAKEET_ALLOW_PRIVATE_ADDRESSES": "true",
    "OMP_NUM_THREADS": "1",
}
RUNS = {
    "python": [sys.executable, "-c"],
    "bash": ["bash", "-euc"],
    "sh": ["bash", "-euc"],
}


@contextmanager
def running_server(home: Path) -> Iterator[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {"PATH": os.environ["PATH"], "HOME": str(home), **TONES}
    command = [sys.executable, "-m", "parakeet_worker.entrypoints.cli", "serve", "--port"]
    with (home / "server.log").open("w") as log:
        process = subprocess.Popen(
            [*command, str(port)],
            env={**environment, "PARAKEET_API_KEYS": KEY},
            stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@contextmanager
def serving(folder: Path) -> Iterator[str]:
    """A web server for the files of a folder."""
    handler = partial(SimpleHTTPRequestHandler, directory=folder)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The page's URLs and their replacements on loopback."""
    home = tmp_path_factory.mktemp("worker")
    encode(home / "talk.mp3", samples=tone(440, 1.6))
    shutil.copy(home / "talk.mp3", home / "talk.m4a")
    with (
        serving(home) as website,
        (home / "log").open("w") as log,
        EndpointApi() as api,
        running_worker(api, home, TONES, log=log),
        running_server(home) as server,
    ):
        wait_for(server)
        yield {
            "https://api.runpod.ai/v2/abc123": api.url,
            "https://api.runpod.ai/v2/ID": api.url,
            "https://example.com": website,
            "https://abc123.api.runpod.ai": server,
            "http://localhost:8000": server,
            '"abc123"': f'"{api.url}"',
            "--endpoint abc123": f"--endpoint {api.url}",
        }


def wait_for(server: str) -> None:
    """Wait until the model is loaded, since the examples do not retry."""
    ends = time.monotonic() + 60
    while True:
        with suppress(OSError), urllib.request.urlopen(f"{server}/ready") as response:
            if response.status == 200:
                return
        assert time.monotonic() < ends, "the server is not ready"
        time.sleep(0.1)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "talks").mkdir()
    encode(tmp_path / "talk.mp3", samples=tone(440, 1.6))
    shutil.copy(tmp_path / "talk.mp3", tmp_path / "talks" / "talk.mp3")
    return tmp_path


def settled(code: str, places: dict[str, str]) -> str:
    for documented, actual in places.items():
        code = code.replace(documented, actual)
    return code


def test_the_page_was_read():
    kinds = [kind for kind, _ in BLOCKS]
    assert {kind: kinds.count(kind) for kind in kinds} == {
        "text": 2, "python": 3, "bash": 2, "javascript": 2,
    }  # fmt: skip
    assert len(CURL) == 3


@pytest.mark.parametrize(
    ("kind", "code"),
    [*CURL, *(block for block in BLOCKS if block[0] != "text")],
    ids=lambda value: value[:10],
)
def test_every_example_prints_the_transcript(places, folder, kind, code):
    if kind == "javascript":
        node = str(require("node"))
        (folder / "example.mjs").write_text(settled(code, places))
        command = [node, "example.mjs"]
    else:
        command = [*RUNS[kind], settled(code, places)]
    if "Authorization" not in code:  # sent with every request instead
        (folder / ".curlrc").write_text(f'header = "Authorization: Bearer {KEY}"\nsilent\n')
    ran = subprocess.run(
        command,
        cwd=folder,
        env={
            "PATH": os.environ["PATH"],
            "HOME": str(folder),
            "RUNPOD_API_KEY": KEY,
            "PARAKEET_API_KEY": KEY,
        },
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ("Hello." if "Hello." in code else "440.") in ran.stdout


def test_every_command_works_as_documented(places, folder, monkeypatch):
    from click.testing import CliRunner

    monkeypatch.chdir(folder)
    lines = [line for kind, code in BLOCKS if kind == "text" for line in code.splitlines()]
    assert len(lines) == 5
    environment = {"RUNPOD_API_KEY": KEY, "PARAKEET_API_KEY": KEY, "PARAKEET_ENGINE": "tones"}
    for line in lines:
        command, *arguments = shlex.split(settled(line, places))
        assert command == "parakeet"
        ran = CliRunner().invoke(main, arguments, env=environment)
        assert ran.exit_code == 0, line
        assert arguments[0] == "cost" or " transcribed; " in ran.stderr, line
    assert (folder / "talks" / "talk.srt").read_text().splitlines()[2] == "440."
    assert (folder / "subtitles" / "talk.txt").read_text() == "440.\n"
    assert "dollars on L4" in ran.stdout
