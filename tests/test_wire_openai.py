"""OpenAI's spelling, by OpenAI's own client."""

import asyncio
import json
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import openai
import pytest

from faulty_worker import TOO_HIGH, FaultyEngine
from http_server import Serving, serving, until
from loopback import WebServer, sends
from parakeet_worker.errors import (
    InvalidRequest,
    ModelNotFound,
    ParakeetError,
    RequestError,
    UnknownRoute,
    echo,
)
from parakeet_worker.options import SpeakerCount
from parakeet_worker.pipeline import Pipeline
from parakeet_worker.settings import Settings
from parakeet_worker.wire import openai as spelling
from parakeet_worker.worker import open_pipeline
from recordings import tone, wav
from test_http_routes import TEXT, TONE, encoded, events
from test_load import melody
from test_speaker_labels import TWO

FILE = ("tone.wav", TONE)


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Serving]:
    async with serving(tmp_path, api_keys="sk-right") as running:
        yield running
        await until(lambda: not list(tmp_path.iterdir()))  # the server removes it after the answer


@pytest.fixture
async def client(server: Serving) -> AsyncIterator[openai.AsyncOpenAI]:
    url = f"{server.url}/v1"
    async with openai.AsyncOpenAI(api_key="sk-right", base_url=url, max_retries=0) as made:
        yield made


async def transcription(client: openai.AsyncOpenAI, **options: Any) -> Any:
    fields: dict[str, Any] = {"file": FILE, "model": "whisper-1", **options}
    return await client.audio.transcriptions.create(**fields)


async def test_json_is_the_default(client: openai.AsyncOpenAI) -> None:
    answer = await transcription(client)
    assert answer.text == TEXT
    assert answer.usage.type == "duration"
    assert answer.usage.seconds == 2


async def test_what_clients_always_send_is_accepted(client: openai.AsyncOpenAI) -> None:
    answer = await transcription(
        client, temperature=0, prompt="", language="en", chunking_strategy="auto",
        response_format="json",
    )  # fmt: skip
    assert answer.text == TEXT


async def test_texts_are_texts(client: openai.AsyncOpenAI, server: Serving) -> None:
    assert await transcription(client, response_format="text") == f"{TEXT}\n"
    srt = await transcription(client, response_format="srt")
    assert srt.startswith("1\n00:00:00,000 --> 00:00:0")
    vtt = await transcription(client, response_format="vtt")
    assert vtt.startswith("WEBVTT\n\n00:00:00.000 --> ")
    headers = {"authorization": "Bearer sk-right"}
    answer = await server.client.post(
        spelling.TRANSCRIPTIONS, files={"file": FILE}, data={"response_format": "vtt"},
        headers=headers,
    )  # fmt: skip
    assert answer.headers["content-type"] == "text/vtt; charset=utf-8"


async def test_verbose_json_contains_the_requested_granularities(
    client: openai.AsyncOpenAI,
) -> None:
    plain = await transcription(client, response_format="verbose_json")
    assert plain.duration == pytest.approx(1.6)
    assert plain.text == TEXT
    assert plain.words is None
    assert [segment.text for segment in plain.segments] == TEXT.split()
    second = plain.segments[1]
    assert (second.id, second.start, second.temperature) == (1, pytest.approx(0.8), 0)
    assert second.avg_logprob == pytest.approx(0, abs=0.1)
    assert second.compression_ratio > 0
    # The engine of tones has no vocabulary, and no detector of speech.
    assert (second.no_speech_prob, second.tokens, second.seek) == (None, [], 80)
    words = await transcription(
        client, response_format="verbose_json", timestamp_granularities=["word"]
    )
    assert words.segments is None
    assert [word.word for word in words.words] == TEXT.split()
    both = await transcription(
        client, response_format="verbose_json", timestamp_granularities=["word", "segment"]
    )
    assert len(both.words) == len(both.segments) == 2


def test_no_parameter_turns_the_detector_off_that_measures_no_speech() -> None:
    # The AI SDK rejects segments without its figure.
    content = {"file": encoded(TONE), "model": "whisper-1"}
    assert "vad" not in spelling._Wire.model_fields
    assert spelling.parse_json(content, Settings()).transcription.vad == "auto"


