"""OpenAI's request and response formats, for HTTP and for queue jobs.

The format is that of `POST /v1/audio/transcriptions`. Options without an effect that do not change
the meaning of an answer (hints) are accepted and listed in its warnings, because many clients send
them always; `PARAKEET_STRICT` rejects them. All other options are honoured or rejected.
"""

import asyncio
import math
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
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from parakeet_worker import answers, json_parsing, outputs
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
from parakeet_worker.options import OnDamage, SpeakerCount
from parakeet_worker.outcome import Observe, ignore_outcome
from parakeet_worker.pipeline import Pipeline
from parakeet_worker.recognition.transcript import Transcript, Word
from parakeet_worker.request import (
    FileSource,
    InlineSource,
    JobInput,
    KnownSpeaker,
    Request,
    Source,
)
from parakeet_worker.settings import Settings
from parakeet_worker.wire import native
from parakeet_worker.wire.addresses import source_at
from parakeet_worker.wire.known_speakers import check_names
from parakeet_worker.wire.subtitles import (
    DEFAULTS,
    MaxCharactersPerSecond,
    MaxCueSeconds,
    MaxLineCharacters,
    MaxLines,
    cue_limits,
)
from parakeet_worker.wire.validation import MAX_FIELDS, first_problem, too_many

Document: TypeAlias = dict[str, object]
ResponseFormat: TypeAlias = Literal["json", "text", "srt", "verbose_json", "vtt", "diarized_json"]
Granularity: TypeAlias = Literal["word", "segment"]

TRANSCRIPTIONS = "/v1/audio/transcriptions"
MODELS = "/v1/models"

_MAX_NAME_CHARACTERS = 200
_MAX_ITEMS = 32

TRANSLATIONS = "/v1/audio/translations"
NO_TRANSLATION = f"the model does not translate; use {TRANSCRIPTIONS}"

# OpenAI's transcription models, the defaults of clients: aliases of the served model.
ALIASES = (
    "whisper-1",
    "gpt-transcribe",
    "gpt-4o-transcribe",
    "gpt-4o-mini-transcribe",
    "gpt-4o-mini-transcribe-2025-12-15",
    "gpt-4o-transcribe-diarize",
)

TEXT_TYPES = {"text": "text/plain", "srt": "application/x-subrip", "vtt": "text/vtt"}
"""Media types of the formats that are text."""

DELTA = "transcript.text.delta"
DONE = "transcript.text.done"

_MAX_PROMPT_CHARACTERS = 32 << 10


@dataclass(frozen=True, slots=True)
class OpenAIRequest:
    """A request, and the format of its answer."""

    transcription: Request
    response_format: ResponseFormat
    granularities: frozenset[Granularity]
    """The lists with times in `verbose_json`."""
    stream: bool
    model: str
    """The name of the served model."""
    logprobs: bool = False
    hints: tuple[Notice, ...] = ()
    """Options without an effect."""


_Name: TypeAlias = Annotated[str, Field(max_length=_MAX_NAME_CHARACTERS)]


