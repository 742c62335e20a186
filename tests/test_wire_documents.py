"""Answers conform to the OpenAPI document."""

import json
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from http_server import Serving, serving
from parakeet_worker.formats import render
from parakeet_worker.notices import Notice
from parakeet_worker.recognition.transcript import Transcript
from parakeet_worker.request import FileSource
from parakeet_worker.request import Request as Transcription
from parakeet_worker.wire import documents
from parakeet_worker.wire import openai as spelling
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


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Serving]:
    async with serving(tmp_path) as running:
        yield running


@pytest.fixture
async def openapi(server: Serving) -> Any:
    return (await server.client.get("/openapi.json")).json()


async def test_answers_of_the_server_are_as_described(server: Serving, openapi: Any) -> None:
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
    references = set(re.findall(r'"#/components/schemas/(\w+)"', json.dumps(openapi)))
    assert references == set(openapi["components"]["schemas"])


async def post(server: Serving, route: str, options: dict[str, str]) -> Any:
    answer = await server.client.post(route, files={"file": TONE}, data=options)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_every_field_of_a_request_is_described(openapi: Any) -> None:
    for name in ("Input", "Form", "OpenAIInput", "OpenAIForm"):
        schema = openapi["components"]["schemas"][name]
        assert len(schema["properties"]) > 10
        assert [key for key, field in schema["properties"].items() if not described(field)] == []
        assert schema["additionalProperties"] is False
    assert (
        "timestamp_granularities[]" in openapi["components"]["schemas"]["OpenAIForm"]["properties"]
    )


def described(field: dict[str, Any]) -> bool:
    return bool(field.get("description"))


def test_every_operation_has_a_name_and_the_schema_of_each_response(openapi: Any) -> None:
    operations = [each for methods in openapi["paths"].values() for each in methods.values()]
    names = [each["operationId"] for each in operations]
    assert len(set(names)) == len(operations) > 8
    for each in operations:
        for response in each["responses"].values():
            assert each["operationId"] == "ping" or response["content"]
    assert openapi["servers"] == [{"url": ".", "description": "The server of this document."}]
    assert "Wire" not in json.dumps(openapi)


async def test_documents_without_a_transcript_are_as_described(server: Serving) -> None:
    for path, type_ in (
        ("/v1/models", documents.ModelList), ("/v1/models/tones", documents.Model),
        ("/health", documents.Health), ("/ready", documents.Ready),
        ("/transcribe", documents.Failure), ("/v1/audio/transcriptions", documents.OpenAIFailure),
    ):  # fmt: skip
        type_.model_validate((await server.client.get(path)).json())


def test_a_diarized_answer_is_as_described() -> None:
    from test_speaker_labels import TWO

    request = spelling.OpenAIRequest(
        Transcription(FileSource(Path("a.wav"))), "diarized_json", frozenset(), stream=False,
        model="demo",
    )  # fmt: skip
    answer = spelling.body(TWO, request)
    assert isinstance(answer, dict)
    assert documents.OpenAIDiarizedTranscript.model_validate(answer).segments[0].speaker
