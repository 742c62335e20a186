"""Requests as the products of docs/integrations.md send them, to the server as a process."""

import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from http_server import PATIENCE_SECONDS, Process, running_server
from recordings import decode, wav
from speech import sample

ENGLISH = sample("en")
KEY = "key-of-a-product"
PAGE = Path(__file__).resolve().parent.parent / "docs" / "integrations.md"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    variables = {"PARAKEET_MODEL": "demo", "PARAKEET_API_KEYS": KEY}
    with running_server(tmp_path_factory.mktemp("server"), variables) as running:
        running.wait_until_ready()
        yield running


def posted(
    server: Process, fields: dict[str, str], file: tuple[str, bytes] | tuple[str, bytes, str]
) -> httpx.Response:
    return httpx.post(
        f"{server.url}/v1/audio/transcriptions",
        headers={"Authorization": f"Bearer {KEY}"},
        data=fields,
        files={"file": file},
        timeout=PATIENCE_SECONDS,
    )


@pytest.mark.parametrize("language", [{}, {"language": "en"}], ids=["detected", "given"])
def test_open_webui_gets_the_text(server: Process, language: dict[str, str]) -> None:
    """It sends its setting of the model, and a file without a type."""
    response = posted(
        server, {"model": "whisper-1", **language}, ("a1.ogg", ENGLISH.path.read_bytes())
    )
    assert response.json()["text"] == ENGLISH.text


def test_open_webui_shows_the_message_of_an_error(server: Process) -> None:
    """It reads `error.message` of the answer."""
    response = posted(server, {"model": "whisper-1"}, ("a1.wav", b"no audio"))
    assert response.status_code == 415
    assert response.json()["error"]["message"]


@pytest.mark.parametrize("options", [{}, {"language": "en", "temperature": "0.5"}], ids=str)
def test_n8n_gets_the_text(server: Process, options: dict[str, str]) -> None:
    """Its node always names the model whisper-1, and sends a temperature unless it is 0."""
    file = ("talk.ogg", ENGLISH.path.read_bytes(), "audio/ogg")
    response = posted(server, {"model": "whisper-1", **options}, file)
    assert response.json()["text"] == ENGLISH.text


@pytest.mark.parametrize(
    ("model", "response_format"),
    [("gpt-4o-mini-transcribe", "json"), ("whisper-1", "verbose_json")],
)
def test_livekit_gets_the_text(server: Process, model: str, response_format: str) -> None:
    """Its plugin sends the frames of an utterance as a WAV file."""
    fields = {"model": model, "language": "en", "response_format": response_format}
    response = posted(server, fields, ("file.wav", wav(decode(ENGLISH.path)), "audio/wav"))
    assert response.json()["text"] == ENGLISH.text


def test_the_page_uses_the_path_of_the_server() -> None:
    urls = re.findall(r"https?://SERVER\S*?(?=[`\"])", PAGE.read_text())
    assert urls
    assert set(urls) == {"http://SERVER:8000/v1"}