class _Wire(BaseModel):
    """The fields of OpenAI's reference; a form's text is converted to their types."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)

    file: str | None = None
    """Required: the audio, in any format that ffmpeg reads. A file in a form; base64, a data URI or
    a URL in JSON."""
    model: _Name | None = None
    """The name at `/v1/models`, with or without its owner, or one of its aliases; any other is
    `model_not_found`. Results contain the name of the model used."""
    language: _Name | None = None
    """The spoken language, as a code or a name; `auto` equals no value."""
    response_format: ResponseFormat = "json"
    """The format of the result; `diarized_json` labels speakers."""
    temperature: Annotated[float, Field(ge=0, le=1)] = 0.0
    """A hint: decoding is greedy."""
    timestamp_granularities: list[Granularity] | None = None
    """`segment` (the default), `word` or both: the lists with times in `verbose_json`. A hint with
    other formats."""
    chunking_strategy: str | dict[str, Any] | None = None
    """`auto`; a hint with `server_vad`."""
    stream: bool = False
    """With `json` or `text`: send events `transcript.text.delta`, then `transcript.text.done` with
    `usage`."""
    prompt: Annotated[str, Field(max_length=_MAX_PROMPT_CHARACTERS)] | None = None
    """A hint: the model does not support prompts."""
    include: list[_Name] | None = None
    """`logprobs` with `json`, also in a stream: each token with its log-probability; otherwise a
    hint."""
    keywords: list[_Name] | None = None
    """A hint: the model does not support keywords."""
    languages: list[_Name] | None = None
    """One is the same as `language`; several are a hint: the model identifies the language."""
    known_speaker_names: list[_Name] | None = None
    """Names of people who may speak, one for each reference; requires `diarized_json`."""
    known_speaker_references: list[str] | None = None
    """A recording of each of these people alone, 2 to 30 s: a data URI, base64 or a URL."""
    track: _Name | int | None = None
    """An extension: the audio track, by number from 1 or by language; `all` transcribes each on its
    own."""
    on_damage: OnDamage = "warn"
    """An extension: `refuse` makes missing or damaged audio an error instead of a warning."""
    max_line_characters: MaxLineCharacters = DEFAULTS.max_line_characters
    """An extension: the longest line of a cue of `srt` or `vtt`, in characters; a longer word is
    divided."""
    max_lines: MaxLines = DEFAULTS.max_lines
    """An extension: the most lines of a cue."""
    max_characters_per_second: MaxCharactersPerSecond = DEFAULTS.max_characters_per_second
    """An extension: the reading speed: a cue with more characters per second is shown longer, up to
    `max_cue_seconds` or the next cue."""
    max_cue_seconds: MaxCueSeconds = DEFAULTS.max_cue_seconds
    """An extension: the longest time a cue is shown, in seconds."""


_FIELDS = list(_Wire.model_fields)
_LISTS = (
    "timestamp_granularities",
    "include",
    "keywords",
    "languages",
    "known_speaker_names",
    "known_speaker_references",
)


def model_name(settings: Settings) -> str:
    """The name of the served model; of a path, its last part."""
    if settings.model_name is not None:
        return settings.model_name
    if settings.engine == "tones":
        return settings.engine
    path = Path(settings.model).expanduser()
    return path.stem if path.is_absolute() or path.exists() else settings.model


def models(settings: Settings) -> Document:
    """OpenAI's list of models, with the served one."""
    return {"object": "list", "data": [model(settings, model_name(settings))]}


def model(settings: Settings, name: str) -> Document:
    """OpenAI's description of a model. Raises `ModelNotFound`."""
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


def parse_form(fields: Iterable[tuple[str, str]], file: Path, settings: Settings) -> OpenAIRequest:
    """Validate the fields of a form. Raises `InvalidRequest` or `ModelNotFound`."""
    payload: dict[str, Any] = {}
    for name, value in fields:
        bare = name.removesuffix("[]")
        if name.startswith("chunking_strategy["):
            # OpenAI's clients send an object in a form as one field per member.
            inner = name.removeprefix("chunking_strategy[").removesuffix("]")
            strategy = payload.setdefault("chunking_strategy", {})
            if not isinstance(strategy, dict):
                raise InvalidRequest("chunking_strategy", "occurs twice")
            strategy[inner] = value
        elif name.endswith("[]") or bare in _LISTS:
            payload.setdefault(bare, []).append(value)
        elif bare in payload:
            raise InvalidRequest(name, "occurs twice")
        else:
            payload[bare] = value
    if "file" in payload:
        raise InvalidRequest("file", "must be a file")
    return _request(payload, FileSource(file), settings)


def parse_json(payload: object, settings: Settings) -> OpenAIRequest:
    """Validate a JSON body, whose `file` is base64, a data URI or a URL. Raises the same."""
    if not isinstance(payload, Mapping):
        raise InvalidRequest("body", "must be a JSON object")
    file = payload.get("file")
    if not isinstance(file, str) or not file:
        raise InvalidRequest("file", "is required: base64, a data URI or a URL")
    return _request(payload, _source(file, "file"), settings)


