"""Answers conform to the OpenAPI document."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from http_server import Serving, serving
from parakeet_worker.entrypoints.http import reference
from parakeet_worker.formats import render
from parakeet_worker.notices import Notice
from parakeet_worker.recognition.transcript import Transcript
from parakeet_worker.wire.documents import NATIVE, OPENAI
from test_http_routes import TONE


@pytest.fixture(scope="module")
def words() -> Transcript:
    from test_formats_render import AWKWARD

    return Transcript(AWKWARD.words, seconds=4.0, warnings=(Notice("audio_gap", "x", 1.0, 2.0),))


@pytest.mark.parametrize("format_", ["json", "verbose_json", "text", "srt", "vtt", "tsv"])
@pytest.mark.parametrize("timestamp", [False, True])
def test_every_native_format_is_as_described(words: Transcript, format_: Any, timestamp: bool):
    NATIVE.validate_python(render.document(words, format_, timestamp=timestamp))


async def test_answers_of_the_server_are_as_described(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        document = (await server.client.get("/openapi.json")).json()
        for adapter, route, options in (
            (NATIVE, "/transcribe", {"debug": "true"}),
            (NATIVE, "/transcribe", {"format": "verbose_json", "channels": "separate"}),
            (OPENAI, "/v1/audio/transcriptions", {"include[]": "logprobs", "prompt": "x"}),
            (OPENAI, "/v1/audio/transcriptions", {
                "response_format": "verbose_json", "timestamp_granularities[]": "word"}),
        ):  # fmt: skip
            answer = await post(server, route, options)
            assert answer
            adapter.validate_python(answer)
    references = set(re.findall(r'"#/components/schemas/(\w+)"', json.dumps(document)))
    assert references == set(document["components"]["schemas"])


async def post(server: Serving, route: str, options: dict[str, str]) -> Any:
    answer = await server.client.post(route, files={"file": TONE}, data=options)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_every_field_of_a_request_is_described() -> None:
    for operation in (reference.TRANSCRIBE, reference.TRANSCRIPTIONS):
        for content in operation["requestBody"]["content"].values():
            for name, field in content["schema"]["properties"].items():
                assert field.get("description"), name
