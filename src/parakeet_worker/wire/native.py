"""The native wire format: a job's JSON or a form to a `Job`, or an error that names the field."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, TypeAlias, get_args
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from parakeet_worker import bounded_json, language
from parakeet_worker.audio.demuxers import headerless
from parakeet_worker.errors import (
    InvalidRequest,
    RequestError,
    echo,
    nearest,
    without_trace,
)
from parakeet_worker.options import ALL_TRACKS, Attention, Channels, Format, OnDamage, Vad
from parakeet_worker.request import (
    MAX_CLIP_SECONDS,
    Clip,
    FileSource,
    InlineSource,
    Job,
    Output,
    Request,
    S3Output,
    S3Source,
    Source,
    UrlOutput,
    UrlSource,
)

MAX_TRACK_NUMBER = 1000
MAX_INPUTS = 1000
"""Recordings of one job."""
MAX_URL_CHARACTERS = 32 << 10
_MAX_KEY_CHARACTERS = 1024
_MAX_BUCKET_CHARACTERS = 255
_MAX_NAME_CHARACTERS = 100
_MAX_FIELDS = 32

# An ending, or a headerless format with rate and channels.
_FORMAT = r"^\.?[A-Za-z0-9]{1,8}(:[0-9]{1,6}(:[0-9]{1,2})?)?$"
# A media type with parameters at will, or nothing.
_CONTENT_TYPE = r"^([A-Za-z0-9!#$&^_.+-]+/[A-Za-z0-9!#$&^_.+-]+( *;[ -~]*)?)?$"


class _Wire(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _few_fields(cls, given: object) -> object:
        """Each unknown field would become an error of its own."""
        if isinstance(given, Mapping) and len(given) > _MAX_FIELDS:
            raise ValueError(f"has {len(given)} fields, limit {_MAX_FIELDS}")
        return given


class _ClipWire(_Wire):
    start: Annotated[float, Field(ge=0, lt=MAX_CLIP_SECONDS)] | None = None
    end: Annotated[float, Field(gt=0)] | None = None


# A length, even where any would do, has pydantic refuse lone surrogates.
_Url: TypeAlias = Annotated[str, Field(max_length=MAX_URL_CHARACTERS)]


class _S3Wire(_Wire):
    key: Annotated[str, Field(min_length=1, max_length=_MAX_KEY_CHARACTERS)]
    bucket: Annotated[str, Field(min_length=1, max_length=_MAX_BUCKET_CHARACTERS)] | None = None


class _RequestWire(_Wire):
    audio_base64: str | None = None
    audio_url: _Url | None = None
    audio_s3: _S3Wire | None = None
    audio_format: Annotated[str, Field(pattern=_FORMAT)] | None = None
    clip: _ClipWire | None = None
    format: Format = "json"
    timestamp: bool = False
    debug: bool = False
    vad: Vad = "auto"
    attention: Attention = "pieces"
    channels: Channels = "mix"
    track: (
        Annotated[int, Field(ge=1, le=MAX_TRACK_NUMBER)]
        | Annotated[str, Field(min_length=1, max_length=_MAX_NAME_CHARACTERS)]
        | None
    ) = None
    on_damage: OnDamage = "warn"
    language: Annotated[str, Field(max_length=_MAX_NAME_CHARACTERS)] | None = None
    stream: bool = False
    progress: bool = False
    output_url: _Url | None = None
    output_s3: _S3Wire | None = None
    output_content_type: Annotated[str, Field(pattern=_CONTENT_TYPE, max_length=200)] | None = None


_INNER: dict[str, type[_Wire]] = {"clip": _ClipWire, "audio_s3": _S3Wire, "output_s3": _S3Wire}
_CHOICES = {
    "format": Format, "vad": Vad, "attention": Attention, "channels": Channels,
    "on_damage": OnDamage,
}  # fmt: skip
_SOURCES = ("audio_base64", "audio_url", "audio_s3")
_FIELDS = list(_RequestWire.model_fields)
# In a form these are written as words; what is none of them is refused as it stands.
_FLAGS = [name for name, field in _RequestWire.model_fields.items() if field.annotation is bool]
_TRUTHS = {"true": True, "false": False}
# Of the whole job, not of one recording of a list.
_JOB_FIELDS = ("stream", "progress", "output_url", "output_s3", "output_content_type")
_ITEM_FIELDS = [name for name in _FIELDS if name not in _JOB_FIELDS]


def parse(payload: object) -> Job:
    """Read a job's `input`; raises `InvalidRequest` naming the field that is wrong.

    With `inputs`, the options beside it are defaults for every object of the list. A field that
    is null counts as absent.
    """
    if not isinstance(payload, Mapping):
        raise InvalidRequest("input", f"must be an object, got {_kind(payload)}")
    if payload.get("inputs") is None:
        wire = _validated(payload, "", [*_FIELDS, "inputs"])
        return _job((_request(wire, ""),), wire, listed=False)
    return _parse_list(payload)


def _job(requests: tuple[Request | RequestError, ...], wire: _RequestWire, *, listed: bool) -> Job:
    return Job(requests, listed, stream=wire.stream, progress=wire.progress, output=_output(wire))


def _output(wire: _RequestWire) -> Output | None:
    if wire.output_url is not None and wire.output_s3 is not None:
        raise InvalidRequest("output_url", "cannot stand beside 'output_s3'")
    content_type = wire.output_content_type
    if wire.output_s3 is not None:
        return S3Output(wire.output_s3.key, wire.output_s3.bucket, content_type)
    if wire.output_url is None:
        if content_type is not None:
            reason = "is only possible together with 'output_url' or 'output_s3'"
            raise InvalidRequest("output_content_type", reason)
        return None
    address = _address(wire.output_url, "output_url")
    if isinstance(address, S3Source):
        return S3Output(address.key, address.bucket, content_type)
    return UrlOutput(address.url, content_type)


def parse_form(fields: Iterable[tuple[str, str]], file: Path) -> Job:
    """Read the fields of a form whose audio is `file`; raises `InvalidRequest`.

    They are those of a job, as text; objects are JSON, and an empty field counts as absent.
    """
    payload: dict[str, object] = {}
    for name, text in fields:
        if name in payload:
            raise InvalidRequest(name, "was given twice")
        payload[name] = _unwritten(name, text)
    beside = [name for name in (*_SOURCES, "inputs") if payload.get(name) is not None]
    if beside:
        raise InvalidRequest(beside[0], "cannot stand beside a file")
    wire = _validated(payload, "", [name for name in _FIELDS if name not in _SOURCES])
    return _job((_request(wire, "", FileSource(file)),), wire, listed=False)


def _unwritten(name: str, text: str) -> object:
    if not text:
        return None
    if name in _FLAGS and text in _TRUTHS:
        return _TRUTHS[text]
    if name not in _INNER:
        return text
    try:
        return bounded_json.parse(text)
    except bounded_json.NotParsed as failure:
        raise InvalidRequest(name, str(failure)) from failure


def _parse_list(payload: Mapping[str, object]) -> Job:
    inputs = payload["inputs"]
    if not isinstance(inputs, list) or not inputs:
        raise InvalidRequest("inputs", "must be a list of at least one object")
    if len(inputs) > MAX_INPUTS:
        raise InvalidRequest("inputs", f"has {len(inputs)} items, limit {MAX_INPUTS}")
    defaults = {name: value for name, value in payload.items() if name != "inputs"}
    beside = [name for name in _SOURCES if defaults.get(name) is not None]
    if beside:
        raise InvalidRequest(beside[0], "cannot stand beside 'inputs'; put it inside the list")
    wire = _validated(defaults, "", [*_FIELDS, "inputs"])
    if wire.stream:
        raise InvalidRequest("stream", "one recording can be streamed, a list cannot")
    defaults = {name: value for name, value in defaults.items() if name not in _JOB_FIELDS}
    requests = tuple(_read_one(item, index, defaults) for index, item in enumerate(inputs))
    return _job(requests, wire, listed=True)


def _read_one(item: object, index: int, defaults: Mapping[str, object]) -> Request | RequestError:
    where = f"inputs[{index}]"
    try:
        if not isinstance(item, Mapping):
            raise InvalidRequest(where, f"must be an object, got {_kind(item)}")
        given = {
            name: defaults.get(name) if value is None else value for name, value in item.items()
        }
        wire = _validated({**defaults, **given}, f"{where}.", _ITEM_FIELDS)
        return _request(wire, f"{where}.")
    except RequestError as error:
        return without_trace(error)


def _request(wire: _RequestWire, prefix: str, source: Source | None = None) -> Request:
    source = source or _source(wire, prefix)
    if wire.timestamp and wire.format == "text":
        raise InvalidRequest(f"{prefix}timestamp", "the format 'text' has no place for times")
    track = track_of(wire.track, f"{prefix}track")
    if track == ALL_TRACKS and wire.channels == "separate":
        reason = "'all' cannot be combined with channels 'separate'"
        raise InvalidRequest(f"{prefix}track", reason)
    said = wire.audio_format.lstrip(".").lower() if wire.audio_format else None
    return Request(
        source=source,
        audio_format=None if said is None else said.partition(":")[0],
        headerless=headerless(said, f"{prefix}audio_format"),
        clip=_clip(wire.clip, prefix),
        format=wire.format,
        timestamp=wire.timestamp,
        debug=wire.debug,
        vad=wire.vad,
        attention=wire.attention,
        channels=wire.channels,
        track=track,
        on_damage=wire.on_damage,
        language=language_code(wire.language, f"{prefix}language"),
    )


def _validated(payload: Mapping[str, object], prefix: str, known: list[str]) -> _RequestWire:
    if len(payload) > _MAX_FIELDS:
        raise InvalidRequest(
            prefix.removesuffix(".") or "input", f"has {len(payload)} fields, limit {_MAX_FIELDS}"
        )
    for name in payload:
        if name not in known:
            hint = nearest(str(name), known)
            raise InvalidRequest(f"{prefix}{name}", "no such field", hint)
    given = {name: value for name, value in payload.items() if value is not None}
    try:
        return _RequestWire.model_validate(given)
    except ValidationError as failure:
        raise _named(failure, prefix) from failure


def _named(failure: ValidationError, prefix: str) -> InvalidRequest:
    """The first complaint of pydantic, in our words; a misspelled name before a missing one."""
    complaints = failure.errors(include_url=False)
    first = min(complaints, key=lambda complaint: complaint["type"] != "extra_forbidden")
    field = prefix + ".".join(str(part) for part in first["loc"])
    kind, given = first["type"], first["input"]
    if kind == "extra_forbidden":
        inner = _INNER[str(first["loc"][0])].model_fields
        hint = nearest(str(first["loc"][-1]), list(inner))
        return InvalidRequest(field, "no such field", hint)
    if kind == "missing":
        return InvalidRequest(field, "is required")
    if kind == "value_error":
        return InvalidRequest(field, first["msg"].removeprefix("Value error, "))
    if kind == "string_unicode":
        return InvalidRequest(field, "has a lone surrogate, which is no character")
    said = "must be an object" if kind == "model_type" else first["msg"]
    said = said.replace("Input should be", "must be").replace("String should", "must")
    choices = get_args(_CHOICES.get(str(first["loc"][-1]), Format))
    hint = nearest(str(given), list(choices)) if kind == "literal_error" else None
    return InvalidRequest(field, f"{said}, got {_kind(given)}", hint)


def _source(wire: _RequestWire, prefix: str) -> Source:
    given = [name for name in _SOURCES if getattr(wire, name) is not None]
    if len(given) != 1:
        found = f"got {' and '.join(given)}" if given else "got none"
        names = ", ".join(_SOURCES)
        raise InvalidRequest(f"{prefix}audio_url", f"exactly one of {names} is needed, {found}")
    if wire.audio_base64 is not None:
        return InlineSource(wire.audio_base64)
    if wire.audio_s3 is not None:
        return S3Source(wire.audio_s3.key, wire.audio_s3.bucket)
    assert wire.audio_url is not None
    return _address(wire.audio_url, f"{prefix}audio_url")


def _address(url: str, field: str) -> UrlSource | S3Source:
    scheme, _, rest = url.partition("://")
    if scheme.lower() == "s3":
        # A key is taken letter by letter: `?`, `#` and `%` are allowed in it.
        bucket, _, key = rest.partition("/")
        if not bucket or not key:
            raise InvalidRequest(field, "must be of the form s3://bucket/key")
        return S3Source(key, bucket)
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError as failure:
        raise InvalidRequest(field, f"not a URL: {echo(str(failure))}") from failure
    if parts.scheme not in ("http", "https") or not host:
        raise InvalidRequest(field, "must be an http, https or s3 address")
    if url != url.strip() or not url.isprintable():
        raise InvalidRequest(field, "has blanks around it or unprintable characters in it")
    return UrlSource(url)


def track_of(given: int | str | None, field: str) -> int | str | None:
    """A track's number, language or `all`; a number may be text. Raises `InvalidRequest`."""
    if not isinstance(given, str):
        return given
    track = given.strip().casefold()
    if not (track.isascii() and track.isdecimal()):
        if not track:
            raise InvalidRequest(field, "must be a number from 1, a language or 'all'")
        return track
    number = int(track)
    if not 1 <= number <= MAX_TRACK_NUMBER:
        raise InvalidRequest(field, f"must be from 1 to {MAX_TRACK_NUMBER}, got {number}")
    return number


def _clip(wire: _ClipWire | None, prefix: str) -> Clip:
    if wire is None:
        return Clip()
    start = wire.start or 0.0
    if wire.end is not None and wire.end <= start:
        raise InvalidRequest(f"{prefix}clip.end", "must be greater than clip.start")
    return Clip(start, wire.end)


def language_code(given: str | None, field: str) -> str | None:
    """The code of a language as `language.code` understands it; none for `auto`.

    Raises `InvalidRequest` for `field`.
    """
    if given is None or given.strip().casefold() in language.AUTOMATIC:
        return None
    code = language.code(given)
    if code is None:
        known = [*(name.casefold() for name in language.LANGUAGES.values()), *language.LANGUAGES]
        hint = nearest(given.strip().casefold(), known)
        raise InvalidRequest(field, f"'{echo(given)}' is none of the model's languages", hint)
    return code


def _kind(value: object) -> str:
    names = {
        str: "a string",
        bool: "a boolean",
        int: "a number",
        float: "a number",
        list: "a list",
        dict: "an object",
        type(None): "null",
    }
    return names.get(type(value), type(value).__name__)


def schema() -> dict[str, Any]:
    """JSON schema of one recording's request, for who describes the wire."""
    return _RequestWire.model_json_schema()