def _source(text: str, field: str) -> Source:
    """Base64, a data URI or a URL."""
    return source_at(text, field) if "://" in text[:16] else InlineSource(text)


def _request(payload: Mapping[str, Any], source: Source, settings: Settings) -> OpenAIRequest:
    wire = _validated(payload)
    if wire.model is not None:
        _check_model(wire.model, settings)
    if wire.stream and wire.response_format not in ("json", "text"):
        raise InvalidRequest("stream", "requires the response_format 'json' or 'text'")
    return OpenAIRequest(
        Request(
            source=source,
            language=_language(wire),
            track=native.track_of(wire.track, "track"),
            on_damage=wire.on_damage,
            speakers=SpeakerCount() if wire.response_format == "diarized_json" else None,
            known_speakers=_known_speakers(wire),
            cue_limits=cue_limits(wire, "response_format"),
        ),
        response_format=wire.response_format,
        granularities=frozenset(wire.timestamp_granularities or ("segment",)),
        stream=wire.stream,
        model=model_name(settings),
        logprobs=_includes_logprobs(wire),
        hints=tuple(_accepted(hint, settings) for hint in _hints(wire)),
    )


def _known_speakers(wire: _Wire) -> tuple[KnownSpeaker, ...]:
    """Raises `InvalidRequest`."""
    names, references = wire.known_speaker_names or [], wire.known_speaker_references or []
    if not names and not references:
        return ()
    field = "known_speaker_names" if names else "known_speaker_references"
    if wire.response_format != "diarized_json":
        raise InvalidRequest(field, "requires the response_format 'diarized_json'")
    if len(names) != len(references):
        reason = f"{len(names)} names and {len(references)} references; each needs the other"
        raise InvalidRequest(field, reason)
    check_names(names, lambda _: "known_speaker_names")
    field = "known_speaker_references"
    return tuple(
        KnownSpeaker(name, _source(reference, field), field)
        for name, reference in zip(names, references, strict=True)
    )


def with_api_version(request: OpenAIRequest, settings: Settings) -> OpenAIRequest:
    """A request with the query parameter `api-version`, a hint of clients for Azure.

    Raises `InvalidRequest` with `PARAKEET_STRICT`.
    """
    hint = _Hint("api-version", "the API has one version")
    return replace(request, hints=(*request.hints, _accepted(hint, settings)))


def _language(wire: _Wire) -> str | None:
    """The code of the only language that a request names. Raises `InvalidRequest`."""
    codes = [native.language_code(each, "languages") for each in wire.languages or ()]
    if wire.language is None and len(codes) == 1:
        return codes[0]
    return native.language_code(wire.language, "language")


@dataclass(frozen=True, slots=True)
class _Hint:
    """An option without an effect, and the reason."""

    field: str
    reason: str

    def notice(self) -> Notice:
        return Notice("hint_ignored", f"'{self.field}' has no effect: {self.reason}")


def _accepted(hint: _Hint, settings: Settings) -> Notice:
    """The warning of a hint. Raises `InvalidRequest` with `PARAKEET_STRICT`."""
    if settings.strict:
        raise InvalidRequest(hint.field, f"{hint.reason}; omit it")
    return hint.notice()


def _hints(wire: _Wire) -> Iterator[_Hint]:
    if wire.prompt:
        yield _Hint("prompt", "the model does not support prompts")
    if wire.keywords:
        yield _Hint("keywords", "the model does not support keywords")
    if wire.languages and (wire.language is not None or len(wire.languages) > 1):
        yield _Hint("languages", "the model takes at most one language, or identifies it")
    if wire.temperature != 0:
        yield _Hint("temperature", "decoding is greedy")
    if _strategy(wire.chunking_strategy) != "auto":
        yield _Hint("chunking_strategy", "chunks are cut by the server's voice activity detection")
    if wire.timestamp_granularities and wire.response_format != "verbose_json":
        reason = f"the response_format '{wire.response_format}' contains no times"
        yield _Hint("timestamp_granularities", reason)
    for name in wire.include or ():
        if name != "logprobs":
            yield _Hint("include", f"'{echo(name)}' is not available")
        elif not _includes_logprobs(wire):
            yield _Hint("include", "logprobs are in the response_format 'json' only")


