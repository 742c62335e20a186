"""OpenAI's spelling of a request and of its answer, for the HTTP server and for queue jobs.

The wire is that of `POST /v1/audio/transcriptions`. What this model cannot do is refused by name;
what OpenAI's clients always send and every value of which means the same here is accepted.
"""

import asyncio
import math
import zlib
from collections.abc import AsyncGenerator, Iterable, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from parakeet_worker import answers, outputs, render, request
from parakeet_worker.errors import (
    InvalidRequest,
    ModelNotFound,
    ParakeetError,
    TransientError,
    UnknownRoute,
    nearest,
)
from parakeet_worker.outcome import Observe, unobserved
from parakeet_worker.pipeline import Pipeline
from parakeet_worker.request import FileSource, Job, Request
from parakeet_worker.settings import Settings
from parakeet_worker.transcript import Transcript

Document: TypeAlias = dict[str, object]
ResponseFormat: TypeAlias = Literal["json", "text", "srt", "verbose_json", "vtt"]
Granularity: TypeAlias = Literal["word", "segment"]

TRANSCRIPTIONS = "/v1/audio/transcriptions"
MODELS = "/v1/models"

_MAX_NAME_CHARACTERS = 200
_MAX_FIELDS = 32
_MAX_ITEMS = 32

# Programs have one of these written into them; here they all mean the model that is served.
ALIASES = ("whisper-1", "gpt-4o-transcribe", "gpt-4o-mini-transcribe")

# Fields of OpenAI's API, and why they are refused.
_REFUSED = {
    "prompt": "the model takes no prompt",
    "include": "log-probabilities are in 'verbose_json' alone, as 'avg_logprob'",
    "keywords": "the model takes no keywords",
    "languages": "the model takes one language, or finds it",
    "known_speaker_names": "the model does not tell speakers apart",
    "known_speaker_references": "the model does not tell speakers apart",
}


@dataclass(frozen=True, slots=True)
class Asked:
    """A request, and the shape in which its answer is wanted."""

    request: Request
    response_format: ResponseFormat
    granularities: frozenset[Granularity]
    """What `verbose_json` lists with its times."""
    stream: bool


class _Wire(BaseModel):
    """As in OpenAI's reference; the values of a form are text, and are read as what they mean."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    file: str | None = None
    model: Annotated[str, Field(max_length=_MAX_NAME_CHARACTERS)] | None = None
    language: Annotated[str, Field(max_length=_MAX_NAME_CHARACTERS)] | None = None
    response_format: ResponseFormat = "json"
    temperature: float = 0.0
    timestamp_granularities: list[Granularity] | None = None
    chunking_strategy: Literal["auto"] | None = None
    stream: bool = False


_FIELDS = list(_Wire.model_fields)
_CHOICES = {"response_format": ResponseFormat, "timestamp_granularities": Granularity}


def model_name(settings: Settings) -> str:
    """What the model is called here; a path by its last part."""
    if settings.model_name is not None:
        return settings.model_name
    if settings.engine == "scripted":
        return settings.engine
    path = Path(settings.model).expanduser()
    return path.stem if path.is_absolute() or path.exists() else settings.model


def models(settings: Settings) -> Document:
    """The one model, as OpenAI lists them."""
    return {"object": "list", "data": [model(settings, model_name(settings))]}


def model(settings: Settings, name: str) -> Document:
    """The model of that name; raises `ModelNotFound`."""
    _check_model(name, settings)
    owner, slash, _ = model_name(settings).partition("/")
    return {
        "id": model_name(settings),
        "object": "model",
        "created": 0,
        "owned_by": owner if slash else "parakeet-worker",
    }


def _check_model(name: str, settings: Settings) -> None:
    served = model_name(settings)
    if name not in (served, served.rpartition("/")[2], *ALIASES):
        raise ModelNotFound(name, served)


def from_form(fields: Iterable[tuple[str, str]], file: Path, settings: Settings) -> Asked:
    """Read a form's fields; raises `InvalidRequest` or `ModelNotFound`."""
    given: dict[str, Any] = {}
    for name, value in fields:
        bare = name.removesuffix("[]")
        if name.endswith("[]") or bare == "timestamp_granularities":
            given.setdefault(bare, []).append(value)
        elif bare in given:
            raise InvalidRequest(name, "was given twice")
        else:
            given[bare] = value
    if "file" in given:
        raise InvalidRequest("file", "must be a file")
    return _asked(given, FileSource(file), settings)