async def test_deltas_join_to_the_text(client: openai.AsyncOpenAI) -> None:
    stream = await transcription(client, stream=True)
    *deltas, done = [event async for event in stream]
    assert {event.type for event in deltas} == {"transcript.text.delta"}
    assert len(deltas) == 2
    assert "".join(event.delta for event in deltas) == TEXT
    assert (done.type, done.text) == ("transcript.text.done", TEXT)


async def test_thirty_two_clients_stream_concurrently(client: openai.AsyncOpenAI) -> None:
    async def text(hertz: int) -> str:
        stream = await transcription(
            client, file=("a.wav", melody([hertz, hertz + 10])), stream=True
        )
        return "".join([event.delta async for event in stream if hasattr(event, "delta")])

    pitches = range(300, 940, 20)
    texts = await asyncio.gather(*(text(hertz) for hertz in pitches))
    assert texts == [f"{hertz}. {hertz + 10}." for hertz in pitches]


async def test_subtitles_have_the_limits_of_the_form(client: openai.AsyncOpenAI) -> None:
    file = ("a.wav", wav(tone(440, 3.0)))
    whole = await transcription(client, file=file, response_format="srt")
    short = await transcription(
        client, file=file, response_format="srt", extra_body={"max_cue_seconds": "1"}
    )
    assert "--> 00:00:02,9" in str(whole)
    assert "--> 00:00:01,000" in str(short)


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"temperature": 1.5}, "temperature"),
    ({"language": "tlh"}, "language"),
    ({"response_format": "verbose_json", "timestamp_granularities": ["letter"]},
     "timestamp_granularities"),
    ({"response_format": "srt", "stream": True}, "stream"),
    ({"extra_body": {"max_lines": "1"}}, "max_lines"),
    ({"response_format": "srt", "extra_body": {"max_lines": "9"}}, "max_lines"),
    ({"chunking_strategy": {"type": "client_vad"}}, "chunking_strategy"),
    ({"extra_body": {"known_speaker_names": ["Ada"]}}, "known_speaker_names"),
    ({"response_format": "diarized_json", "known_speaker_names": ["Ada"]}, "known_speaker_names"),
    ({"extra_body": {"temprature": 0}}, "temprature"),
    ({"languages": ["en", "tlh"]}, "languages"),
]  # fmt: skip


HINTS: list[tuple[dict[str, Any], str]] = [
    ({"prompt": "Names: Ada."}, "prompt"),
    ({"temperature": 0.5}, "temperature"),
    ({"include": ["item.input_audio"]}, "include"),
    ({"include": ["logprobs"], "response_format": "verbose_json"}, "include"),
    ({"timestamp_granularities": ["word"]}, "timestamp_granularities"),
    ({"chunking_strategy": {"type": "server_vad", "threshold": 0.5}}, "chunking_strategy"),
    ({"extra_body": {"chunking_strategy": '{"type": "server_vad"}'}}, "chunking_strategy"),
    ({"extra_body": {"keywords": ["Ada"]}}, "keywords"),
    ({"extra_body": {"languages": ["en", "de"]}}, "languages"),
    ({"languages": ["en"], "language": "de"}, "languages"),
]


@pytest.mark.parametrize(("options", "param"), HINTS)
async def test_a_hint_without_an_effect_is_a_warning(
    client: openai.AsyncOpenAI, options: dict[str, Any], param: str
) -> None:
    answer = await transcription(client, **options)
    assert answer.text == TEXT
    (warning,) = answer.warnings
    assert warning["code"] == "hint_ignored"
    assert warning["message"].startswith(f"'{param}' has no effect: ")


@pytest.mark.parametrize(("options", "param"), HINTS)
async def test_strict_refuses_hints(tmp_path: Path, options: dict[str, Any], param: str) -> None:
    async with (
        serving(tmp_path, strict=True) as server,
        openai.AsyncOpenAI(api_key="x", base_url=f"{server.url}/v1", max_retries=0) as client,
    ):
        with pytest.raises(openai.BadRequestError) as refused:
            await transcription(client, **options)
        assert refused.value.param == param
        assert (await transcription(client, chunking_strategy="auto", temperature=0)).text == TEXT