def _includes_logprobs(wire: _Wire) -> bool:
    return wire.response_format == "json" and "logprobs" in (wire.include or ())


def _strategy(value: str | dict[str, Any] | None) -> str:
    """`auto` or `server_vad`, from a name, an object or its JSON. Raises `InvalidRequest`."""
    if isinstance(value, str) and value.lstrip().startswith("{"):
        try:
            parsed = json_parsing.parse(value)
        except json_parsing.NotParsed as failure:
            raise InvalidRequest("chunking_strategy", str(failure)) from failure
        value = parsed if isinstance(parsed, dict) else None
    name = value.get("type") if isinstance(value, dict) else value or "auto"
    if name not in ("auto", "server_vad"):
        raise InvalidRequest("chunking_strategy", "must be 'auto' or 'server_vad'")
    return str(name)


def _validated(payload: Mapping[str, Any]) -> _Wire:
    if len(payload) > MAX_FIELDS:
        raise InvalidRequest("body", too_many("fields", len(payload), MAX_FIELDS))
    # pydantic validates all items of a list before it checks their number.
    for name, value in payload.items():
        if isinstance(value, list | dict) and len(value) > _MAX_ITEMS:
            raise InvalidRequest(str(name), too_many("items", len(value), _MAX_ITEMS))
    # An empty field of a form counts as absent.
    present = {name: value for name, value in payload.items() if value not in (None, "", [""], [])}
    for name in present:
        if name not in _FIELDS:
            raise InvalidRequest(str(name), "no such field", nearest(str(name), _FIELDS))
    try:
        return _Wire.model_validate(present)
    except ValidationError as failure:
        problem = first_problem(failure, _Wire)
        # Clients show the name of a parameter: without the index of a list's item.
        raise replace(problem, path=problem.path[:1]).error() from failure


def body(transcript: Transcript, request: OpenAIRequest) -> Document | str:
    """The answer in the requested format."""
    if request.response_format == "json":
        answer: Document = {"text": transcript.text, **_facts(transcript, request)}
        if request.logprobs:
            answer["logprobs"] = _logprobs(transcript.words)
        return answer
    if request.response_format == "verbose_json":
        return {**_verbose(transcript, request.granularities), **_facts(transcript, request)}
    if request.response_format == "diarized_json":
        return {**_diarized(transcript), **_facts(transcript, request)}
    limits = request.transcription.cue_limits
    return render.render(transcript, request.response_format, limits=limits)


def _diarized(transcript: Transcript) -> Document:
    """OpenAI's `diarized_json`: a segment per sentence, which has one speaker."""
    words = " ".join(word.text for word in transcript.words)
    return {
        "task": "transcribe",
        "duration": round(transcript.seconds, 3),
        "text": words,
        "segments": [
            {
                "type": "transcript.text.segment",
                "id": f"seg_{index:03d}",
                "start": sentence.start_seconds,
                "end": sentence.end_seconds,
                "text": sentence.text,
                "speaker": sentence.speaker,
            }
            for index, sentence in enumerate(transcript.sentences, start=1)
        ],
    }


def _facts(transcript: Transcript, request: OpenAIRequest) -> Document:
    """Model, seconds of audio and warnings."""
    facts: Document = {
        "model": request.model,
        "usage": {"type": "duration", "seconds": math.ceil(transcript.seconds)},
    }
    warnings = [notice.document() for notice in _notices(transcript, request)]
    return {**facts, "warnings": warnings} if warnings else facts


def _notices(transcript: Transcript, request: OpenAIRequest) -> tuple[Notice, ...]:
    return (*request.hints, *render.warnings(transcript))


