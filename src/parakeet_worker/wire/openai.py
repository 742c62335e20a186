"""OpenAI's form of a request and its answer, for the HTTP server and for queue jobs.

The wire is that of `POST /v1/audio/transcriptions`. Options that cannot have an effect here but do
not change what an answer means (hints) are accepted and listed in the answer's warnings, because
many clients send them always; `PARAKEET_STRICT` refuses them. All else is honoured or refused.
"""

import asyncio
import math
import zlib
from collections.abc import (
    AsyncGenerator,
    Awaitable,
    Callable,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import aclosing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from parakeet_worker import answers, bounded_json, outputs, threads
from parakeet_worker.errors import (
    InvalidRequest,
    ModelNotFound,
    ParakeetError,
    TransientError,
    UnknownRoute,
    echo,
    nearest,
)
from parakeet_worker.formats import render
from parakeet_worker.notices import Notice
from parakeet_worker.options import OnDamage
from parakeet_worker.outcome import Observe, ignore_outcome
from parakeet_worker.pipeline import Pipeline
from parakeet_worker.recognition.transcript import Transcript, Word
from parakeet_worker.request import FileSource, Job, Request, Source
from parakeet_worker.settings import Settings
from parakeet_worker.wire import native

Document: TypeAlias = dict[str, object]
ResponseFormat: TypeAlias = Literal["json", "text", "srt", "verbose_json", "vtt"]
Granularity: TypeAlias = Literal["word", "segment"]

TRANSCRIPTIONS = "/v1/audio/transcriptions"
MODELS = "/v1/models"

_MAX_NAME_CHARACTERS = 200
_MAX_FIELDS = 32
_MAX_ITEMS = 32

TRANSLATIONS = "/v1/audio/translations"
NO_TRANSLATION = f"the model does not translate; use {TRANSCRIPTIONS}"

# OpenAI's transcription models, which clients have as defaults: each means the model served here.
ALIASES = (
    "whisper-1",
    "gpt-transcribe",
    "gpt-4o-transcribe",
    "gpt-4o-mini-transcribe",
    "gpt-4o-mini-transcribe-2025-12-15",
)

DELTA = "transcript.text.delta"
DONE = "transcript.text.done"

# Fields of OpenAI's API that change what an answer holds, and why they are refused.
_REFUSED = {
    "known_speaker_names": "speakers are not identified",
    "known_speaker_references": "speakers are not identified",
}
_MAX_PROMPT_CHARACTERS = 32 << 10


@dataclass(frozen=True, slots=True)
class Asked:
    """A request, and the shape in which its answer is wanted."""

    request: Request
    response_format: ResponseFormat
    granularities: frozenset[Granularity]
    """What `verbose_json` lists with its times."""
    stream: bool
    model: str
    """The name of the model that is served."""
    logprobs: bool = False
    hints: tuple[Notice, ...] = ()
    """Options without an effect."""


class _Wire(BaseModel):
    """As in OpenAI's reference; the values of a form are text, and are read as what they mean."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    file: str | None = None
    model: Annotated[str, Field(max_length=_MAX_NAME_CHARACTERS)] | None = None
    language: Annotated[str, Field(max_length=_MAX_NAME_CHARACTERS)] | None = None
    response_format: ResponseFormat = "json"
    temperature: Annotated[float, Field(ge=0, le=1)] = 0.0
    timestamp_granularities: list[Granularity] | None = None
    chunking_strategy: str | dict[str, Any] | None = None
    stream: bool = False
    prompt: Annotated[str, Field(max_length=_MAX_PROMPT_CHARACTERS)] | None = None
    include: list[Annotated[str, Field(max_length=_MAX_NAME_CHARACTERS)]] | None = None
    keywords: list[Annotated[str, Field(max_length=_MAX_NAME_CHARACTERS)]] | None = None
    languages: list[Annotated[str, Field(max_length=_MAX_NAME_CHARACTERS)]] | None = None
    track: Annotated[str, Field(max_length=_MAX_NAME_CHARACTERS)] | int | None = None
    on_damage: OnDamage = "warn"


_FIELDS = list(_Wire.model_fields)
_LISTS = ("timestamp_granularities", "include", "keywords", "languages")
_CHOICES = {
    "response_format": ResponseFormat, "timestamp_granularities": Granularity,
    "on_damage": OnDamage,
}  # fmt: skip


def model_name(settings: Settings) -> str:
    """What the model is called here; a path by its last part."""
    if settings.model_name is not None:
        return settings.model_name
    if settings.engine == "tones":
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
        if name.startswith("chunking_strategy["):
            # An object, as OpenAI's clients write one into a form.
            inner = name.removeprefix("chunking_strategy[").removesuffix("]")
            strategy = given.setdefault("chunking_strategy", {})
            if not isinstance(strategy, dict):
                raise InvalidRequest("chunking_strategy", "was given twice")
            strategy[inner] = value
        elif name.endswith("[]") or bare in _LISTS:
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
    (read,) = native.parse({key: file}).requests
    if isinstance(read, ParakeetError):
        raise read
    return _asked(payload, read.source, settings)


def _asked(given: Mapping[str, Any], source: Source, settings: Settings) -> Asked:
    wire = _validated(given)
    if wire.model is not None:
        _check_model(wire.model, settings)
    if wire.stream and wire.response_format not in ("json", "text"):
        raise InvalidRequest("stream", "requires the response_format 'json' or 'text'")
    hints = tuple(_hints(wire))
    if settings.strict and hints:
        raise InvalidRequest(hints[0].field, f"{hints[0].reason}; leave it out")
    return Asked(
        Request(
            source=source,
            language=native.language_code(wire.language, "language"),
            track=native.track_of(wire.track, "track"),
            on_damage=wire.on_damage,
        ),
        response_format=wire.response_format,
        granularities=frozenset(wire.timestamp_granularities or ("segment",)),
        stream=wire.stream,
        model=model_name(settings),
        logprobs=_wants_logprobs(wire),
        hints=tuple(hint.notice() for hint in hints),
    )


@dataclass(frozen=True, slots=True)
class _Hint:
    """An option without an effect, and why it has none."""

    field: str
    reason: str

    def notice(self) -> Notice:
        return Notice("hint_ignored", f"'{self.field}' has no effect: {self.reason}")


def _hints(wire: _Wire) -> Iterator[_Hint]:
    if wire.prompt:
        yield _Hint("prompt", "the model takes no prompt")
    if wire.keywords:
        yield _Hint("keywords", "the model takes no keywords")
    if wire.languages:
        yield _Hint("languages", "the model identifies the language; 'language' is its hint")
    if wire.temperature != 0:
        yield _Hint("temperature", "decoding is greedy")
    if _strategy(wire.chunking_strategy) != "auto":
        yield _Hint("chunking_strategy", "the server's own voice activity detection cuts")
    if wire.timestamp_granularities and wire.response_format != "verbose_json":
        reason = f"the response_format '{wire.response_format}' has no place for it"
        yield _Hint("timestamp_granularities", reason)
    for name in wire.include or ():
        if name != "logprobs":
            yield _Hint("include", f"there is no '{echo(name)}'")
        elif not _wants_logprobs(wire):
            yield _Hint("include", "logprobs are in the response_format 'json' only")


def _wants_logprobs(wire: _Wire) -> bool:
    return wire.response_format == "json" and "logprobs" in (wire.include or ())


def _strategy(value: str | dict[str, Any] | None) -> str:
    """`auto` or `server_vad`, from a name, an object or its JSON. Raises `InvalidRequest`."""
    if isinstance(value, str) and value.lstrip().startswith("{"):
        try:
            parsed = bounded_json.parse(value)
        except bounded_json.NotParsed as failure:
            raise InvalidRequest("chunking_strategy", str(failure)) from failure
        value = parsed if isinstance(parsed, dict) else None
    name = value.get("type") if isinstance(value, dict) else value or "auto"
    if name not in ("auto", "server_vad"):
        raise InvalidRequest("chunking_strategy", "must be 'auto' or 'server_vad'")
    return str(name)


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


def body(transcript: Transcript, asked: Asked) -> Document | str:
    """The answer in the format that was asked for."""
    if asked.response_format == "json":
        answer: Document = {"text": transcript.text, **_facts(transcript, asked)}
        if asked.logprobs:
            answer["logprobs"] = _logprobs(transcript.words)
        return answer
    if asked.response_format == "verbose_json":
        return {**_verbose(transcript, asked.granularities), **_facts(transcript, asked)}
    return render.written(transcript, asked.response_format)


def _facts(transcript: Transcript, asked: Asked) -> Document:
    """What the answer says beside its words: model, seconds of audio, warnings."""
    facts: Document = {
        "model": asked.model,
        "usage": {"type": "duration", "seconds": math.ceil(transcript.seconds)},
    }
    warnings = [notice.document() for notice in _notices(transcript, asked)]
    return {**facts, "warnings": warnings} if warnings else facts


def _notices(transcript: Transcript, asked: Asked) -> tuple[Notice, ...]:
    return (*asked.hints, *render.warnings(transcript))


def _logprobs(words: Sequence[Word], *, first: bool = True) -> list[Document]:
    """Tokens that join to the words' text, each with its log-probability and its UTF-8 bytes.

    `first`: no text comes before.
    """
    listed = []
    for number, word in enumerate(words):
        for place, token in enumerate(word.tokens):
            blank = "" if place or (first and number == 0) else " "
            text = blank + token.text
            logprob = round(token.logprob, 4)
            listed.append({"token": text, "logprob": logprob, "bytes": list(text.encode())})
    return listed


def _verbose(transcript: Transcript, granularities: frozenset[Granularity]) -> Document:
    """Of OpenAI's fields those that are known: `no_speech_prob` and `tokens` are left out."""
    whole: dict[str, Any] = render.verbose_document(transcript)
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
    return answer


def _compression(text: str) -> float:
    """Whisper's measure of how much a text repeats itself."""
    content = text.encode()
    return round(len(content) / len(zlib.compress(content)), 4)


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer in one piece, and the warnings that a text has no place for."""

    body: Document | str
    warnings: tuple[Notice, ...]


async def answer(pipeline: Pipeline, asked: Asked, observe: Observe = ignore_outcome) -> Answer:
    """The answer in one piece: an object, or text for the formats that are text."""
    transcript = await answers.transcribe(pipeline, asked.request, observe)
    # In a thread: to identify the languages of a long transcript takes a while.
    found = await asyncio.to_thread(body, transcript, asked)
    return Answer(found, _notices(transcript, asked))


async def events(
    pipeline: Pipeline, asked: Asked, observe: Observe = ignore_outcome
) -> AsyncGenerator[Document, None]:
    """The text while it is transcribed, then the whole; the deltas join to it."""
    first = True
    job = Job((asked.request,), listed=False, stream=True)
    async with aclosing(answers.stream_job(pipeline, job, observe)) as parts:
        async for part in parts:
            if isinstance(part, answers.SegmentPart):
                sentence = part.sentence
                delta: Document = {"type": DELTA, "delta": f"{' ' * (not first)}{sentence.text}"}
                if asked.logprobs:
                    delta["logprobs"] = _logprobs(sentence.words, first=first)
                first = False
                yield delta
            else:
                assert part.transcript is not None
                json_asked = replace(asked, response_format="json")
                whole = await asyncio.to_thread(body, part.transcript, json_asked)
                assert isinstance(whole, dict)
                yield {"type": DONE, **whole}


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
    pipeline: Pipeline,
    payload: Mapping[str, object],
    observe: Observe = ignore_outcome,
    send: Callable[[Document], Awaitable[bool]] | None = None,
) -> object:
    """Answer a queue job's `input` that has `openai_route` and `openai_input`.

    A JSON value: an object, or text for the formats that are text; of a stream the last event, of
    which the others go to `send` until one does not arrive. Raises `RequestError`,
    `TransientError` or `EngineError`.
    """
    asked = await threads.computed(read_openai, pipeline.settings, payload)
    if not isinstance(asked, Asked):
        return asked
    found: Document | str = {}
    if asked.stream:
        async with aclosing(events(pipeline, asked, observe)) as each:
            async for event in each:
                found = event
                if send is not None and event["type"] == DELTA and not await send(event):
                    send = None
    else:
        found = (await answer(pipeline, asked, observe)).body
    await outputs.check_size(found, pipeline.settings)
    return found


def read_openai(settings: Settings, payload: Mapping[str, object]) -> Asked | Document:
    """What such a job asks for, or its answer where nothing has to be heard; raises the same."""
    route = str(payload.get("openai_route"))
    unknown = [str(name) for name in payload if name not in ("openai_route", "openai_input")]
    if unknown:
        raise InvalidRequest(unknown[0], "cannot be combined with 'openai_route'")
    if route == MODELS:
        return models(settings)
    if route.startswith(f"{MODELS}/"):
        return model(settings, route.removeprefix(f"{MODELS}/"))
    if route == TRANSLATIONS:
        raise UnknownRoute(route, NO_TRANSLATION)
    if route != TRANSCRIPTIONS:
        raise UnknownRoute(route)
    return from_json(payload.get("openai_input"), settings)
