"""Request ids and the access log."""

import asyncio
import logging
import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from http_server import Serving, serving
from parakeet_worker.logs import PlainLines
from test_http_routes import TONE, encoded


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Serving]:
    async with serving(tmp_path) as running:
        yield running


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    written = [each for each in caplog.records if each.name.endswith("http.access")]
    return [PlainLines().format(each).partition("access: ")[2] for each in written]


async def test_a_request_has_the_callers_id_or_a_new_one(server, caplog):
    caplog.set_level(logging.INFO)
    named = await server.client.get("/v1/models", headers={"x-request-id": "abc-123"})
    assert named.headers["x-request-id"] == "abc-123"
    bad = await server.client.get("/unknown", headers={"x-request-id": "a b\tc"})
    assert re.fullmatch(r"[0-9a-f]{32}", bad.headers["x-request-id"])
    first, second = lines(caplog)
    assert re.fullmatch(r'abc-123: GET /v1/models \{"status": 200, "seconds": [\d.]+\}', first)
    assert second.startswith(f'{bad.headers["x-request-id"]}: GET /unknown {{"status": 404, ')


@pytest.mark.parametrize("stream", ["false", "true"])
async def test_a_transcription_is_one_line_with_its_seconds_of_audio(server, caplog, stream):
    caplog.set_level(logging.INFO)
    answer = await server.client.post(
        "/transcribe", files={"file": ("a.wav", TONE)}, data={"stream": stream}
    )
    assert answer.status_code == 200
    while not lines(caplog):  # noqa: ASYNC110  # written after the end of the stream
        await asyncio.sleep(0.01)
    (line,) = lines(caplog)
    facts = r'\{"status": 200, "seconds": [\d.]+, "audio_seconds": 1.\d+, "rtfx": [\d.]+\}'
    assert re.fullmatch(rf"[0-9a-f]{{32}}: POST /transcribe {facts}", line)


async def test_checks_of_a_load_balancer_are_logged_only_where_they_fail(server, caplog, tmp_path):
    caplog.set_level(logging.INFO)
    for path in ("/ping", "/health", "/ready", "/metrics"):
        assert (await server.client.get(path)).status_code == 200
    assert lines(caplog) == []
    async with serving(tmp_path, warm=False) as warming:
        assert (await warming.client.get("/ready")).status_code == 503
    assert len(lines(caplog)) == 1


async def test_fields_in_the_address_count_with_a_form_and_are_refused_with_json(server):
    files = {"file": ("a.wav", TONE)}
    answer = await server.client.post("/transcribe?format=srt", files=files)
    assert "srt" in answer.json()
    twice = await server.client.post("/transcribe?format=srt", files=files, data={"format": "vtt"})
    assert (twice.status_code, twice.json()["field"]) == (400, "format")
    refused = await server.client.post("/transcribe?format=srt", json={"audio_base64": "UklGRg=="})
    assert (refused.status_code, refused.json()["field"]) == (400, "format")


@pytest.mark.parametrize(
    "body", [{"files": {"file": ("a.wav", TONE)}}, {"json": {"file": encoded(TONE)}}]
)
async def test_the_version_of_azures_api_is_a_hint(server, tmp_path_factory, body):
    route = "/v1/audio/transcriptions?api-version=2025"
    (warning,) = (await server.client.post(route, **body)).json()["warnings"]
    assert warning["message"].startswith("'api-version' has no effect")
    assert (await server.client.get("/v1/models?api-version=2025")).status_code == 200
    async with serving(tmp_path_factory.mktemp("strict"), strict=True) as strict:
        refused = await strict.client.post(route, **body)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "api-version")


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/transcribe"), ("POST", "/render"), ("POST", "/v1/audio/transcriptions"),
        ("GET", "/v1/models"), ("GET", "/v1/models/tones"), ("GET", "/metrics"),
    ],
)  # fmt: skip
async def test_no_query_parameter_is_ignored(server, method, path):
    answer = await server.client.request(
        method, f"{path}?verbosity=1", json={} if method == "POST" else None
    )
    assert answer.status_code == 400
    assert "verbosity" in answer.text
    if method == "POST" and path != "/render":
        form = await server.client.post(f"{path}?verbosity=1", files={"file": ("a.wav", TONE)})
        field = await server.client.post(
            path, files={"file": ("a.wav", TONE)}, data={"verbosity": "1"}
        )
        assert (form.status_code, field.status_code) == (400, 400)
        assert "verbosity" in form.text
        assert "verbosity" in field.text


@pytest.mark.parametrize("path", ["/ping", "/health", "/ready"])
async def test_a_probe_names_the_parameters_without_an_effect(server, path):
    answer = await server.client.get(f"{path}?cache=1")
    assert answer.status_code == 200
    assert answer.headers["x-warnings"] == "hint_ignored: 'cache' has no effect"
    assert "x-warnings" not in (await server.client.get(path)).headers