def _logprobs(words: Sequence[Word], *, first: bool = True) -> list[Document]:
    """The tokens, which concatenate to the text, with log-probability and UTF-8 bytes.

    `first`: no text precedes.
    """
    listed = []
    for number, word in enumerate(words):
        for place, token in enumerate(word.tokens):
            blank = "" if place or (first and number == 0) else " "
            text = blank + token.text
            logprob = round(token.logprob, 4)
            listed.append({"token": text, "logprob": logprob, "bytes": list(text.encode())})
    return listed


_SEGMENT_FIELDS = (
    "id", "seek", "start", "end", "text", "tokens", "temperature", "avg_logprob",
    "compression_ratio", "no_speech_prob",
)  # fmt: skip


def _verbose(transcript: Transcript, granularities: frozenset[Granularity]) -> Document:
    """OpenAI's `verbose_json`."""
    whole: dict[str, Any] = render.verbose_document(transcript)
    answer = {name: whole[name] for name in ("task", "language", "duration", "text")}
    if "segment" in granularities:
        answer["segments"] = [
            {name: segment[name] for name in _SEGMENT_FIELDS if name in segment}
            for segment in whole["segments"]
        ]
    if "word" in granularities:
        answer["words"] = [
            {name: word[name] for name in ("word", "start", "end", "confidence")}
            for word in whole["words"]
        ]
    return answer


@dataclass(frozen=True, slots=True)
class OpenAIAnswer:
    """An answer, and its warnings, which a text cannot contain."""

    body: Document | str
    warnings: tuple[Notice, ...]


async def answer(
    pipeline: Pipeline, request: OpenAIRequest, observe: Observe = ignore_outcome
) -> OpenAIAnswer:
    """Transcribe and answer, without a stream."""
    transcript = await answers.transcribe(pipeline, request.transcription, observe)
    # In a thread: identifying the languages of a long transcript takes a while.
    result = await asyncio.to_thread(body, transcript, request)
    return OpenAIAnswer(result, _notices(transcript, request))


async def events(
    pipeline: Pipeline, request: OpenAIRequest, observe: Observe = ignore_outcome
) -> AsyncGenerator[Document, None]:
    """Yield delta events, which concatenate to the text, then the whole answer."""
    first = True
    job = JobInput((request.transcription,), listed=False, stream=True)
    async with aclosing(answers.stream_job(pipeline, job, observe)) as parts:
        async for part in parts:
            if isinstance(part, answers.SegmentPart):
                sentence = part.sentence
                delta: Document = {"type": DELTA, "delta": f"{' ' * (not first)}{sentence.text}"}
                if request.logprobs:
                    delta["logprobs"] = _logprobs(sentence.words, first=first)
                first = False
                yield delta
            else:
                assert part.transcript is not None
                as_json = replace(request, response_format="json")
                whole = await asyncio.to_thread(body, part.transcript, as_json)
                assert isinstance(whole, dict)
                yield {"type": DONE, **whole}


def error(failure: ParakeetError) -> Document:
    """A failure in OpenAI's format."""
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


async def answer_job(
    pipeline: Pipeline,
    request: OpenAIRequest,
    observe: Observe = ignore_outcome,
    send: Callable[[Document], Awaitable[bool]] | None = None,
) -> Document | str:
    """Answer a validated queue job: an object, or text for the formats that are text.

    A stream passes its delta events to `send` until one is not delivered, and returns the last
    event. Raises `RequestError`, `TransientError` or `EngineError`.
    """
    result: Document | str = {}
    if request.stream:
        async with aclosing(events(pipeline, request, observe)) as each:
            async for event in each:
                result = event
                if send is not None and event["type"] == DELTA and not await send(event):
                    send = None
    else:
        result = (await answer(pipeline, request, observe)).body
    await outputs.check_size(result, pipeline.settings)
    return result


def parse_job(settings: Settings, payload: Mapping[str, object]) -> OpenAIRequest | Document:
    """Validate the `input` of a queue job with `openai_route` and `openai_input`.

    Returns the answer if the route needs no transcription. Raises the same as `parse_json`, and
    `UnknownRoute`.
    """
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
    return parse_json(payload.get("openai_input"), settings)


REQUEST = _Wire
"""The type of a request, for its schema."""