def from_json(payload: object, settings: Settings) -> Asked:
    """Read a JSON body, whose `file` is base64, a data URI or an address; raises the same."""
    if not isinstance(payload, Mapping):
        raise InvalidRequest("body", "must be a JSON object")
    file = payload.get("file")
    if not isinstance(file, str) or not file:
        raise InvalidRequest("file", "is required: base64, a data URI, or an address")
    key = "audio_url" if "://" in file[:16] else "audio_base64"
    (read,) = request.parse({key: file}).requests
    if isinstance(read, ParakeetError):
        raise read
    return _asked(payload, read.source, settings)


def _asked(given: Mapping[str, Any], source: request.Source, settings: Settings) -> Asked:
    wire = _validated(given)
    if wire.model is not None:
        _check_model(wire.model, settings)
    if wire.temperature != 0:
        raise InvalidRequest("temperature", "must be 0: the search takes the likeliest words")
    if wire.timestamp_granularities and wire.response_format != "verbose_json":
        raise InvalidRequest(
            "timestamp_granularities", "needs the response_format 'verbose_json', as at OpenAI"
        )
    if wire.stream and wire.response_format not in ("json", "text"):
        raise InvalidRequest("stream", "needs the response_format 'json' or 'text'")
    return Asked(
        Request(source=source, language=request.language_code(wire.language, "language")),
        response_format=wire.response_format,
        granularities=frozenset(wire.timestamp_granularities or ("segment",)),
        stream=wire.stream,
    )


def _validated(given: Mapping[str, Any]) -> _Wire:
    if len(given) > _MAX_FIELDS:
        raise InvalidRequest("body", f"has {len(given)} fields, limit {_MAX_FIELDS}")
    # Before they are validated one by one: pydantic counts at the end.
    for name, value in given.items():
        if isinstance(value, list | dict) and len(value) > _MAX_ITEMS:
            raise InvalidRequest(str(name), f"has {len(value)} items, limit {_MAX_ITEMS}")
    # Forms of programs send a field that was left empty; that is no choice.
    present = {name: value for name, value in given.items() if value not in (None, "", [""], [])}
    for name in present:
        if name in _REFUSED:
            raise InvalidRequest(name, f"{_REFUSED[name]}; leave it out")
        if name not in _FIELDS:
            raise InvalidRequest(str(name), "no such field", nearest(str(name), _FIELDS))
    try:
        return _Wire.model_validate(present)
    except ValidationError as failure:
        first = failure.errors(include_url=False)[0]
        field = str(first["loc"][0])
        said = first["msg"].replace("Input should be", "must be").replace("should", "must")
        if first["type"] == "string_unicode":
            said = "has a lone surrogate, which is no character"
        choices = list(get_args(_CHOICES[field])) if field in _CHOICES else []
        hint = nearest(str(first["input"]), choices)
        raise InvalidRequest(field, said, hint) from failure


def body(heard: Transcript, asked: Asked) -> Document | str:
    """The answer in the shape that was asked for."""
    if asked.response_format == "json":
        return {"text": heard.text, **_spoken_of(heard)}
    if asked.response_format == "verbose_json":
        return _verbose(heard, asked.granularities)
    return render.written(heard, asked.response_format)


def _spoken_of(heard: Transcript) -> Document:
    """How much was heard, and what there is to know about words that may be missing."""
    warnings = render.document(heard, "text").get("warnings")
    used = {"usage": {"type": "duration", "seconds": math.ceil(heard.seconds)}}
    return {**used, "warnings": warnings} if warnings else {**used}