def test_one_language_is_the_same_as_the_language_of_a_request(tmp_path: Path) -> None:
    settings = Settings.of({"engine": "tones"})
    for fields in ([("languages[]", "German")], [("language", "de")]):
        parsed = spelling.parse_form(fields, tmp_path / "a.wav", settings)
        assert (parsed.transcription.language, parsed.hints) == ("de", ())


async def test_a_text_has_its_warnings_in_a_header(server: Serving) -> None:
    answer = await server.client.post(
        spelling.TRANSCRIPTIONS, files={"file": FILE},
        data={"response_format": "srt", "prompt": "Names: Ada."},
        headers={"authorization": "Bearer sk-right"},
    )  # fmt: skip
    assert answer.headers["x-warnings"].startswith("hint_ignored: 'prompt' has no effect")
    assert answer.headers["x-model"] == "tones"


async def test_log_probabilities_are_those_of_the_tokens(client: openai.AsyncOpenAI) -> None:
    answer = await transcription(client, include=["logprobs"])
    assert "".join(token.token for token in answer.logprobs) == TEXT
    assert all(token.logprob <= 0 for token in answer.logprobs)
    assert b"".join(bytes(map(int, token.bytes)) for token in answer.logprobs) == TEXT.encode()
    assert (await transcription(client)).logprobs is None
    stream = await transcription(client, stream=True, include=["logprobs"])
    *deltas, done = [event async for event in stream]
    for event in deltas:
        assert "".join(token.token for token in event.logprobs) == event.delta
    streamed = [token for event in deltas for token in event.logprobs]
    assert [token.token for token in streamed] == [token.token for token in done.logprobs]


async def test_an_answer_names_the_model_whatever_it_was_called(client: openai.AsyncOpenAI) -> None:
    for name in spelling.ALIASES:
        assert (await transcription(client, model=name)).model == "tones"
    stream = await transcription(client, stream=True)
    done = [event async for event in stream][-1]
    assert (done.model, done.usage.type, done.usage.seconds) == ("tones", "duration", 2)


@pytest.mark.filterwarnings("ignore:deprecated:DeprecationWarning")
async def test_a_translation_is_refused_with_its_reason(client: openai.AsyncOpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="the model does not translate"):
        await client.audio.translations.create(file=FILE, model="whisper-1")


@pytest.mark.parametrize(("options", "param"), REFUSED)
async def test_what_cannot_be_honoured_is_refused_by_name(
    client: openai.AsyncOpenAI, options: dict[str, Any], param: str
) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        await transcription(client, **options)
    assert refused.value.param is not None
    assert refused.value.param.split("[")[0] == param
    assert refused.value.type == "invalid_request_error"
    assert refused.value.code == "invalid_request"
    assert param in refused.value.message


async def test_every_failure_is_the_clients_own_exception(client: openai.AsyncOpenAI) -> None:
    with pytest.raises(openai.APIStatusError) as undecodable:
        await transcription(client, file=("a.wav", b"no sound"))
    assert (undecodable.value.status_code, undecodable.value.code) == (415, "audio_undecodable")
    with pytest.raises(openai.APIStatusError):
        await transcription(client, file=("a.wav", b"no sound"), stream=True)
    with pytest.raises(openai.NotFoundError) as model:
        await transcription(client, model="nvidia/canary-1b")
    assert (model.value.code, model.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.AuthenticationError) as key:
        await transcription(client.with_options(api_key="sk-wrong"))
    assert key.value.code == "invalid_api_key"
    with pytest.raises(openai.NotFoundError) as route:
        await client.chat.completions.create(model="x", messages=[])
    assert route.value.code == "unknown_route"


async def test_a_server_that_loads_its_model_is_the_clients_own_exception(tmp_path: Path) -> None:
    async with (
        serving(tmp_path, warm=False) as server,
        openai.AsyncOpenAI(api_key="x", base_url=f"{server.url}/v1", max_retries=0) as client,
    ):
        with pytest.raises(openai.InternalServerError) as warming:
            await transcription(client)
        assert (warming.value.status_code, warming.value.code) == (503, "warming")


