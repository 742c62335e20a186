"""Every example of docs/serving.md runs against a server that is started as documented."""

import asyncio
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from http_server import Process, running_server
from loopback import WebServer, sends
from parakeet_worker.settings import Settings, variable
from speech import SAMPLES, all_samples

PAGE = (Path(__file__).resolve().parent.parent / "docs" / "serving.md").read_text()
_BLOCK = re.compile(r"^```(sh|python) server\n(.*?)^```", re.MULTILINE | re.DOTALL)
TEXT = next(entry.text for entry in all_samples() if entry.file == "en.ogg")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    home = tmp_path_factory.mktemp("serving")
    (command,) = re.findall(r"^parakeet serve (.*) --port 8000$", PAGE, re.MULTILINE)
    variables = {"PARAKEET_ALLOW_PRIVATE_ADDRESSES": "true"}
    with running_server(home, variables, *command.split()) as running:
        running.wait_until_ready()
        shutil.copy(SAMPLES / "en.ogg", home)
        yield running
        running.process.send_signal(signal.SIGTERM)
        assert running.ended() == 0


EXAMPLES = _BLOCK.findall(PAGE)


@pytest.mark.parametrize(("language", "code"), EXAMPLES, ids=range(len(EXAMPLES)))
async def test_every_example_runs(
    server: Process, web: WebServer, language: str, code: str
) -> None:
    address = web.at("/en.ogg", sends((SAMPLES / "en.ogg").read_bytes()))
    code = code.replace("https://example.com/en.ogg", address)
    if language == "sh":
        command = ["bash", "-euc", f"SERVER={server.url}\n{code}"]
    else:
        command = [sys.executable, "-c", f"SERVER = {server.url!r}\n{code}"]

    ran = await asyncio.to_thread(
        subprocess.run, command, cwd=server.log.parent, capture_output=True, text=True,
        timeout=120, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    assert TEXT.split()[-1] in ran.stdout, ran.stdout
    assert "error" not in ran.stdout


def test_there_are_examples_of_both_apis() -> None:
    assert [language for language, _ in EXAMPLES] == ["sh", "sh", "sh", "python"]


def test_every_documented_setting_exists() -> None:
    named = set(re.findall(r"PARAKEET_[A-Z_]+", PAGE))
    known = {variable(field) for field in Settings.model_fields}
    assert len(named) > 8
    assert named <= known