def _verbose(heard: Transcript, granularities: frozenset[Granularity]) -> Document:
    """Of OpenAI's fields those that can be told: `no_speech_prob` and `tokens` are left out."""
    whole: dict[str, Any] = render.verbose_document(heard)
    answer = {name: whole[name] for name in ("task", "language", "duration", "text")}
    if "segment" in granularities:
        answer["segments"] = [
            {
                "id": segment["id"],
                "seek": round(100 * segment["start"]),
                "start": segment["start"],
                "end": segment["end"],
                "text": segment["text"],
                "temperature": 0.0,
                "avg_logprob": segment["avg_logprob"],
                "compression_ratio": _compression(segment["text"]),
            }
            for segment in whole["segments"]
        ]
    if "word" in granularities:
        answer["words"] = [
            {name: word[name] for name in ("word", "start", "end", "confidence")}
            for word in whole["words"]
        ]
    return {**answer, **_spoken_of(heard)}


def _compression(text: str) -> float:
    """Whisper's measure of how much a text repeats itself."""
    content = text.encode()
    return round(len(content) / len(zlib.compress(content)), 4)


async def answer(pipeline: Pipeline, asked: Asked, observe: Observe = unobserved) -> Document | str:
    """The answer in one piece: an object, or text for the formats that are text."""
    heard = await answers.heard(pipeline, asked.request, observe)
    # In a thread: to find the languages of a long transcript takes its time.
    return await asyncio.to_thread(body, heard, asked)


async def events(
    pipeline: Pipeline, asked: Asked, observe: Observe = unobserved
) -> AsyncGenerator[Document, None]:
    """The words as they are heard, then the whole; the deltas join to it."""
    said = False
    job = Job((asked.request,), listed=False, stream=True)
    async with aclosing(answers.stream_job(pipeline, job, observe)) as parts:
        async for part in parts:
            ((name, document),) = part.items()
            assert isinstance(document, dict)
            if name == "segment":
                text = f"{' ' * said}{document['text']}"
                said = True
                yield {"type": "transcript.text.delta", "delta": text}
            else:
                yield {"type": "transcript.text.done", **document}


def error(failure: ParakeetError) -> Document:
    """A failure in OpenAI's shape, its facts beside what OpenAI has."""
    caller = 400 <= failure.http_status < 500
    kind = "invalid_request_error" if caller else "server_error"
    if isinstance(failure, TransientError):
        kind = "service_unavailable_error"
    return {
        "error": {
            "message": failure.sentence,
            "type": kind,
            "param": failure.facts.get("field"),
            "code": failure.code,
        }
    }


async def answer_openai(
    pipeline: Pipeline, payload: Mapping[str, object], observe: Observe = unobserved
) -> object:
    """Answer a queue job's `input` that has `openai_route` and `openai_input`.

    A JSON value: an object, or text for the formats that are text. A stream cannot be told in one
    answer and is refused. Raises `RequestError`, `TransientError` or `EngineError`.
    """
    asked = read_openai(pipeline.settings, payload)
    if not isinstance(asked, Asked):
        return asked
    if asked.stream:
        raise InvalidRequest("stream", "this endpoint answers in one piece")
    found = await answer(pipeline, asked, observe)
    await outputs.check_size(found, pipeline.settings)
    return found


def read_openai(settings: Settings, payload: Mapping[str, object]) -> Asked | Document:
    """What such a job asks for, or its answer where nothing has to be heard; raises the same."""
    route = str(payload.get("openai_route"))
    unknown = [str(name) for name in payload if name not in ("openai_route", "openai_input")]
    if unknown:
        raise InvalidRequest(unknown[0], "cannot stand beside 'openai_route'")
    if route == MODELS:
        return models(settings)
    if route.startswith(f"{MODELS}/"):
        return model(settings, route.removeprefix(f"{MODELS}/"))
    if route != TRANSCRIPTIONS:
        raise UnknownRoute(route)
    return from_json(payload.get("openai_input"), settings)