async def test_a_failure_amid_a_stream_is_the_clients_own_exception(tmp_path: Path) -> None:
    async with (
        serving(tmp_path, FaultyEngine(0), segment_seconds=2) as server,
        openai.AsyncOpenAI(api_key="x", base_url=f"{server.url}/v1", max_retries=0) as client,
    ):
        # The last tone exceeds the engine, long after the first was streamed.
        song = melody([*[440] * 60, TOO_HIGH])
        stream = await transcription(client, file=("a.wav", song), stream=True)
        with pytest.raises(openai.APIError, match="memory"):
            [event async for event in stream]


async def test_the_model_is_listed(client: openai.AsyncOpenAI) -> None:
    listed = [model.id async for model in client.models.list()]
    assert listed == ["tones"]
    assert (await client.models.retrieve("tones")).id == "tones"
    with pytest.raises(openai.NotFoundError):
        await client.models.retrieve("other/model")


@pytest.mark.parametrize(
    ("fields", "name", "owner"),
    [
        ({}, "nvidia/parakeet-tdt-0.6b-v3", "nvidia"),
        ({"model": "demo"}, "demo", "parakeet-worker"),
        ({"model": "/opt/models/mine.nemo"}, "mine", "parakeet-worker"),
        ({"model": "/opt/model", "model_name": "nvidia/parakeet"}, "nvidia/parakeet", "nvidia"),
    ],
)
def test_the_model_has_a_name(fields: dict[str, str], name: str, owner: str) -> None:
    settings = Settings.of(fields)
    entry = spelling.model(settings, name)
    assert (entry["id"], entry["owned_by"]) == (name, owner)
    assert spelling.model(settings, name.rpartition("/")[2]) == entry
    assert spelling.model(settings, "whisper-1") == entry


async def test_a_json_body_is_equivalent(server: Serving) -> None:
    headers = {"authorization": "Bearer sk-right"}
    body = {"file": encoded(TONE), "model": "tones", "stream": False}
    answer = await server.client.post(spelling.TRANSCRIPTIONS, json=body, headers=headers)
    assert answer.json()["text"] == TEXT
    stream = await server.client.post(
        spelling.TRANSCRIPTIONS, json={**body, "stream": True}, headers=headers
    )
    streamed = events(stream.text.replace("data: [DONE]\n\n", ""))
    assert streamed[-1][1]["text"] == TEXT
    assert stream.text.endswith("data: [DONE]\n\n")


async def answered(pipeline: Pipeline, payload: dict[str, Any], **options: Any) -> Any:
    """The answer to a queue job's input."""
    parsed = spelling.parse_job(pipeline.settings, payload)
    if not isinstance(parsed, spelling.OpenAIRequest):
        return parsed
    return await spelling.answer_job(pipeline, parsed, **options)


def answer(payload: dict[str, Any], **limits: object) -> Any:
    """What a queue job with OpenAI's spelling is answered."""
    settings = Settings.of({"engine": "tones", **limits})
    with open_pipeline(settings) as pipeline:
        return asyncio.run(answered(pipeline, payload))


def job(**body: object) -> dict[str, Any]:
    return {"openai_route": "/v1/audio/transcriptions", "openai_input": body}


def test_a_queue_job_is_answered_in_openais_words(tmp_path: Path) -> None:
    scratch = {"scratch": tmp_path}
    result = answer(job(file=encoded(TONE), model="whisper-1"), **scratch)
    assert result == {
        "text": TEXT, "model": "tones", "usage": {"type": "duration", "seconds": 2},
    }  # fmt: skip
    uri = f"data:audio/wav;base64,{encoded(TONE)}"
    assert answer(job(file=uri, response_format="text"), **scratch) == f"{TEXT}\n"
    words = answer(
        job(file=uri, response_format="verbose_json", timestamp_granularities=["word"]), **scratch
    )
    assert len(json.loads(json.dumps(words))["words"]) == 2
    assert answer({"openai_route": "/v1/models"})["data"][0]["id"] == "tones"
    assert answer({"openai_route": "/v1/models/tones", "openai_input": None})["id"] == "tones"
    assert list(tmp_path.iterdir()) == []


async def test_a_queue_job_is_streamed_as_openais_events(tmp_path: Path) -> None:
    sent: list[Any] = []

    async def send(event: Any) -> bool:
        sent.append(event)
        return True

    settings = Settings(engine="tones", scratch=tmp_path)
    with open_pipeline(settings) as pipeline:
        payload = job(file=encoded(TONE), stream=True)
        last = await answered(pipeline, payload, send=send)
    assert {event["type"] for event in sent} == {"transcript.text.delta"}
    assert "".join(event["delta"] for event in sent) == TEXT
    assert isinstance(last, dict)
    assert (last["type"], last["text"]) == ("transcript.text.done", TEXT)


async def test_a_queue_job_may_name_an_address(tmp_path: Path, web: WebServer) -> None:
    settings = Settings(engine="tones", scratch=tmp_path, allow_private_addresses=True)
    url = web.at("/a.wav", sends(TONE))
    with open_pipeline(settings) as pipeline:
        result = await answered(pipeline, job(file=url))
    assert isinstance(result, dict)
    assert result["text"] == TEXT


@pytest.mark.parametrize(
    ("payload", "error"),
    [
        (job(), InvalidRequest("file", "is required: base64, a data URI or a URL")),
        (job(file="?"), InvalidRequest("audio_base64", "not base64: Only base64 data is allowed")),
        (job(file=encoded(TONE), model="gpt-5"), ModelNotFound("gpt-5", "tones")),
        ({"openai_route": "/v1/chat/completions"}, UnknownRoute("/v1/chat/completions")),
        ({"openai_route": "/v1/audio/transcriptions"},
         InvalidRequest("body", "must be a JSON object")),
        ({**job(), "format": "srt"}, InvalidRequest("format", "cannot be combined with")),
    ],
)  # fmt: skip
def test_a_queue_job_that_cannot_be_honoured_is_refused(
    payload: dict[str, Any], error: ParakeetError
) -> None:
    with pytest.raises(type(error)) as refused:
        answer(payload)
    assert re.sub(r"\W", "", str(refused.value)).startswith(re.sub(r"\W", "", str(error))[:40])


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("timestamp_granularities", ["word"] * 1_000_000),
        ("model", "x" * 10_000_000),
        ("language", "x" * 10_000_000),
        ("response_format", "x" * 10_000_000),
        ("temperature", 10**400),
        ("model", "\ud800"),
        ("language", "\ud800"),
        ("x" * 10_000_000, 1),
    ],
)
def test_what_is_out_of_bounds_is_refused_by_name_in_few_words(field, value):
    with pytest.raises(RequestError) as raised:
        spelling.parse_json({"file": "UklGRg==", field: value}, Settings(engine="tones"))
    document = raised.value.document()
    assert document["field"] == echo(field)
    assert len(json.dumps(document, ensure_ascii=False).encode()) < 1000


def test_many_fields_are_refused_as_many():
    with pytest.raises(InvalidRequest, match="has 100001 fields, limit 32"):
        spelling.parse_json(
            {"file": "UklGRg==", **{str(index): 1 for index in range(100_000)}},
            Settings(engine="tones"),
        )


def test_diarized_json_has_a_speaker_for_each_segment(tmp_path: Path) -> None:
    fields = [("response_format", "diarized_json"), ("model", "gpt-4o-transcribe-diarize")]
    request = spelling.parse_form(fields, tmp_path / "file", Settings())
    assert request.transcription.speakers == SpeakerCount()
    document = spelling.body(TWO, request)
    assert isinstance(document, dict)
    assert document["text"] == "One two. Three four."
    assert document["segments"] == [
        {
            "type": "transcript.text.segment", "id": "seg_001", "start": 0.0, "end": 1.0,
            "text": "One two.", "speaker": "Speaker 1",
        },
        {
            "type": "transcript.text.segment", "id": "seg_002", "start": 1.1, "end": 2.0,
            "text": "Three four.", "speaker": "Speaker 2",
        },
    ]  # fmt: skip
